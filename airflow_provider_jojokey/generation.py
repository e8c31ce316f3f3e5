"""The way of one image, from a checked request to objects in S3, paid for once.

Operators, and whatever else pays for images, go this way and no other: :func:`generate_images`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.delivery import Delivery, close
from airflow_provider_jojokey.exceptions import (
    JojoKeyAlreadyBilledError,
    JojoKeyError,
    JojoKeyReceiptError,
    JojoKeyReplyError,
    JojoKeyStoreError,
    JojoKeyUnknownOutcomeError,
)
from airflow_provider_jojokey.img2.estimate import times_longer
from airflow_provider_jojokey.inquiry import OUTCOMES, START_WITHIN, Inquiry, when
from airflow_provider_jojokey.store import spool as spools
from airflow_provider_jojokey.store.receipts import Attempt, Outcome, Receipt, Step, decide, total_usage
from airflow_provider_jojokey.store.spool import Spool
from airflow_provider_jojokey.telemetry import Observer, observe

if TYPE_CHECKING:
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.img2.client import Generation
    from airflow_provider_jojokey.order import Order
    from airflow_provider_jojokey.settings import Settings
    from airflow_provider_jojokey.store.s3 import ImageStore

MANIFEST_VERSION = 1
POLL = 2.0
"""Seconds between two looks at an attempt that another process makes."""
LEASE_MARGIN = 60.0

log = logging.getLogger(__name__)


def generate_images(
    order: Order,
    *,
    jojokey: JojoKeyHook,
    store: ImageStore,
    settings: Settings,
    reserve: Callable[[Receipt], None] | None = None,
) -> dict[str, Any]:
    """Return the manifest of images that are in S3 and were paid for once.

    :param order: what is wanted
    :param jojokey: who draws
    :param store: who keeps
    :param settings: the worker's
    :param reserve: sets aside what an order takes whose receipt says that it must be paid for; or raises
    :raises JojoKeyError: if there are no images; its ``billed`` and its message tell whether this cost money
    """
    with observe(order) as observer:
        till = _Till(order, jojokey, store, settings, observer)
        attempt, paid = till.claim(reserve)  # an intent is in S3 now, or somebody has paid before
        if paid is not None:
            observer.reused(len(paid.images))
            _log_reuse(paid)
            return till.manifest(paid, reused=True)
        try:
            spool = till.open_spool(attempt)
            try:
                generation = observer.generate(jojokey, order, spool.open)  # the one paid request
            except JojoKeyError as error:
                generation = till.give_up(attempt, error)  # raises, unless all images had arrived anyway
            till.keep(generation, spool)
            return till.complete(attempt, generation)
        finally:
            till.release(attempt)


class _Till:
    """The steps around the paid request: what was paid before, what came of it, what is written down."""

    def __init__(
        self,
        order: Order,
        jojokey: JojoKeyHook,
        store: ImageStore,
        settings: Settings,
        observer: Observer | None = None,
    ) -> None:
        from airflow_provider_jojokey.store.ledger import Ledger

        self.order = order
        self.observer = observer or Observer()
        self.jojokey = jojokey
        self.store = store
        self.settings = settings
        self.host = jojokey.client.base_url  # needs a token: without one, nothing else is tried
        self.fingerprint = order.request.fingerprint(self.host)
        self.ledger = Ledger(store, order.destination)
        self.inquiry = Inquiry(order, jojokey, settings)
        self.delivery = Delivery(order, store, settings, jojokey.stopping, self.observer)
        self.receipt: Receipt
        try:
            self.spool_id = spools.prepare(settings.spool_directory)
        except OSError as error:
            raise _spool_error(settings.spool_directory, error) from None

    # Before money is spent

    def claim(self, reserve: Callable[[Receipt], None] | None = None) -> tuple[Attempt, Attempt | None]:
        """Return a new attempt that may pay; or, beside it, the complete one that makes it needless.

        :param reserve: called before an attempt may pay
        :raises JojoKeyError: if nothing may be paid
        """
        try:
            return self._claim(reserve)
        except JojoKeyStoreError as error:
            if error.billed != "no":
                raise
            raise error.retold(f"{error.message} Nothing was sent or billed by this attempt.") from None

    def _claim(self, reserve: Callable[[Receipt], None] | None) -> tuple[Attempt, Attempt | None]:
        from airflow_provider_jojokey.store.ledger import begin, may_be_alive, new_attempt

        spools.clean_now_and_then(self.settings.spool_directory, self.settings.spool_max_age)
        regenerate: str | None = None
        reserved: Receipt | None = None
        waiting = False
        while True:
            self.receipt = self.ledger.read()
            alive = {
                one.id: may_be_alive(one) for one in self.receipt.attempts if one.outcome is Outcome.OPEN
            }
            decision = decide(self.receipt, self.order.owner, self.fingerprint, self.order.reuse, alive)
            earlier = decision.attempt
            attempt = new_attempt(self.fingerprint, self.order.owner, self._lease(), self.spool_id)
            if earlier is not None:
                if decision.step is Step.CONFLICT:
                    raise self._conflict(earlier)
                if decision.step is Step.WAIT:
                    self._wait_for(earlier, first=not waiting)
                    waiting = True
                    continue
                if decision.step is Step.REUSE and self._is_still_there(earlier):
                    self.spool_of(earlier).discard()  # its process may have died before it came to that
                    return attempt, earlier
                if decision.step is Step.SETTLE and earlier.id != regenerate:
                    if self._settle(earlier):
                        regenerate = earlier.id
                    continue
            if reserve is not None and self.receipt != reserved:
                reserve(self.receipt)
                reserved = self.receipt
                continue  # that took a while, and a claim must follow at once on its look at the receipt
            begin(attempt)
            claimed = False
            try:
                receipt = self.receipt.with_attempt(attempt, self.host, self.order.request.body())
                if claimed := self.ledger.claim(receipt, attempt):
                    self.receipt = receipt
                    return attempt, None
            finally:
                if not claimed:
                    self.release(attempt)

    def release(self, attempt: Attempt) -> None:
        """Tell others in this process that ``attempt`` is no longer under way."""
        from airflow_provider_jojokey.store.ledger import end

        end(attempt)

    def open_spool(self, attempt: Attempt) -> Spool:
        """Return the attempt's spool, made now.

        :raises JojoKeyStoreError: if it cannot be made, or it is too late to send; nothing is sent then
        """
        spool = self.spool_of(attempt)
        taken = _now() - attempt.started_at.timestamp()
        try:
            if taken > START_WITHIN:
                raise JojoKeyStoreError(
                    f"It took {taken:.0f} s to write {self.ledger.uri}: too long to be sure that nobody else "
                    "pays for the same images meanwhile. Nothing was sent or billed by this attempt.",
                    passing=True,
                )
            spool.create()
            if (short := spool.lacks_room(self.order.request)) is not None:
                raise JojoKeyStoreError(
                    f"The disk of the spool {self.settings.spool_directory} is nearly full: {short}. Nothing was "
                    "sent or billed by this attempt. Make room, or set [jojokey] spool_directory to a larger disk.",
                    passing=True,
                )
        except (OSError, JojoKeyStoreError) as error:
            self.receipt = self.ledger.record(
                replace(attempt, outcome=Outcome.NOT_BILLED, billed="no", ended_at=_utcnow())
            )
            raise (_spool_error(spool.folder, error) if isinstance(error, OSError) else error) from None
        return spool

    def keep(self, generation: Generation, spool: Spool) -> None:
        """Write down on disk that the whole reply has arrived. A full disk keeps no image from S3."""
        try:
            spool.keep(generation)
        except OSError as error:
            log.warning("The spool %s cannot be written: %s.", spool.folder, error.strerror)

    def _lease(self) -> float:
        settings = self.jojokey.settings
        # A stream, or a reply that trickles in, may take longer than any silence in it.
        answering = settings.read_timeout * times_longer(self.order.request)
        return settings.connect_timeout + settings.max_resend_wait + answering + LEASE_MARGIN

    def _conflict(self, other: Attempt) -> JojoKeyError:
        mapped = f"[{other.owner.map_index}]" if other.owner.map_index >= 0 else ""
        return JojoKeyReceiptError(
            f"The task {other.owner.task_id}{mapped} of the same Dag run already writes to "
            f"{self.order.destination.uri(self.order.destination.key)}: one of the two images would be paid for "
            "and lost. Nothing was sent or billed by this task. Give each task a key of its own, "
            "with {{ task.task_id }} or {{ ti.map_index }} in s3_key, for example."
        )

    def _wait_for(self, other: Attempt, first: bool) -> None:
        if first:
            log.info(
                "These images are being made by another process (%s, process %d) since %s: waiting for it.",
                other.worker.host,
                other.worker.pid,
                other.started_at.isoformat(timespec="seconds"),
            )
        if self.jojokey.stopping.wait(POLL):
            raise JojoKeyError("The task was killed while it waited for another attempt. Nothing was sent.")

    def _is_still_there(self, earlier: Attempt) -> bool:
        """Tell whether a complete attempt's images are in S3 as they were stored.

        :raises JojoKeyReceiptError: if not, and this very Dag run has paid for them
        """
        index = self.receipt.attempts.index(earlier)
        keys = {image["key"] for image in earlier.images}
        later = [
            one for one in self.receipt.attempts[index + 1 :] for image in one.images if image["key"] in keys
        ]
        gone = "another Dag run has overwritten it" if later else ""
        for image in earlier.images:
            gone = gone or (
                ""
                if self.store.size_of(image["bucket"], image["key"]) == image["bytes"]
                else f"{image['uri']} is missing or has changed"
            )
        if not gone:
            return True
        if not earlier.owner.is_task_of(self.order.owner):
            return False
        raise JojoKeyReceiptError(
            f"This Dag run has paid for its image, but {gone}. Nothing was sent or billed by this attempt. "
            "Restore the object, or clear the task with reuse='never' to pay for a new image. "
            "A date or run id in s3_key keeps runs from overwriting each other."
        )

    # An earlier attempt that was, or may have been, billed and gave nothing

    def _settle(self, earlier: Attempt) -> bool:
        """Write down what has become of an earlier attempt, storing what it left on this host.

        :return: whether to pay although it was, or may have been, billed and gave nothing; else what the
            receipt says now decides
        :raises JojoKeyUnknownOutcomeError: if paying might be paying twice, and nobody said that this is fine
        """
        spool = self.spool_of(earlier)
        generation = spool.whole_reply() or self._all_images(earlier, spool)
        if generation is not None:
            log.info("The images of an earlier attempt had arrived and wait on this host: storing them.")
            self.complete(earlier, generation, instead_of=earlier)
            return False
        settled, final = self.delivery.salvage(earlier, spool), True
        if self._never_sent(earlier, spool):
            settled = replace(
                earlier, outcome=Outcome.NOT_BILLED, billed="no", note="it died before it sent anything"
            )
        elif settled.outcome is not Outcome.BILLED:
            settled, final = self.inquiry.ask(settled, self.receipt)
        else:
            settled = self.inquiry.with_logged_usage(settled, self.receipt)
        if settled != earlier:
            self.receipt = self.ledger.record(settled, instead_of=earlier)
            if self.receipt.attempt(earlier.id) != settled:
                return False  # it was not dead but has ended meanwhile, or another process has settled it
            self._tell_what_was_billed(settled, earlier)
        if final:
            spool.discard()
        if settled.outcome is Outcome.NOT_BILLED:
            log.info("The attempt of %s was not billed: %s.", when(settled), settled.note)
            return False
        if self.order.may_pay_again:
            log.warning("%s Paying again, as %s.", self.inquiry.story(settled), self._permission())
            return True
        kind = JojoKeyAlreadyBilledError if final else JojoKeyUnknownOutcomeError
        raise self._with_usage(
            kind(
                self.inquiry.story(settled),
                billed=settled.billed,  # type: ignore[arg-type]
                request_id=settled.request_id,
                cf_ray=settled.cf_ray,
                retry_after=None if final else self.inquiry.wait(settled),
            )
        )

    def _never_sent(self, attempt: Attempt, spool: Spool) -> bool:
        """Tell whether a dead attempt surely died before it sent anything: its spool was not made yet.

        A spool is deleted once the receipt is up to date, and when it is very old.
        """
        age = _now() - attempt.started_at.timestamp()
        return (
            attempt.outcome is Outcome.OPEN
            and attempt.worker.spool == self.spool_id
            and age < min(self.settings.spool_max_age, spools.MAX_AGE)
            and not spool.exists
        )

    def _all_images(self, attempt: Attempt, spool: Spool) -> Generation | None:
        """Return what had arrived if that is all that was asked for, though the reply's end is missing."""
        images = spool.whole_images()
        if len(images) < self.order.request.n:
            close(*images)
            return None
        from airflow_provider_jojokey.img2.client import Generation

        request = self.order.request
        asked, _ = self.inquiry.ask(attempt, self.receipt)
        return Generation(
            images=images[: request.n],
            usage=attempt.usage or asked.usage,
            created=None,
            model=request.model,
            size=request.size,
            quality=request.quality,
            request_id=attempt.request_id or asked.request_id,
            seconds=0.0,
        )

    def _permission(self) -> str:
        return (
            "on_unknown_outcome='regenerate' says"
            if self.order.on_unknown_outcome == "regenerate"
            else "reuse='never' says"
        )

    def _look_again(self) -> None:
        """Ask once more about attempts that were paid over with their outcome unknown: the bill should add up.

        The gateway's log may have been silent because the model was still at work. Nothing depends on it now.
        """
        for earlier in self.receipt.attempts:
            if earlier.outcome is Outcome.UNKNOWN and earlier.owner.is_task_of(self.order.owner):
                asked, _ = self.inquiry.ask(earlier, self.receipt)
                if asked.outcome is Outcome.UNKNOWN:
                    continue
                try:
                    self.receipt = self.ledger.record(asked, instead_of=earlier)
                    self._tell_what_was_billed(asked, earlier)
                except JojoKeyError as error:
                    log.warning(
                        "The images are safe; the receipt of an earlier attempt is not: %s", error.message
                    )

    # After the paid request

    def complete(
        self, attempt: Attempt, generation: Generation, *, instead_of: Attempt | None = None
    ) -> dict[str, Any]:
        """Store the images, then the receipt; return the manifest.

        An outage of S3 is waited out. What S3 has not confirmed stays in the spool.

        :param instead_of: what the receipt says of the attempt, where it is not this process's own
        """
        spool = self.spool_of(attempt)
        if (missing := self.order.request.n - len(generation.images)) > 0:
            log.warning("%d of %d images are missing in the reply.", missing, self.order.request.n)
        try:
            images = self.delivery.images(generation.images, attempt, generation)
            done = replace(
                attempt,
                outcome=Outcome.COMPLETE,
                ended_at=_utcnow(),
                billed="yes",
                usage=generation.usage,
                images=images,
                model=generation.model,
                size=generation.size,
                quality=generation.quality,
                created=generation.created,
                seconds=round(generation.seconds, 3),
                request_id=generation.request_id,
                error=None,
            )
            self.receipt = self.delivery.patiently(lambda: self.ledger.record(done, instead_of))
            self._tell_what_was_billed(done, attempt)
        except JojoKeyStoreError as error:
            error.usage = total_usage((self.receipt.usage_of(self.order.owner), generation.usage))
            raise error.retold(
                f"{error.message} The images are paid for and safe on this host in {spool.folder}: "
                "a retry on this host stores them without paying again; one on another host does not pay either, "
                "but cannot reach them.",
                billed="yes",
            ) from None
        finally:
            generation.close()
        spool.discard()
        self._look_again()
        _log_result(done)
        if len(images) < self.order.request.n:
            log.warning("%d of %d images came; the gateway says no more.", len(images), self.order.request.n)
        return self.manifest(done, reused=False)

    def give_up(self, attempt: Attempt, error: JojoKeyError) -> Generation:
        """Write down that the paid request failed, and raise; unless all images had arrived all the same.

        :raises JojoKeyError: ``error``, or what has become of it
        """
        spool = self.spool_of(attempt)
        ended = replace(
            attempt,
            outcome=OUTCOMES[error.billed],
            ended_at=_utcnow(),
            billed=error.billed,
            request_id=error.request_id,
            cf_ray=error.cf_ray,
            code=error.code,
            error=type(error).__name__,
        )
        if (generation := self._all_images(ended, spool)) is not None:
            log.warning("%s All its images had arrived, though.", error.message)
            return generation
        try:
            ended = self.delivery.salvage(ended, spool)
            if ended.outcome is Outcome.UNKNOWN:
                ended, final = self.inquiry.ask(ended, self.receipt)
                error = self.inquiry.retold(error, ended, final)
                ended = replace(ended, error=type(error).__name__)
            ended = self.inquiry.with_logged_usage(ended, self.receipt)
            if ended.outcome is Outcome.NOT_BILLED:
                self.receipt = self.ledger.record(ended)
            else:
                self.receipt = self.delivery.patiently(lambda: self.ledger.record(ended))
            self._tell_what_was_billed(ended, attempt)
            spool.discard()
        except JojoKeyStoreError as failure:
            if arrived := spool.whole_images():
                close(*arrived)
                raise self._with_usage(self._unstored(error, failure, len(arrived), spool)) from None
            log.error("The receipt could not be brought up to date: %s", failure.message)
        if ended.images:
            places = ", ".join(image["uri"] for image in ended.images)
            error.message += f" {len(ended.images)} of {self.order.request.n} images had arrived: {places}."
        if ended.preview:
            error.message += f" A preview had arrived and is kept: {ended.preview['uri']}."
        kind = type(error)
        if isinstance(error, JojoKeyReplyError) and self.order.may_pay_again:
            kind = JojoKeyUnknownOutcomeError
        raise self._with_usage(error.retold(error.message, kind))

    def _unstored(
        self, error: JojoKeyError, failure: JojoKeyStoreError, arrived: int, spool: Spool
    ) -> JojoKeyError:
        """Return what to raise where S3 takes neither the images of a broken reply nor the receipt."""
        return error.retold(
            f"{error.message} {arrived} of {self.order.request.n} images had arrived. {failure.message} "
            f"They are safe on this host in {spool.folder}: a retry on this host stores them.",
            JojoKeyStoreError,
            passing=failure.passing,
            billed="yes",
        )

    def _tell_what_was_billed(self, now: Attempt, before: Attempt) -> None:
        if before.usage is None:
            self.observer.billed(now.usage)

    def _with_usage(self, error: JojoKeyError) -> JojoKeyError:
        error.usage = self.receipt.usage_of(self.order.owner)
        error.receipt = self.ledger.uri
        error.images = [
            image
            for attempt in self.receipt.attempts
            if attempt.owner.is_task_of(self.order.owner) and attempt.fingerprint == self.fingerprint
            for image in attempt.images
        ]
        return error

    def spool_of(self, attempt: Attempt) -> Spool:
        """Return the folder where an attempt's images wait."""
        place = self.order.destination.uri(self.order.destination.key)
        return Spool.of(self.settings.spool_directory, place, attempt.id)

    def manifest(self, attempt: Attempt, reused: bool) -> dict[str, Any]:
        """Return what is told of a complete attempt: what the images are, where they lie, what was billed."""
        request = self.order.request
        return {
            "version": MANIFEST_VERSION,
            "images": attempt.images,
            "usage": self.receipt.usage_of(self.order.owner),
            "model": attempt.model or request.model,
            "size": attempt.size or request.size,
            "quality": attempt.quality or request.quality,
            "request_id": attempt.request_id,
            "fingerprint": attempt.fingerprint,
            "created": attempt.created,
            "seconds": attempt.seconds,
            "reused": reused,
            "receipt": self.ledger.uri,
        }


