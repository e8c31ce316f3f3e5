"""The exceptions of this provider.

Each kind of error has its own class, so callbacks and retry policies can distinguish them. Classes that also
derive from :class:`AirflowFailException` fail the task immediately, regardless of its ``retries``.

An error is data. :func:`render` is the only place that turns it into text, in a fixed order: what
happened, whether you were charged, what was kept, what to do, what a retry does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_jojokey.img2.errors import Billed, Img2Error, Kind, describe


class JojoKeyError(AirflowException):
    """The task failed to generate or store images.

    :param what: what happened, as sentences; :func:`render` adds charges and retries
    :param todo: what to do about it
    :param billed: whether the request was billed: ``"no"``, ``"yes"`` or ``"unknown"``
    :param sent: whether this attempt sent a paid request
    :param reason: why ``billed`` has its value, without a full stop
    :param detail: the message of the gateway or of S3, redacted
    :param status_code: the HTTP status of the response, if there was one
    :param code: the response's ``error.code``, or Cloudflare's error number
    :param request_id: the gateway's request ID
    :param cf_ray: Cloudflare's ray ID
    :param retry_after: seconds after which a retry is useful, if known
    :param awaits_log: whether ``retry_after`` is the time until the gateway log shows whether the request was
        billed; otherwise the gateway requested it
    """

    retry: str = "A retry is safe: it does not pay twice."
    """What a retry does: the last sentence of the text."""
    retry_if: ClassVar[Mapping[str, str]] = {
        "never": "A retry sends a new request and pays for it, because of reuse='never'.",
        "regenerate": "A retry first looks for the images at no cost. Without them, it sends a new request and pays "
        "for it, even if an earlier one was billed, because of on_unknown_outcome='regenerate'.",
    }
    """The same if :attr:`pays_again` is one of these."""

    def __init__(
        self,
        what: str = "",
        todo: str = "",
        *,
        billed: Billed = "no",
        sent: bool = False,
        reason: str = "",
        detail: str = "",
        status_code: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        cf_ray: str | None = None,
        retry_after: float | None = None,
        awaits_log: bool = False,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.todo = todo
        self.billed: Billed = billed
        self.sent = sent
        self.reason = reason
        self.detail = detail
        self.status_code = status_code  # type: ignore[assignment]
        self.code = code
        self.request_id = request_id
        self.cf_ray = cf_ray
        self.retry_after = retry_after
        self.awaits_log = awaits_log
        self.usage: dict[str, Any] | None = None
        """Tokens billed to the task in its Dag run so far, if known."""
        self.cost: dict[str, Any] | None = None
        """What the task has cost in its Dag run so far, as in the manifest, if known."""
        self.images: list[dict[str, Any]] | None = None
        """Images that were received despite the error and are in S3, as in the manifest."""
        self.missing: list[str] = []
        """URIs of images that were stored but are no longer in S3."""
        self.requested: int | None = None
        """Number of images that were requested."""
        self.kept: list[str] = []
        """URIs of other data that was kept in S3: a preview, links, files of unknown type."""
        self.spool: str | None = None
        """Folder on this host where paid images wait for S3."""
        self.receipt: str | None = None
        """``s3://`` URI of the receipt, once it exists."""
        self.pays_again: str = ""
        """The task's setting with which a retry may pay although an earlier request was billed: ``"never"``,
        ``"regenerate"``, or nothing."""

    @property
    def message(self) -> str:
        """The text without its last sentence, which says what a retry does."""
        return render(self)

    @property
    def what_happened(self) -> str:
        """The first sentence of the text: for messages about other requests, which may have been billed."""
        return _what(self)

    def __str__(self) -> str:
        return f"{self.message} {self.retry_sentence}".strip()

    @property
    def retry_sentence(self) -> str:
        """What a retry does, with the settings of the task: the last sentence of the text."""
        return self.retry_if.get(self.pays_again, self.retry)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(vars(self)))  # the default loses keyword arguments

    def changed(self, kind: type[JojoKeyError] | None = None, **facts: Any) -> JojoKeyError:
        """Return a copy with other facts.

        :param kind: the class of the copy; by default the class of this error
        :param facts: attributes to replace
        """
        return _rebuild(kind or type(self), {**vars(self), **facts})

    def to_json(self) -> dict[str, Any]:
        """Return everything another process needs to raise the same error."""
        facts = {**vars(self), "what": str(self.what), "todo": str(self.todo)}  # no subclasses of str
        return {"class": type(self).__name__, **facts}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> JojoKeyError:
        """Return the error that :meth:`to_json` describes."""
        facts = dict(values)
        known = {cls.__name__: cls for cls in _all_classes(JojoKeyError)}
        return _rebuild(known.get(facts.pop("class", ""), JojoKeyError), facts)

    @classmethod
    def of(cls, error: Img2Error) -> JojoKeyError:
        """Return the exception for an error of the API."""
        exception = _CLASS_OF_KIND[error.kind](
            f"{error.summary}.",
            error.advice,
            billed=error.billed,
            sent=True,
            detail=error.detail,
            status_code=error.status_code,
            code=error.code,
            request_id=error.request_id,
            cf_ray=error.cf_ray,
            retry_after=error.retry_after,
        )
        exception.usage = getattr(error, "usage", None)
        return exception


