"""What somebody wants: which images, where, for whom, and what may be paid for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_jojokey.img2.request import ImageRequest
from airflow_provider_jojokey.store.keys import Destination
from airflow_provider_jojokey.store.receipts import Owner


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants.

    :param request: what to draw
    :param destination: where to put it
    :param owner: the task that wants it
    :param reuse: which earlier payment counts: ``"run"`` (of this Dag run), ``"always"`` (of any run,
        for the same request at the same key), ``"never"``
    :param on_unknown_outcome: what to do where an earlier attempt was, or may have been, billed and
        gave nothing: ``"fail"``, or ``"regenerate"``, which may pay twice
    """

    request: ImageRequest
    destination: Destination
    owner: Owner
    reuse: str = "run"
    on_unknown_outcome: str = "fail"

    def to_json(self) -> dict[str, Any]:
        """Return the order for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Order:
        """Return the order that :meth:`to_json` told of.

        :raises ValueError: if it is none
        """
        return cls(
            request=ImageRequest(**values["request"]),
            destination=Destination(**values["destination"]),
            owner=Owner(**values["owner"]),
            reuse=values["reuse"],
            on_unknown_outcome=values["on_unknown_outcome"],
        )

    @property
    def may_pay_again(self) -> bool:
        """Whether somebody has said that paying again is fine."""
        return self.on_unknown_outcome == "regenerate" or self.reuse == "never"
