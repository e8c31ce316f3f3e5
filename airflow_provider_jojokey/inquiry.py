"""What became of an attempt whose answer was lost: the gateway's log is asked, and the answer put in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from airflow_provider_jojokey.exceptions import (
    JojoKeyAlreadyBilledError,
    JojoKeyError,
    JojoKeyUnknownOutcomeError,
)
from airflow_provider_jojokey.img2.estimate import times_longer
from airflow_provider_jojokey.store.receipts import Attempt, Outcome, Receipt

if TYPE_CHECKING:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.order import Order
    from airflow_provider_jojokey.settings import Settings

START_WITHIN = 30.0
"""Seconds after its intent at which an attempt no longer sends: by then others may take it for dead."""

OUTCOMES: Mapping[str, Outcome] = {
    "yes": Outcome.BILLED,
    "no": Outcome.NOT_BILLED,
    "unknown": Outcome.UNKNOWN,
}
"""What an attempt without its images has come to, by whether it was billed."""


class Inquiry:
    """Asks about attempts at one order.

    :param order: what is wanted
    :param jojokey: whom to ask
    :param settings: the worker's
    """

    def __init__(self, order: Order, jojokey: JojoKeyHook, settings: Settings) -> None:
        self._order = order
        self._jojokey = jojokey
        self._settings = settings

    def ask(self, attempt: Attempt, receipt: Receipt) -> tuple[Attempt, bool]:
        """Return the attempt with what the gateway's log says of it, and whether asking later is in vain.

        :param receipt: tells which requests in the log belong to other attempts
        """
        from airflow_provider_jojokey.img2.billing import was_billed
        from airflow_provider_jojokey.img2.errors import ADVICE, Img2Error

        ended_at = attempt.ended_at or datetime.now(UTC)
        try:
            rows, skew = self._jojokey.client.billing_log()
        except Img2Error as error:
            why = f"the gateway's log cannot be asked: {error.summary}"
            unknown = replace(attempt, outcome=Outcome.UNKNOWN, ended_at=ended_at, note=why)
            return unknown, not ADVICE[error.kind].passing
        sent_at = attempt.started_at.timestamp() + skew
        verdict = was_billed(
            rows,
            model=self._order.request.model,
            sent_at=sent_at,
            sent_by=self.sent_by(attempt) + skew,
            now=datetime.now(UTC).timestamp() + skew,
            finished_by=self.finished_by(attempt) + skew,
            lost_at=attempt.ended_at.timestamp() + skew if attempt.ended_at else None,
            others=[
                *self._jojokey.known_requests,
                *(one.request_id for one in receipt.attempts if one.id != attempt.id),
            ],
            request_id=attempt.request_id,
        )
        asked = replace(
            attempt,
            outcome=OUTCOMES[verdict.billed],
            billed=verdict.billed,
            ended_at=ended_at,
            request_id=attempt.request_id or verdict.request_id,
            usage=attempt.usage or verdict.usage,
            note=verdict.why,
        )
        return asked, verdict.final

    def with_logged_usage(self, attempt: Attempt, receipt: Receipt) -> Attempt:
        """Return the attempt with what it cost, where that is certain, its reply told none, and the log does."""
        if attempt.outcome is not Outcome.BILLED or attempt.usage is not None:
            return attempt
        asked, _ = self.ask(attempt, receipt)
        if asked.billed != "yes":
            return attempt
        return replace(attempt, usage=asked.usage, request_id=asked.request_id)

    def sent_by(self, attempt: Attempt) -> float:
        """Return when the attempt's paid request was sent at the latest, in seconds since 1970."""
        settings = self._jojokey.settings
        connecting = settings.connect_timeout * (1 + settings.max_resends)
        resending = settings.max_resend_wait if settings.max_resends else 0.0
        latest = attempt.started_at.timestamp() + START_WITHIN + connecting + resending
        return min(latest, attempt.ended_at.timestamp()) if attempt.ended_at else latest

    def finished_by(self, attempt: Attempt) -> float:
        """Return when the model must have finished: only after it does the lack of a row in the log mean anything."""
        longest = self._settings.longest_generation * times_longer(self._order.request)
        return self.sent_by(attempt) + longest

    def wait(self, attempt: Attempt) -> float:
        """Return the seconds after which asking again may help."""
        return max(0.0, self.finished_by(attempt) - datetime.now(UTC).timestamp())

    def story(self, attempt: Attempt) -> str:
        """Return what is known of an attempt that gave nothing, for people."""
        billed = {"yes": "was billed", "unknown": "may have been billed"}.get(
            attempt.billed, "was not billed"
        )
        arrived = "no image arrived"
        if attempt.images:
            places = ", ".join(image["uri"] for image in attempt.images)
            arrived = f"{len(attempt.images)} of {self._order.request.n} images arrived: {places}"
        marks = [f"request id {attempt.request_id}"] if attempt.request_id else []
        marks += [f"cf-ray {attempt.cf_ray}"] if attempt.cf_ray else []
        known = f" ({', '.join(marks)})" if marks else ""
        why = f"; {attempt.note}" if attempt.note else ""
        return (
            f"The attempt of {when(attempt)}{known} {billed}, and {arrived}{why}. Nothing was sent by this attempt. "
            "JojoKey's support can look it up by its time and id."
        )

    def retold(self, error: JojoKeyError, asked: Attempt, final: bool) -> JojoKeyError:
        """Return what to raise instead of ``error``, now that the log was asked.

        What was refused inside a reply of success, and not billed, is refused: it would be again.
        """
        unknown = "Whether it was billed is not known"
        known = {"yes": "It was billed", "no": "Nothing was billed"}.get(asked.billed, unknown)
        kind: type[JojoKeyError] = JojoKeyUnknownOutcomeError
        if final and asked.billed == "no":
            kind = type(error)
        elif final and not self._order.may_pay_again:
            kind = JojoKeyAlreadyBilledError
        return error.retold(
            error.message.replace(f"{unknown}.", f"{known}: {asked.note}."),
            kind,
            billed=asked.billed,
            request_id=asked.request_id,
            # When Cloudflare would have it tried again is no matter: it knows nothing of money.
            retry_after=None if final else self.wait(asked),
        )


def when(attempt: Attempt) -> str:
    """Return when an attempt began, for people."""
    return attempt.started_at.isoformat(timespec="seconds")