def render(error: JojoKeyError) -> str:
    """Return the text of an error: what happened, charges, what was kept, what to do."""
    parts = [_what(error), _charge(error)]
    if error.images:
        count = f"{len(error.images)} of {error.requested}" if error.requested else f"{len(error.images)}"
        uris = ", ".join(image["uri"] for image in error.images)
        parts.append(f"{count} images were received and stored: {uris}.")
    if error.kept:
        parts.append(f"Also kept: {', '.join(error.kept)}.")
    if error.spool:
        parts.append(
            f"The received images are safe on this host in {error.spool}. {_SPOOL[error.pays_again]}"
        )
    return " ".join(part for part in (*parts, error.todo) if part)


_HERE = "A retry on this host stores them without paying again."
_SPOOL = {
    "": f"{_HERE} A retry on another host can't reach them, but doesn't pay again either.",
    "regenerate": f"{_HERE} A retry on another host can't reach them, and pays for new ones, because of "
    "on_unknown_outcome='regenerate'.",
    "never": "A retry on this host stores them. Because of reuse='never', it also pays for new ones; with reuse='run', "
    "it would not.",
}
"""What a retry does with images in the spool, by :attr:`JojoKeyError.pays_again`."""


def _what(error: JojoKeyError) -> str:
    return describe(error.what, error) if error.what else ""


def _charge(error: JojoKeyError) -> str:
    if error.billed == "no":
        text = "Nothing was billed" if error.sent else "Nothing was sent or billed"
    else:
        text = "You were charged" if error.billed == "yes" else "You may have been charged"
    reason = f": {error.reason}" if error.reason else ""
    earlier = " This attempt sent nothing." if error.billed != "no" and not error.sent else ""
    return f"{text}{reason}.{earlier}"


def _rebuild(cls: type[JojoKeyError], facts: Mapping[str, Any]) -> JojoKeyError:
    error = cls(facts.get("what", ""))
    vars(error).update(facts)
    return error


def _all_classes(cls: type[JojoKeyError]) -> list[type[JojoKeyError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _all_classes(child))]


class JojoKeyFailure(JojoKeyError, AirflowFailException):
    """A failure that a retry cannot fix: the task fails immediately."""

    retry = "Airflow does not retry the task: a retry would end the same way."
    retry_if: ClassVar[Mapping[str, str]] = {}


class JojoKeyConnectionError(JojoKeyFailure):
    """The Airflow connection lacks a value or has one that cannot be used."""


class JojoKeyRequestError(JojoKeyFailure, ValueError):
    """The request breaks a rule of the API."""


class JojoKeyTokenError(JojoKeyFailure):
    """The token is invalid, disabled, expired or exhausted (401)."""


class JojoKeyAccessError(JojoKeyFailure):
    """The token may not use this model, group or address (403)."""


class JojoKeyEdgeBlockedError(JojoKeyFailure):
    """The network edge blocked this machine before the gateway received the request."""


class JojoKeyQuotaError(JojoKeyFailure):
    """The account's balance or the token's quota is too low."""


