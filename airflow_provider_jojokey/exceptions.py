"""The errors that a task can end with.

One class for each kind of cause, so that a callback can tell them apart. Those that a retry
cannot help are also :class:`AirflowFailException`: Airflow fails the task at once, whatever its
``retries``. Each message says what happened, whether money was spent, what to do, and what a
retry will do.
"""

from __future__ import annotations

from typing import Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_jojokey.img2.errors import Billed, Img2Error, Kind


class JojoKeyError(AirflowException):
    """A generation, or what belongs to it, failed.

    :param message: what happened, whether it cost money, what to do
    :param status_code: the HTTP status of the gateway's answer, if there was one
    :param code: the ``error.code`` in its body, or Cloudflare's error number
    :param request_id: the gateway's request id, for JojoKey's support
    :param cf_ray: Cloudflare's ray id, for JojoKey's support
    :param retry_after: seconds after which trying again makes sense, where known
    :param billed: whether this attempt cost money: ``"no"``, ``"yes"`` or ``"unknown"``
    """

    retry: str = "A retry is safe: it pays nothing twice."
    """What a retry will do: the message's last sentence."""

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        cf_ray: str | None = None,
        retry_after: float | None = None,
        billed: Billed = "no",
    ) -> None:
        super().__init__(f"{message} {self.retry}".strip())
        self.message = message
        self.status_code = status_code  # type: ignore[assignment]
        self.code = code
        self.request_id = request_id
        self.cf_ray = cf_ray
        self.retry_after = retry_after
        self.billed: Billed = billed
        self.usage: dict[str, Any] | None = None
        """The tokens that were billed to the task in its Dag run so far, where that is known."""
        self.images: list[dict[str, Any]] | None = None
        """Images that had arrived all the same and are in S3, as in the manifest."""
        self.receipt: str | None = None
        """The ``s3://`` place of the receipt, once something was written there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(vars(self)))  # keyword arguments would be lost otherwise

    def retold(self, message: str, kind: type[JojoKeyError] | None = None, **changes: Any) -> JojoKeyError:
        """Return the same error in other words.

        :param message: what it says
        :param kind: its class; by default this one's
        :param changes: what else is different, ``billed`` or ``retry_after`` for example
        """
        return _rebuild(kind or type(self), {**vars(self), **changes, "message": message})

    def to_json(self) -> dict[str, Any]:
        """Return all that another process needs to raise the same error."""
        return {"class": type(self).__name__, **vars(self)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> JojoKeyError:
        """Return the error that :meth:`to_json` told of."""
        state = dict(values)
        known = {one.__name__: one for one in _all_classes(JojoKeyError)}
        return _rebuild(known.get(state.pop("class"), JojoKeyError), state)

    @staticmethod
    def of(error: Img2Error) -> JojoKeyError:
        """Return the exception for an error of the API."""
        return _CLASS_OF_KIND[error.kind](
            str(error),
            status_code=error.status_code,
            code=error.code,
            request_id=error.request_id,
            cf_ray=error.cf_ray,
            retry_after=error.retry_after,
            billed=error.billed,
        )


def _rebuild(cls: type[JojoKeyError], state: dict[str, Any]) -> JojoKeyError:
    error = cls.__new__(cls, state.get("message", ""))
    AirflowException.__init__(error, f"{state['message']} {state.get('retry', cls.retry)}".strip())
    vars(error).update(state)
    return error


def _all_classes(cls: type[JojoKeyError]) -> list[type[JojoKeyError]]:
    return [cls, *(one for child in cls.__subclasses__() for one in _all_classes(child))]


class JojoKeyFailure(JojoKeyError, AirflowFailException):
    """A failure that a retry cannot help: the task fails at once."""

    retry = "Airflow does not retry it: a retry would end the same way."


class JojoKeyConnectionError(JojoKeyFailure):
    """The Airflow connection is missing something or holds something that cannot be used."""


class JojoKeyRequestError(JojoKeyFailure, ValueError):
    """The request breaks a rule of the API."""


class JojoKeyTokenError(JojoKeyFailure):
    """The token is wrong, disabled, expired or used up (401)."""


class JojoKeyAccessError(JojoKeyFailure):
    """The token may not use this model, group or address (403)."""


class JojoKeyEdgeBlockedError(JojoKeyFailure):
    """The network edge refused this machine before the gateway saw the request."""


class JojoKeyQuotaError(JojoKeyFailure):
    """The account's balance or the token's quota is not enough."""


class JojoKeyContentError(JojoKeyFailure):
    """The content check refused the prompt."""


class JojoKeyBaseUrlError(JojoKeyFailure):
    """There is no image API at the connection's host (404, a web page, a redirect)."""


