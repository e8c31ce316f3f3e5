"""The result that a task reports to the UI: one small XCom next to the manifest.

It repeats facts of the receipt and the manifest, because the gallery queries Airflow's database for the images of all
Dags at once. Its key is used by this package only, which keeps that query fast. A failed task pushes a result too, with
its cost and any images that were received.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import asdict

from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.img2.rules import unstorable

if TYPE_CHECKING:
    from airflow_provider_jojokey.exceptions import JojoKeyError

XCOM_KEY = "jojokey_images"
PROGRESS_KEY = "jojokey_progress"
"""Key of the XCom in which a running batch reports its progress."""
VERSION = 1
MAX_PROMPT = 2_000
"""Maximum length of the prompt in the XCom. The receipt contains the whole prompt."""
MAX_LISTED = 12
"""Maximum number of a batch's images in the XCom. The manifest in S3 lists all."""
MAX_MESSAGE = 2_000
"""Maximum length of an error in the XCom."""
MAX_LIMITS = 6
"""Limits of a task and of its Dag run: on tokens, images and money each."""


class StoredImage(Struct, frozen=True):
    """One image in S3.

    :param bytes: its size
    :param width: in pixels
    :param height: in pixels
    :param sha256: 64 hex digits
    """

    bucket: str
    key: str
    content_type: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    sha256: str = ""

    @property
    def uri(self) -> str:
        """The ``s3://`` URI."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, as in the manifest."""
        return {"uri": self.uri, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StoredImage:
        """Return the image that :meth:`to_json` describes.

        :raises KeyError: if it has no bucket, key or size
        :raises ValueError: if a value has the wrong type
        """
        image = cls(
            bucket=values["bucket"],
            key=values["key"],
            bytes=values["bytes"],
            **{
                name: values[name] for name in ("content_type", "width", "height", "sha256") if name in values
            },
        )
        texts = (image.bucket, image.key, image.content_type, image.sha256)
        numbers = (image.width, image.height, image.bytes)
        if not all(isinstance(text, str) for text in texts) or not image.bucket or not image.key:
            raise ValueError("an image has no bucket or key")
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("an image has an invalid size")
        return image


class Result(Struct, frozen=True):
    """What one task generated, or failed to.

    :param state: ``"complete"`` or ``"failed"``
    :param images: the images in S3; for a batch, the first few
    :param count: number of images in S3
    :param prompt: the prompt, shortened
    :param usage: the tokens billed to the task in its Dag run
    :param cost: what the task has cost in its Dag run; ``None`` if nothing is known about it
    :param seconds: how long the gateway took
    :param created: when the gateway generated them, in seconds since 1970
    :param reused: whether an earlier attempt had paid for them
    :param receipt: the receipt's ``s3://`` URI
    :param aws_conn_id: the Airflow connection that reaches the images
    :param error: the exception's class, if the task failed
    :param message: the exception's text
    :param billed: whether the failed request was billed: ``"no"``, ``"yes"`` or ``"unknown"``
    :param batch: whether it is a batch, whose images belong to different items
    :param manifest: the ``s3://`` URI of a batch's list of all images; ``None`` if it could not be stored
    :param budget: what was used of each limit when the task ended, see :meth:`Budget.uses`
    :param derived_from: the ``s3://`` URI of the paid image that these were made of, without another payment
    """

    state: str
    images: tuple[StoredImage, ...] = ()
    count: int = 0
    prompt: str = ""
    model: str | None = None
    size: str | None = None
    quality: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    cost: Costs | None = None
    seconds: float | None = None
    request_id: str | None = None
    created: int | None = None
    reused: bool = False
    receipt: str | None = None
    aws_conn_id: str | None = None
    error: str | None = None
    message: str | None = None
    billed: str | None = None
    manifest: str | None = None
    derived_from: str | None = None
    budget: tuple[dict[str, Any], ...] = ()
    batch: bool = False

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], *, prompt: str, aws_conn_id: str | None) -> Result:
        """Return the result for images that were generated or reused.

        :param manifest: what the operator returns
        """
        images = tuple(StoredImage.from_json(image) for image in manifest["images"])
        names = ("model", "size", "quality", "seconds", "request_id", "created", "reused", "receipt")
        facts: dict[str, Any] = {name: manifest.get(name) for name in names}
        return cls(
            state="complete",
            images=images,
            count=len(images),
            prompt=shortened(prompt, MAX_PROMPT),
            usage=manifest.get("usage") or {},
            cost=_cost(manifest.get("cost")),
            budget=budget_of(manifest.get("budget")),
            aws_conn_id=aws_conn_id,
            **facts,
        )

    @classmethod
    def from_error(
        cls,
        error: JojoKeyError,
        *,
        prompt: str,
        aws_conn_id: str | None,
        options: Mapping[str, Any] | None = None,
    ) -> Result:
        """Return the result for an attempt that failed: what it cost, and what was received anyway.

        :param options: ``model``, ``size`` and ``quality`` as requested
        """
        images = tuple(StoredImage.from_json(image) for image in error.images or ())
        requested: dict[str, Any] = {name: (options or {}).get(name) for name in ("model", "size", "quality")}
        return cls(
            state="failed",
            images=images,
            count=len(images),
            prompt=shortened(prompt, MAX_PROMPT),
            usage=error.usage or {},
            cost=_cost(error.cost),
            request_id=error.request_id,
            receipt=error.receipt,
            aws_conn_id=aws_conn_id,
            error=type(error).__name__,
            message=shortened(str(error), MAX_MESSAGE),
            billed=error.billed,
            **requested,
        )

    @property
    def paid(self) -> str:
        """Whether anything was paid for this result in its Dag run: ``"yes"``, ``"no"`` or ``"unknown"``.

        An attempt that was not billed may follow one that was, so tokens and costs count as well. A fee has a cost,
        but no tokens. If a cost is unknown, an earlier attempt was, or may have been, billed.
        """
        if self.usage.get("total_tokens") or (self.cost and self.cost.charged):
            return "yes"
        unknown = self.cost is not None and self.cost.unknown > 0
        if self.state == "failed":
            return "unknown" if unknown and self.billed == "no" else self.billed or "unknown"
        if self.cost is None:
            return "no" if self.reused or self.derived_from else "yes"
        return "yes" if unknown else "no"

    @property
    def tokens(self) -> int | None:
        """The tokens billed; ``None`` if they are unknown.

        ``usage`` is a sum, which is 0 if nothing is known about any of its parts.
        """
        total = self.usage.get("total_tokens")
        if type(total) is int and total > 0:
            return total
        return 0 if self.paid == "no" else None

    def to_xcom(self) -> dict[str, Any]:
        """Return the XCom's value."""
        cost = self.cost.to_json() if self.cost else None
        images = [image.to_json() for image in self.images]
        return {"version": VERSION, **asdict(self), "cost": cost, "images": images}

    @classmethod
    def from_xcom(cls, value: Any) -> Result | None:
        """Read an XCom's value. Any task may write any XCom: returns ``None`` if it is not a result."""
        try:
            if not isinstance(value, Mapping) or value["version"] != VERSION:
                return None
            state = value["state"]
            if state not in ("complete", "failed"):
                return None
            images = tuple(_checked(StoredImage.from_json(image)) for image in value["images"])
            billed = value.get("billed")
            return cls(
                state=state,
                images=images,
                count=max(_number(value.get("count")) or 0, len(images)),
                prompt=str(value.get("prompt") or "")[:MAX_PROMPT],
                usage=_usage(value.get("usage")),
                cost=_cost(value.get("cost")),
                seconds=float(value["seconds"]) if value.get("seconds") is not None else None,
                created=_number(value.get("created")),
                reused=value.get("reused") is True,
                # Older results of batches have a manifest only.
                batch=value.get("batch") is True or _text(value.get("manifest")) is not None,
                budget=budget_of(value.get("budget")),
                billed=billed if billed in ("no", "yes", "unknown") else None,
                **{name: _text(value.get(name)) for name in _TEXTS},
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            return None


_TEXTS = (
    "model",
    "size",
    "quality",
    "request_id",
    "receipt",
    "aws_conn_id",
    "error",
    "message",
    "manifest",
    "derived_from",
)


def storable(value: Any) -> Any:
    """Return a JSON value that every database of Airflow can store.

    PostgreSQL's JSONB has no NUL characters, lone surrogates, NaN and infinity, and the worker sends integers
    of at most 64 bits.
    """
    if isinstance(value, str):
        return re.sub("[\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value) if unstorable(value) else value
    if isinstance(value, Mapping):
        return {storable(key): storable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**63 else None
    return value


def shortened(text: str, length: int) -> str:
    """Return ``text``, or its beginning and an ellipsis: ``length`` characters at most."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _checked(image: StoredImage) -> StoredImage:
    """Return an image of an XCom, which the UI shows and fetches.

    :raises ValueError: if it is incomplete
    """
    if not image.content_type or len(image.sha256) != 64 or not set(image.sha256) <= set("0123456789abcdef"):
        raise ValueError("an image has no type or checksum")
    return image


def _usage(value: Any) -> dict[str, Any]:
    return (
        {name: one for name, one in value.items() if isinstance(name, str)}
        if isinstance(value, Mapping)
        else {}
    )


def _cost(value: Any) -> Costs | None:
    """Return the costs that a manifest, an error or an XCom holds; those before this field hold none."""
    try:
        return None if value is None else Costs.from_json(value)
    except ValueError:
        return None


def budget_of(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the valid entries of :meth:`Budget.uses`, from a manifest or an XCom."""
    if not isinstance(value, (list, tuple)):
        return ()
    return tuple(
        dict(use)
        for use in value[:MAX_LIMITS]
        if isinstance(use, Mapping)
        and use.get("scope") in ("task", "run")
        and use.get("unit") in ("tokens", "images", "cost")
        and _number(use.get("used")) is not None
        and _number(use.get("limit")) is not None
        and isinstance(use.get("currency", ""), str)
    )


def _number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _text(value: Any) -> str | None:
    return value[:MAX_PROMPT] if isinstance(value, str) and value else None