class JojoKeyContentError(JojoKeyFailure):
    """The content filter rejected the prompt. Some rejections cost a fee: then ``billed`` is ``"yes"``."""


class JojoKeyBaseUrlError(JojoKeyFailure):
    """The connection's host does not serve the image API (404, a web page, a redirect)."""


class JojoKeyTLSError(JojoKeyFailure):
    """TLS failed before anything was sent."""


_RETRIED = "A retry sends the request again."


class JojoKeyRateLimitError(JojoKeyError):
    """Too many requests (429)."""

    retry = _RETRIED


class JojoKeyNoChannelError(JojoKeyError):
    """No channel serves the model in the token's group at the moment (503)."""

    retry = _RETRIED


class JojoKeyOverloadedError(JojoKeyError):
    """The gateway or the model behind it is overloaded or failing; the gateway refunded the request."""

    retry = _RETRIED


class JojoKeyUnreachableError(JojoKeyError):
    """No connection to the gateway."""

    retry = _RETRIED


class JojoKeyUnknownOutcomeError(JojoKeyError):
    """The request was sent, its response was lost, and it may have been billed."""

    retry = (
        "A retry first looks for evidence at no cost. It pays again only with proof that nothing was billed, "
        "or with on_unknown_outcome='regenerate'."
    )


class JojoKeyAlreadyBilledError(JojoKeyUnknownOutcomeError, AirflowFailException):
    """An earlier attempt was or may have been billed without images. A person must decide whether to pay again."""

    retry = (
        "Airflow does not retry the task. To pay for a new image, clear the task with "
        "on_unknown_outcome='regenerate' or reuse='never'. If JojoKey support confirms that nothing was billed, "
        "record it with `airflow jojokey resolve`."
    )
    retry_if: ClassVar[Mapping[str, str]] = {}


class JojoKeyReplyError(JojoKeyFailure):
    """The gateway reported success, and billed it, but the response has no usable image."""

    retry = (
        "Airflow does not retry the task, which would pay a second time. To pay for a new image, clear the task "
        "with on_unknown_outcome='regenerate' or reuse='never'."
    )


class JojoKeyStoreError(JojoKeyError):
    """S3 rejected a request or could not be reached, or the spool directory cannot be used.

    :param transient: whether the same request may succeed later without any change
    """

    def __init__(self, what: str = "", todo: str = "", *, transient: bool = False, **facts: Any) -> None:
        super().__init__(what, todo, **facts)
        self.transient = transient


class JojoKeyReceiptError(JojoKeyFailure):
    """The receipt prevents payment: it is unreadable, another task uses the key, or a paid image is missing."""

    retry = "Airflow does not retry the task: a person has to look first."


class JojoKeyBudgetError(JojoKeyFailure):
    """The request would exceed a limit of the task or of the Dag run, such as ``max_cost``, and was not sent."""

    retry = "Airflow does not retry the task. After you clear it, only missing images are paid for."
    retry_if: ClassVar[Mapping[str, str]] = {
        "never": "Airflow does not retry the task. After you clear it, it pays for new images, because of "
        "reuse='never'."
    }


class JojoKeyBatchError(JojoKeyError):
    """Some items of a batch failed. Images that were received are in S3, or wait in the folder ``spool``."""

    retry = "A retry sends only what is missing: it does not pay twice."
    retry_if: ClassVar[Mapping[str, str]] = {
        "never": "A retry sends what is missing, and pays again for all items with reuse='never'.",
        "regenerate": "A retry sends only what is missing, and pays for it, even if an earlier request was billed, "
        "because of on_unknown_outcome='regenerate'.",
    }


class JojoKeyBatchFailure(JojoKeyBatchError, AirflowFailException):
    """Some items of a batch failed, and a retry would not help any of them."""

    retry = (
        "Airflow does not retry the task: these items would fail again. Fix their causes and clear the task: "
        "only what is missing is sent and paid for."
    )
    retry_if: ClassVar[Mapping[str, str]] = {
        "never": "Airflow does not retry the task: these items would fail again. Fix their causes and clear the task: "
        "it sends what is missing, and pays again for all items with reuse='never'."
    }


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
