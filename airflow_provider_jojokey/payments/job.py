"""What to generate, where to store it, for which task, and within which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.payments.attempt import Attempt, Owner
from airflow_provider_jojokey.payments.options import LIMITS
from airflow_provider_jojokey.store.keys import Destination


@dataclass(frozen=True, slots=True)
class Limit:
    """A spending limit. ``None`` means unlimited.

    :param tokens: billed tokens
    :param images: images
    """

    tokens: int | None = None
    images: int | None = None

    def __bool__(self) -> bool:
        return self.tokens is not None or self.images is not None


def parse_limits(values: Mapping[str, Any]) -> tuple[Limit, Limit]:
    """Return the limits of the task and of the Dag run, from an operator's arguments.

    :param values: by the names in :data:`LIMITS`: numbers, numbers as text, or ``None``
    :raises ValueError: if a value is not a whole number from 0
    """
    numbers: list[int | None] = []
    for name in LIMITS:
        value = values.get(name)
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, str) and value.strip() in ("", "None"):
            value = None
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError(f"{name} must be a whole number from 0, not {str(value)[:40]!r}")
        numbers.append(value)
    return Limit(*numbers[:2]), Limit(*numbers[2:])


@dataclass(frozen=True, slots=True)
class ImageJob:
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

    def permits_repayment(self, attempt: Attempt) -> bool:
        """Whether the user allows another payment although ``attempt`` was, or may have been, billed.

        ``reuse="never"`` allows one payment per try. A trigger that runs twice is one try.
        """
        if self.on_unknown_outcome == "regenerate":
            return True
        return self.reuse == "never" and not attempt.owner.is_try_of(self.owner)

    def to_json(self) -> dict[str, Any]:
        """Return the job for another process."""
        return asdict(self)

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
