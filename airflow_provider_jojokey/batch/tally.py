"""Counts and sums over the items of a batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException
from msgspec import Struct, field
from msgspec.structs import replace

from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.exceptions import JojoKeyBatchError, JojoKeyBatchFailure, JojoKeyError
from airflow_provider_jojokey.payments.receipt import total_usage
from airflow_provider_jojokey.results import MAX_LISTED, shortened
from airflow_provider_jojokey.store.keys import split_uri

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.errors import Billed
    from airflow_provider_jojokey.payments.job import ImageJob

MAX_KEYS = 100
"""Maximum number of images for which a batch pushes ``keys``. The manifest lists more."""
MAX_CAUSES = 6
"""Maximum number of causes in an error's text."""
MAX_PLACE, MAX_CAUSE = 200, 300
"""Maximum number of characters of a cause's URI and message in an error's text."""
LEAST_OF_CAUSE, ALL_CAUSES = 200, 1_350
"""Characters of a cause in an error's text, and of all causes, the manifest's URI and why the batch ended early."""
SPOOL_SENTENCES = 250
"""Characters of the sentences about the spool, without its path."""


class Unsettled(Struct, frozen=True):
    """An item that was or may have been billed and whose usage or cost may be unknown.

    :param images: number of paid images
    :param error: the error, if the item failed
    """

    index: int
    job: ImageJob
    images: int
    error: JojoKeyError | None = None


class Cause(Struct):
    """One class of errors among the failed items with the same ``billed``.

    :param index: the first item that failed with it
    :param place: that item's ``s3://`` URI
    :param message: the error's message
    """

    index: int
    place: str
    message: str
    count: int = 0


