"""One attempt to pay for images, its states, and the transitions between them.

An attempt is written to S3 as ``open`` before its request is sent. An open attempt whose process is gone
is therefore a request that *may* have been billed. Without it, a retry after ``kill -9`` would pay again.

:data:`TRANSITIONS` is the only definition of how an attempt changes. Everything goes through
:meth:`Attempt.after`, which raises :class:`IllegalTransition` for anything else. Without the table, late
news about an attempt ("no response") could overwrite better evidence ("images stored").
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import NoneType
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from airflow_provider_jojokey.cost import Cost, Prices
from airflow_provider_jojokey.results import StoredImage


class Outcome(StrEnum):
    """What is known about how an attempt ended."""

    OPEN = "open"
    """It has not ended, or its process died before it could record an end."""
    COMPLETE = "complete"
    """Its images are in S3."""
    NOT_BILLED = "not_billed"
    """Proven: it cost nothing."""
    BILLED = "billed"
    """Proven: it cost money. It did not deliver all of its images."""
    UNKNOWN = "unknown"
    """There is no proof that it was billed, and none that it was not."""


class Event(StrEnum):
    """New information about an attempt."""

    STORED = "stored"
    """All of its images are in S3."""
    PROVEN_BILLED = "proven_billed"
    PROVEN_UNBILLED = "proven_unbilled"
    LOST = "lost"
    """Its response was lost, and nothing proves whether it was billed."""
    DETAIL = "detail"
    """More about it, such as its usage or charge. Its outcome stays."""
    STATED_BILLED = "stated_billed"
    """A person states that it was billed."""
    STATED_UNBILLED = "stated_unbilled"
    """A person states that it was not billed, or was refunded."""


_OPTIONAL_TEXTS = ("model", "size", "quality", "request_id", "cf_ray", "code", "error", "note")
_TEXT_LISTS = ("kept", "sends", "warnings")
_BILLED = {"no", "yes", "unknown"}
_AFTER: Mapping[Event, tuple[Outcome, str]] = {
    Event.STORED: (Outcome.COMPLETE, "yes"),
    Event.PROVEN_BILLED: (Outcome.BILLED, "yes"),
    Event.PROVEN_UNBILLED: (Outcome.NOT_BILLED, "no"),
    Event.LOST: (Outcome.UNKNOWN, "unknown"),
    Event.STATED_BILLED: (Outcome.BILLED, "yes"),
    Event.STATED_UNBILLED: (Outcome.NOT_BILLED, "no"),
}

TRANSITIONS: Mapping[Outcome, frozenset[Event]] = {
    # A request in flight may end in any way.
    Outcome.OPEN: frozenset(Event),
    Outcome.UNKNOWN: frozenset(Event),
    # Images that were received are stronger evidence than any earlier conclusion. So is a row in the
    # gateway log that shows a charge.
    Outcome.NOT_BILLED: frozenset({Event.STORED, Event.PROVEN_BILLED, Event.STATED_BILLED, Event.DETAIL}),
    # A charge can be refunded, which only a person can state.
    Outcome.BILLED: frozenset(
        {Event.STORED, Event.PROVEN_BILLED, Event.STATED_BILLED, Event.STATED_UNBILLED, Event.DETAIL}
    ),
    Outcome.COMPLETE: frozenset({Event.DETAIL}),
}
"""The events that each outcome accepts; :data:`_AFTER` names the outcome that follows."""


def outcome_after(event: Event) -> Outcome | None:
    """Return the outcome that follows an event; ``None`` if the event doesn't change it."""
    return None if event is Event.DETAIL else _AFTER[event][0]


class IllegalTransition(ValueError):
    """An event that contradicts what is known about the attempt."""


