"""What to generate, where to store it, for which task, and within which limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict

from airflow_provider_jojokey.cost import to_nanos
from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.payments.attempt import Attempt, Owner
from airflow_provider_jojokey.payments.options import pays_again
from airflow_provider_jojokey.store.keys import Destination


class Limit(Struct, frozen=True):
    """A spending limit. ``None`` means unlimited.

    :param tokens: billed tokens
    :param images: images
    :param cost: money, in nanos of the currency of the prices
    """

    tokens: int | None = None
    images: int | None = None
    cost: int | None = None

    def __bool__(self) -> bool:
        return self != Limit()

    def to_json(self) -> dict[str, int | None]:
        """Return it as JSON values. Without a limit on the cost, an older triggerer understands them too."""
        values = asdict(self)
        return values if self.cost is not None else {"tokens": self.tokens, "images": self.images}


def parse_limits(values: Mapping[str, Any]) -> tuple[Limit, Limit]:
    """Return the limits of the task and of the Dag run, from an operator's arguments.

    :param values: by the names in :data:`LIMITS`: numbers, numbers as text, or ``None``
    :raises ValueError: if one of them is not a number from 0
    """
    return _limit(values, ""), _limit(values, "_per_run")


def _limit(values: Mapping[str, Any], suffix: str) -> Limit:
    cost = _given(values.get(f"max_cost{suffix}"))
    return Limit(
        _count(f"max_tokens{suffix}", values),
        _count(f"max_images{suffix}", values),
        None if cost is None else to_nanos(f"max_cost{suffix}", cost),
    )


def _count(name: str, values: Mapping[str, Any]) -> int | None:
    value = _given(values.get(name))
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f"{name} must be a whole number from 0, not {str(value)[:40]!r}")
    return value


def _given(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip() in ("", "None") else value


class ImageJob(Struct, frozen=True):
    """One request for images, and the settings that decide whether it may be paid.

    :param request: the images
    :param destination: where to store them
    :param owner: the task that wants them
    :param reuse: which earlier payment counts: ``"run"`` (of this Dag run), ``"always"`` (of any run, for
        the same request at the same key), ``"never"``
    :param on_unknown_outcome: what to do if an earlier attempt was, or may have been, billed and produced
        nothing: ``"fail"``, or ``"regenerate"``, which may pay twice
    :param task_limit: what the task may spend in its Dag run, over all tries
    :param run_limit: what all tasks of the Dag run may spend
    :param replace: whether an object may be overwritten that no receipt mentions
    """

    request: ImageRequest
    destination: Destination
    owner: Owner
    reuse: str = "run"
    on_unknown_outcome: str = "fail"
    task_limit: Limit = field(default_factory=Limit)
    run_limit: Limit = field(default_factory=Limit)
    replace: bool = False

    @property
    def uri(self) -> str:
        """The ``s3://`` URI of the images' key, as given to the operator."""
        return self.destination.uri(self.destination.key)

    @property
    def pays_again(self) -> str:
        """The setting with which a retry may pay although an earlier request was billed; empty if there is none."""
        return pays_again(self.reuse, self.on_unknown_outcome)

    def permits_repayment(self, attempt: Attempt) -> bool:
        """Whether the user allows another payment although ``attempt`` was, or may have been, billed.

        Each try may pay once. A trigger that runs twice is one try, and if the first run has recorded its error, the
        task gets that error, and would not report what the second one pays. A killed run reports nothing, so with
        ``on_unknown_outcome="regenerate"`` the next run takes its place.
        """
        if not attempt.owner.is_try_of(self.owner):
            return bool(self.pays_again)
        return self.on_unknown_outcome == "regenerate" and attempt.error is None

    def to_json(self) -> dict[str, Any]:
        """Return the job for another process."""
        limits = {"task_limit": self.task_limit.to_json(), "run_limit": self.run_limit.to_json()}
        parts = {
            "request": dataclasses.asdict(self.request),
            "destination": asdict(self.destination),
            "owner": asdict(self.owner),
        }
        return {**asdict(self), **parts, **limits}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ImageJob:
        """Return the job that :meth:`to_json` describes.

        :raises ValueError: if a value is invalid
        :raises KeyError: if a value is missing
        """
        return cls(
            request=ImageRequest(**values["request"]),
            destination=Destination(**values["destination"]),
            owner=Owner(**values["owner"]),
            reuse=values["reuse"],
            on_unknown_outcome=values["on_unknown_outcome"],
            task_limit=Limit(**values["task_limit"]),
            run_limit=Limit(**values["run_limit"]),
            replace=values["replace"],
        )