class Tally(Struct):
    """Counts and sums over a batch's items.

    :param total: number of items
    """

    total: int
    made: int = 0
    reused: int = 0
    failed: int = 0
    partial: int = 0
    """Number of failed items that have some of their images."""
    waiting: int = 0
    """Number of failed items whose received images wait in the spool."""
    spool: str | None = None
    """Folder on this host in which all of them wait."""
    pays_again: str = ""
    """The setting with which a retry may pay for an item again: see :attr:`JojoKeyError.pays_again`."""
    unrecorded: int = 0
    """Number of failed items whose response, if there was one, could not be recorded in time."""
    retryable: int = 0
    images: int = 0
    paid: bool = False
    """Whether anything was billed."""
    unknown_outcomes: int = 0
    """Number of items for which it is unknown whether they were billed."""
    earlier_unknown: bool = False
    """Whether earlier tries may have been billed for items that this one has not started, or whose receipts it can't
    read. The sum is then unknown."""
    without_cost: int = 0
    """Number of paid images whose cost is unknown."""
    usage: dict[str, Any] = field(default_factory=lambda: total_usage(()))
    cost: Costs = field(default_factory=Costs)
    retry_after: float | None = None
    awaits_log: bool = False
    causes: dict[tuple[str, str], Cause] = field(default_factory=dict)
    """By the exception's class and ``billed``, without the items in :attr:`unproven`."""
    unproven: dict[int, tuple[str, Cause]] = field(default_factory=dict)
    """Failed items for which it is unknown whether they were billed: the exception's class and the cause by number."""
    first: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """The images of the first few items that have any, by the item's number."""
    _uris: dict[int, list[str]] | None = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Number of items that have ended."""
        return self.made + self.reused + self.failed

    @property
    def complete(self) -> bool:
        """Whether all items have all of their images."""
        return self.done == self.total and not self.failed

    @property
    def tokens(self) -> int:
        """Tokens billed to the task in its Dag run."""
        return int(self.usage["total_tokens"])

    @property
    def billed(self) -> Billed:
        """Whether any item was billed."""
        if self.paid or self.tokens or self.cost.charged:
            return "yes"
        return "unknown" if self.unknown_outcomes or self.cost.unknown else "no"

    @property
    def keys(self) -> list[str] | None:
        """The images' keys in the items' order, or ``None`` if there are too many."""
        uris = self.uris
        return None if uris is None else [split_uri(uri)[1] for uri in uris]

    @property
    def uris(self) -> list[str] | None:
        """The images' ``s3://`` URIs in the items' order, or ``None`` if there are too many."""
        if self._uris is None:
            return None
        return [uri for index in sorted(self._uris) for uri in self._uris[index]]

    @property
    def listed(self) -> list[dict[str, Any]]:
        """The first images, in the items' order."""
        return [image for index in sorted(self.first) for image in self.first[index]][:MAX_LISTED]

    def progress(self) -> dict[str, Any]:
        """Return the counts and the cost so far as JSON values, for the UI."""
        names = ("total", "done", "made", "reused", "failed", "images", "tokens")
        return {**{name: getattr(self, name) for name in names}, "cost": self.cost.to_json()}

    def succeed(self, index: int, manifest: Mapping[str, Any]) -> None:
        """Count an item whose images are in S3."""
        if manifest["reused"]:
            self.reused += 1
        else:
            self.made += 1
        # An earlier try may have paid for reused images.
        if not manifest["reused"] or _costs(manifest.get("cost")).unknown:
            self._pay(len(manifest["images"]), manifest.get("cost"))
        self._count(index, manifest["images"], manifest["usage"], manifest.get("cost"))

    def fail(self, index: int, job: ImageJob, error: JojoKeyError) -> None:
        """Count an item that lacks some or all of its images."""
        self.failed += 1
        self.partial += 0 < len(error.images or ()) < job.request.n
        if error.spool:
            self.waiting += 1
            self.spool = os.path.commonpath((self.spool or error.spool, error.spool))
        if not isinstance(error, AirflowFailException):
            self.retryable += 1
            if error.retry_after is not None and error.retry_after >= (self.retry_after or 0.0):
                self.retry_after, self.awaits_log = error.retry_after, error.awaits_log
        self._bill(error.billed, job.request.n, error.cost)
        name = type(error).__name__
        cause = Cause(index, shortened(job.uri, MAX_PLACE), shortened(error.message, MAX_CAUSE), 1)
        if error.billed == "unknown":
            self.unproven[index] = name, cause
        else:
            _add_cause(self.causes, (name, error.billed), cause)
        self._count(index, error.images or [], error.usage, error.cost)

    def prove(self, index: int, job: ImageJob, error: JojoKeyError) -> None:
        """Replace the error of a failed item, because it is known now whether the item was billed.

        An interruption can follow, and then the next call does nothing.
        """
        if (known := self.unproven.pop(index, None)) is None:
            return
        name, _ = known
        _add_cause(self.causes, (type(error).__name__, error.billed), Cause(index, job.uri, error.message, 1))
        self.retryable -= name != type(error).__name__ and isinstance(error, AirflowFailException)

    def not_started(
        self, billed: str, images: int, usage: Mapping[str, Any], cost: Mapping[str, Any] | None
    ) -> None:
        """Count what an item that this try has not started was billed in earlier tries."""
        if billed != "no" or usage or cost:
            self._bill(billed, images, cost)
            self._add(usage, cost)

    def settle(self, item: Unsettled, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Count usage and costs that became known after an item had ended.

        :param before: the manifest's line that was counted
        :param after: the line as it is now
        """
        spent, known = _costs(before["cost"]), _costs(after["cost"])
        self.cost = (self.cost + known).without(spent)
        self.usage = _minus(total_usage((self.usage, after["usage"])), before["usage"])
        if before["billed"] == "unknown":
            self.unknown_outcomes -= after["billed"] != "unknown"
            if after["billed"] == "yes":
                self._pay(item.images, after["cost"])
        elif before["billed"] != "no" and known.amounts and not spent.amounts:
            self.without_cost -= item.images

    def progress_line(self, seconds: float, in_flight: int, pace: str) -> str:
        """Return one line about the counts so far.

        :param seconds: since the start
        :param in_flight: number of requests in flight
        :param pace: the estimated limit of the gateway; empty if none is known
        """
        rate = self.made / max(0.001, seconds)
        left = self.total - self.done
        time_left = f", about {duration(left / rate)} left" if rate and left else ""
        return (
            f"{self.done} of {self.total} done: {self.made} made, {self.reused} reused, {self.failed} failed; "
            f"{in_flight} in flight, {self._tokens}, cost {self.cost}, {60 * rate:.1f} a minute{time_left}"
            f"{f', the gateway accepts {pace}' if pace else ''}"
        )

    def error(self, end: str, manifest: str | None) -> JojoKeyBatchError:
        """Return the error for a batch with failed or missing items.

        :param end: why it ended early, if it did
        :param manifest: the URI of its manifest
        """
        rest = self.total - self.done
        counts = [f"{self.made} made", f"{self.reused} reused", f"{self.failed} failed"]
        counts += [f"{rest} not started"] if rest else []
        spool = len(self.spool) + SPOOL_SENTENCES if self.spool else 0
        listed = "; ".join(self._listed_causes(ALL_CAUSES - len(end) - len(manifest or "") - spool))
        listed += ". " if listed else ""
        cost = f" ({self.cost})" if self.cost.amounts else ""
        spent = f"{self._tokens}{cost} were billed to this task in this Dag run"
        if self.without_cost:
            images = "1 paid image" if self.without_cost == 1 else f"{self.without_cost:,} paid images"
            spent += f", and the cost of {images} is unknown"
        if self.unknown_outcomes:
            items = "1 item was" if self.unknown_outcomes == 1 else f"{self.unknown_outcomes:,} items were"
            spent += f", and it is unknown whether {items} billed"
        again = self.retryable + rest
        kind = JojoKeyBatchError if again else JojoKeyBatchFailure
        missing = self.failed + rest
        todo = f"A retry may help {'all' if again == missing else again} of them." if again else ""
        lack = "items has no images" if missing == 1 else "items have no images"
        if self.partial:
            lack = "items lacks some images" if missing == 1 else "items lack some or all of their images"
        error = kind(
            f"{missing} of {self.total} {lack} ({', '.join(counts)}){end}. {listed}"
            f"{self._whereabouts} in S3{f', listed in {manifest}' if manifest else ''}.",
            todo,
            reason=spent,
            retry_after=self.retry_after,
            awaits_log=self.awaits_log,
            billed=self.billed,
            sent=True,
        )
        error.spool, error.pays_again = self.spool, self.pays_again
        if not self.earlier_unknown:
            error.usage, error.cost = self.usage, self.cost.to_json()
        return error

    def _listed_causes(self, room: int) -> Iterator[str]:
        """Yield a text for each cause, the most frequent first. If there are many, each text is shorter.

        :param room: number of characters of all texts
        """
        found = {key: replace(cause) for key, cause in self.causes.items()}
        for name, cause in self.unproven.values():
            _add_cause(found, (name, "unknown"), replace(cause))
        causes = sorted(found.items(), key=lambda cause: (-cause[1].count, cause[1].index))
        number = max(1, min(MAX_CAUSES, room // LEAST_OF_CAUSE))
        listed, others = causes[:number], causes[number:]
        for (name, _), cause in listed:
            begin = f"{cause.count} {name} (first item {cause.index}, "
            left = max(LEAST_OF_CAUSE, room // len(listed)) - len(f"{begin}: ); ")
            place = shortened(cause.place, min(MAX_PLACE, left // 3))
            yield f"{begin}{place}: {shortened(cause.message, min(MAX_CAUSE, left - len(place)))})"
        if others:
            yield f"{sum(cause.count for _, cause in others)} with other errors"

    @property
    def _whereabouts(self) -> str:
        held = self.waiting + self.unrecorded
        if not held:
            return "All images that were received are"
        items = "1 item" if held == 1 else f"{held:,} items"
        wait = "may wait" if self.unrecorded else "wait"
        return f"Images of {items} {wait} on this host. All others that were received are"

    @property
    def _tokens(self) -> str:
        if not self.tokens and self.billed != "no":  # paid images without usage, or a fee
            return "an unknown number of tokens"
        return f"{self.tokens:,} tokens"

    def _bill(self, billed: str, images: int, cost: Mapping[str, Any] | None) -> None:
        if billed == "yes":
            self._pay(images, cost)
        self.unknown_outcomes += billed == "unknown"

    def _pay(self, images: int, cost: Mapping[str, Any] | None) -> None:
        self.paid = True
        if cost is None or not Costs.from_json(cost).amounts:
            self.without_cost += images

    def _add(self, usage: Mapping[str, Any] | None, cost: Mapping[str, Any] | None) -> None:
        self.cost += _costs(cost)
        self.usage = total_usage((self.usage, usage))

    def _count(
        self,
        index: int,
        images: list[dict[str, Any]],
        usage: Mapping[str, Any] | None,
        cost: Mapping[str, Any] | None,
    ) -> None:
        self.images += len(images)
        self._add(usage, cost)
        if images:
            self.first[index] = images
            while len(self.first) > MAX_LISTED:
                del self.first[max(self.first)]
        if self._uris is not None:
            self._uris[index] = [image["uri"] for image in images]
            if self.images > MAX_KEYS:
                self._uris = None


def _add_cause(causes: dict[tuple[str, str], Cause], key: tuple[str, str], cause: Cause) -> None:
    """Add failed items to the others with the same class of errors."""
    known = causes.setdefault(key, cause)
    if known is not cause:
        if cause.index < known.index:  # items end in any order
            known.index, known.place, known.message = cause.index, cause.place, cause.message
        known.count += cause.count


def _costs(cost: Mapping[str, Any] | None) -> Costs:
    return Costs() if cost is None else Costs.from_json(cost)


def _minus(total: dict[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``total`` without ``usage``, which is part of it except for details that other parts don't have."""
    result = dict(total)
    for name in result.keys() & usage.keys():
        value = usage[name]
        result[name] = _minus(result[name], value) if isinstance(value, Mapping) else result[name] - value
    return result


def duration(seconds: float) -> str:
    """Return a duration in hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