def _spool_error(place: Path, error: OSError) -> JojoKeyStoreError:
    return JojoKeyStoreError(
        f"The spool {place} cannot be used: {error.strerror}. Nothing was sent or billed. "
        "Set [jojokey] spool_directory to a place where this worker may write."
    )


def _now() -> float:
    return _utcnow().timestamp()


def _utcnow() -> datetime:
    return datetime.now(UTC)


def _log_reuse(attempt: Attempt) -> None:
    log.info(
        "Nothing was sent: %s was paid for at %s by %s, run %s.",
        ", ".join(image["uri"] for image in attempt.images),
        when(attempt),
        attempt.owner.dag_id,
        attempt.owner.run_id,
    )


def _log_result(attempt: Attempt) -> None:
    first, *more = attempt.images
    tokens = (attempt.usage or {}).get("total_tokens")
    log.info(
        "%d image%s, %dx%d %s, %s bytes, in %.1f s for %s tokens (request id %s): %s%s",
        len(attempt.images),
        "s" if more else "",
        first["width"],
        first["height"],
        first["content_type"],
        f"{sum(image['bytes'] for image in attempt.images):,}",
        attempt.seconds or 0.0,
        "untold" if tokens is None else f"{tokens:,}",
        attempt.request_id or "unknown",
        first["uri"],
        f" and {len(more)} more" if more else "",
    )