class JojoKeyTLSError(JojoKeyFailure):
    """TLS failed before anything was sent."""


class JojoKeyRateLimitError(JojoKeyError):
    """Too many requests (429)."""

    retry = "Airflow retries it; nothing was paid so far."


class JojoKeyNoChannelError(JojoKeyError):
    """No channel serves the model in the token's group at the moment (503)."""

    retry = "Airflow retries it; nothing was paid so far."


class JojoKeyOverloadedError(JojoKeyError):
    """The gateway or the model behind it is overloaded or failing; what it had taken it refunded."""

    retry = "Airflow retries it; nothing was paid so far."


class JojoKeyUnreachableError(JojoKeyError):
    """No connection to the gateway."""

    retry = "Airflow retries it; nothing was paid so far."


class JojoKeyUnknownOutcomeError(JojoKeyError):
    """The request was sent, its answer was lost, and it may have been billed."""

    retry = (
        "A retry first asks the gateway's log, and pays again only if that shows that nothing was billed, "
        "or with on_unknown_outcome='regenerate'."
    )


class JojoKeyAlreadyBilledError(JojoKeyUnknownOutcomeError, AirflowFailException):
    """An earlier attempt gave no images and was billed, or nobody can tell: a person has to decide."""

    retry = (
        "Airflow does not retry it. To pay for a new image, clear the task with "
        "on_unknown_outcome='regenerate' or reuse='never'."
    )


class JojoKeyReplyError(JojoKeyFailure):
    """The gateway reported success, and billed it, but its reply holds no usable image."""

    retry = (
        "Airflow does not retry it: that would pay a second time. To pay for a new image, clear the task with "
        "on_unknown_outcome='regenerate' or reuse='never'."
    )


class JojoKeyStoreError(JojoKeyError):
    """S3 rejected a request or could not be reached.

    :param transient: whether the same request may succeed later without anyone changing anything
    """

    def __init__(
        self, what: str = "", todo: str = "", *, transient: bool = False, detail: str = "", **facts: Any
    ) -> None:
        marks = {"HTTP": facts.get("status_code"), "code": facts.get("code")}
        known = ", ".join(f"{name} {value}" for name, value in marks.items() if value)
        words = (f" ({known})" if known else "") + (f': "{detail}"' if detail else "")
        super().__init__(f"{what.removesuffix('.')}{words}. {todo}", **facts)
        self.what, self.todo, self.transient, self.detail = what, todo, transient, detail


class JojoKeyReceiptError(JojoKeyFailure):
    """The receipt of earlier attempts forbids to pay: it cannot be read, or another task has the same key."""

    retry = "Airflow does not retry it: a person has to look first."


class JojoKeyBudgetError(JojoKeyFailure):
    """What it would take is more than ``max_tokens`` or ``max_images`` allow: it was not sent."""

    retry = "Airflow does not retry it. Raise the limit and clear the task: only what is missing is paid for."


class JojoKeyBatchError(JojoKeyError):
    """Some items of a batch failed; all that was made is safe in S3."""

    retry = "A retry sends only what is missing: it pays nothing twice."


class JojoKeyBatchFailure(JojoKeyBatchError, AirflowFailException):
    """Some items of a batch failed, and a retry would help none of them."""

    retry = (
        "Airflow does not retry it: these items would fail again. Put right what they complain of and clear the "
        "task: only what is missing is sent and paid for."
    )


_CLASS_OF_KIND: dict[Kind, type[JojoKeyError]] = {
    Kind.REQUEST: JojoKeyRequestError,
    Kind.TOKEN: JojoKeyTokenError,
    Kind.ACCESS: JojoKeyAccessError,
    Kind.EDGE_BLOCKED: JojoKeyEdgeBlockedError,
    Kind.QUOTA: JojoKeyQuotaError,
    Kind.CONTENT: JojoKeyContentError,
    Kind.BASE_URL: JojoKeyBaseUrlError,
    Kind.TLS: JojoKeyTLSError,
    Kind.RATE_LIMIT: JojoKeyRateLimitError,
    Kind.NO_CHANNEL: JojoKeyNoChannelError,
    Kind.OVERLOADED: JojoKeyOverloadedError,
    Kind.UNREACHABLE: JojoKeyUnreachableError,
    Kind.UNKNOWN_OUTCOME: JojoKeyUnknownOutcomeError,
    Kind.REPLY: JojoKeyReplyError,
}