class Owner(Struct, frozen=True):
    """The task that an attempt belongs to.

    :param try_number: the task's try, from 1
    :param map_index: the index of a mapped task, -1 if it is not mapped
    :param ti_id: Airflow's ID of the task instance: new for each try, the same for a trigger that runs twice
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    try_number: int = 1
    ti_id: str = ""

    def is_run_of(self, other: Owner) -> bool:
        """Whether both belong to one Dag run."""
        return (self.dag_id, self.run_id) == (other.dag_id, other.run_id)

    def is_task_of(self, other: Owner) -> bool:
        """Whether both are one task of one Dag run, in any try."""
        return self.is_run_of(other) and (self.task_id, self.map_index) == (other.task_id, other.map_index)

    def is_try_of(self, other: Owner) -> bool:
        """Whether both are one try of one task.

        Names and try numbers are not enough: ``dag.test()`` deletes a run and creates it again with the
        same names. They are all there is in receipts without a task-instance ID.
        """
        if self.ti_id and other.ti_id:
            return self.ti_id == other.ti_id
        return self.is_task_of(other) and self.try_number == other.try_number


class Worker(Struct, frozen=True):
    """The process that makes an attempt.

    :param host: the host's name, for display
    :param pid: the process ID
    :param started: when the process started, in seconds since boot, or since 1970 if that is unknown;
        process IDs are reused
    :param spool: ID of the spool where the images wait
    :param identity: differs between machines, boots and process namespaces, even if they share a host name
    """

    host: str
    pid: int
    started: float
    spool: str = ""
    identity: str = ""


class Attempt(Struct, frozen=True):
    """One attempt to pay for images.

    :param id: 32 hex digits
    :param fingerprint: the request's fingerprint, see :meth:`ImageRequest.fingerprint`
    :param owner: the task it belongs to
    :param worker: the process that makes it
    :param started_at: when it was claimed, before its request was sent
    :param lease_until: the time until which other hosts assume that it may be in flight
    :param clock: the clock of these times: ``"s3"`` or ``"host"``
    :param outcome: what is known about its end
    :param ended_at: when it ended or was reconciled
    :param billed: ``"no"``, ``"yes"`` or ``"unknown"``
    :param usage: the tokens that were billed, if known
    :param charge: what the gateway log shows as charged: ``quota`` in the gateway's quota units, and ``amount``
        and ``currency`` if the gateway states what they are worth
    :param cost: the charge or, if it is unknown, the price of the usage; ``None`` if both are unknown
    :param images: the images that it stored
    :param preview: the stored preview of an image that never arrived
    :param kept: URIs of everything else that was kept: links, task IDs, unknown image types
    :param model: the model that responded, or until then the requested one
    :param requested: number of images that the request asks for
    :param sends: the time of each send
    :param warnings: what differs from the request, a sentence each: missing images, another size or format
    :param error: name of the exception's class
    :param note: the evidence for ``billed``, for display
    :param hint: a gateway log row that matches only by time: ``request_id`` and ``usage``; not evidence
    :param resolution: what a person stated: ``by``, ``at``, ``billed``, ``note``; and in ``replaces`` the ``billed``,
        ``usage`` and ``cost`` that were known before a statement that it was not billed
    """

    id: str
    fingerprint: str
    owner: Owner
    worker: Worker
    started_at: datetime
    lease_until: datetime
    clock: str = "host"
    outcome: Outcome = Outcome.OPEN
    ended_at: datetime | None = None
    billed: str = "unknown"
    usage: dict[str, Any] | None = None
    charge: dict[str, Any] | None = None
    cost: Cost | None = None
    images: tuple[StoredImage, ...] = ()
    preview: StoredImage | None = None
    kept: tuple[str, ...] = ()
    model: str | None = None
    size: str | None = None
    quality: str | None = None
    created: int | None = None
    seconds: float | None = None
    request_id: str | None = None
    cf_ray: str | None = None
    code: str | None = None
    requested: int | None = None
    sends: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None
    note: str | None = None
    hint: dict[str, Any] | None = None
    resolution: dict[str, Any] | None = None

    def after(self, event: Event, **facts: Any) -> Attempt:
        """Return the attempt after ``event``.

        :param facts: other fields to set
        :raises IllegalTransition: if the event contradicts the current outcome
        """
        if event not in TRANSITIONS[self.outcome]:
            raise IllegalTransition(f"{event} after {self.outcome}")
        if event is not Event.DETAIL:
            outcome, billed = _AFTER[event]
            facts |= {"outcome": outcome, "billed": billed}
        if event is Event.STORED and self.is_refunded:
            # Images prove a charge, not that a refund was taken back.
            facts |= {"billed": "no", "usage": None}
        elif event is Event.STATED_UNBILLED and "resolution" in facts:
            # The statement may be a mistake, and is then replaced by another one.
            known = {"billed": self.billed, "usage": self.usage, "cost": self.cost and self.cost.to_json()}
            facts |= {"usage": None, "resolution": {**facts["resolution"], "replaces": known}}
        elif facts.get("billed") == "yes" and (usage := self._replaced.get("usage")):
            facts["usage"] = facts.get("usage") or self.usage or usage
            facts.setdefault("cost", self.cost or _recorded(self._replaced.get("cost")))
        return replace(self, **facts)

    @property
    def _replaced(self) -> Mapping[str, Any]:
        """What was known before a person stated that it was not billed."""
        known, is_free = (self.resolution or {}).get("replaces"), self.billed == "no"
        return known if isinstance(known, Mapping) and is_free else {}

    @property
    def is_refunded(self) -> bool:
        """Whether a person stated that it was not billed although it was known to be: the charge was refunded."""
        return self._replaced.get("billed") == "yes"

    def priced(self, prices: Prices | None, before: Attempt | None = None) -> Attempt:
        """Return the attempt with its cost.

        A cost that is recorded stays if prices change later: only other usage changes it, or the actual charge.

        :param before: the attempt as it was recorded
        """
        if not self.may_cost:
            return replace(self, cost=None)
        if (charged := _charged(self.charge)) is not None:
            return replace(self, cost=charged)
        settled = self.cost is not None and (
            not self.cost.approximate or (before is not None and before.usage == self.usage)
        )
        if settled or prices is None:
            return self
        return replace(self, cost=prices.cost_of(self.usage))

    @property
    def may_cost(self) -> bool:
        """Whether it was, or may have been, billed."""
        return self.outcome is not Outcome.NOT_BILLED and not self.is_refunded

    @property
    def is_lost(self) -> bool:
        """Whether it has ended, did not deliver all of its images, and was or may have been billed."""
        return self.outcome in (Outcome.UNKNOWN, Outcome.BILLED)

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as JSON values."""
        values: dict[str, Any] = {}
        for name, value in asdict(self).items():
            values[name] = value.isoformat() if isinstance(value, datetime) else value
        values["owner"], values["worker"] = asdict(self.owner), asdict(self.worker)
        values["images"] = [image.to_json() for image in self.images]
        values["preview"] = self.preview.to_json() if self.preview else None
        values["cost"] = self.cost.to_json() if self.cost else None
        for name in _TEXT_LISTS:
            values[name] = list(values[name])
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Attempt:
        """Return the attempt that :meth:`to_json` describes. Unknown fields are ignored.

        :raises ValueError: if it is not an attempt
        :raises KeyError: if a field is missing
        :raises TypeError: if a field has the wrong type
        """
        known = _known(cls, values)
        known["owner"] = Owner(**_known(Owner, known["owner"]))
        known["worker"] = Worker(**_known(Worker, known["worker"]))
        known["outcome"] = Outcome(known["outcome"])
        for name in ("started_at", "lease_until", "ended_at"):
            if name != "ended_at" or known.get(name) is not None:
                known[name] = datetime.fromisoformat(known[name])
                if known[name].tzinfo is None:
                    raise ValueError(f"{name} has no time zone")
        for name in ("usage", "charge", "hint", "resolution"):
            if not isinstance(known.get(name), (dict, NoneType)):
                raise ValueError(f"{name} is not an object")
        if known.get("billed", "unknown") not in _BILLED:
            raise ValueError("billed is not no, yes or unknown")
        known["images"] = tuple(StoredImage.from_json(image) for image in known.get("images", ()))
        preview = known.get("preview")
        known["preview"] = StoredImage.from_json(preview) if preview else None
        cost = known.get("cost")
        known["cost"] = None if cost is None else Cost.from_json(cost)
        for name in _TEXT_LISTS:
            known[name] = tuple(_texts(known.get(name)))
        for sent in known["sends"]:
            if datetime.fromisoformat(sent).tzinfo is None:
                raise ValueError("a time in sends has no time zone")
        attempt = cls(**known)
        _check_types(attempt)
        return attempt


def _charged(charge: Mapping[str, Any] | None) -> Cost | None:
    """Return what a charge is worth, if that is recorded."""
    return _recorded({**(charge or {}), "approximate": False})


def _recorded(cost: Any) -> Cost | None:
    """Return a cost in JSON; ``None`` if it is not one."""
    try:
        return Cost.from_json(cost)
    except ValueError:
        return None


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in cls.__struct_fields__}


def _texts(values: Any) -> list[str]:
    if values is not None and not isinstance(values, list):
        raise ValueError("a list of texts is not a list")
    if not all(isinstance(value, str) for value in values or ()):
        raise ValueError("a list of texts has other values")
    return values or []


def _check_types(attempt: Attempt) -> None:
    """Check the fields that decisions, results and the ledger use.

    Otherwise a damaged receipt would fail in the middle of a payment, or its cost would be missing in the UI.

    :raises ValueError: if a value has the wrong type
    """
    owner, worker = attempt.owner, attempt.worker
    texts = [attempt.id, attempt.fingerprint, attempt.clock]
    texts += [owner.dag_id, owner.run_id, owner.task_id, owner.ti_id]
    texts += [worker.host, worker.spool, worker.identity]
    texts += [text for name in _OPTIONAL_TEXTS if (text := getattr(attempt, name)) is not None]
    counts = [owner.map_index + 1, owner.try_number, worker.pid]
    counts += [] if attempt.requested is None else [attempt.requested]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text has the wrong type")
    if not all(type(count) is int and 0 <= count < 2**31 for count in counts) or owner.map_index is True:
        raise ValueError("a count has the wrong type, or is out of range")
    if isinstance(worker.started, bool) or not 0 <= worker.started < float("inf"):
        raise ValueError("the start of the process is not a time")
    if not isinstance(attempt.created, (int, NoneType)):
        raise ValueError("created is not a whole number")
    if attempt.seconds is not None and not 0 <= attempt.seconds < float("inf"):
        raise ValueError("seconds is not a duration")
