"""What a task tells the UI: one XCom beside the manifest, small, and enough to show and to add up.

It is a copy of facts that the receipt and the manifest hold, under a key of its own: the gallery asks
Airflow's database for the images of all Dags at once, and a key that only this package uses is what makes
that one quick query. A failed attempt leaves one as well, for its cost and for what had arrived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

XCOM_KEY = "jojokey_images"
VERSION = 1
MAX_PROMPT = 2_000
"""Characters of a prompt that are kept here; the receipt has it whole."""
MAX_LISTED = 12
"""Images of a batch that are listed here; its manifest in S3 has all."""
MAX_MESSAGE = 1_000


@dataclass(frozen=True, slots=True)
class ResultImage:
    """One image in S3.

    :param bytes: its size
    :param width: in pixels
    :param height: in pixels
    :param sha256: 64 hex digits
    """

    bucket: str
    key: str
    content_type: str
    width: int
    height: int
    bytes: int
    sha256: str

    @property
    def uri(self) -> str:
        """The ``s3://`` place."""
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Result:
    """What one task made, or failed to make.

    :param state: ``"complete"`` or ``"failed"``
    :param images: what is in S3; of a batch the first few
    :param count: how many images there are in all
    :param prompt: what was asked for, shortened
    :param usage: the tokens that were billed to the task in its Dag run
    :param seconds: how long the gateway took
    :param created: when the gateway made them, in seconds since 1970
    :param reused: whether an earlier attempt had paid for them
    :param receipt: the receipt's ``s3://`` place
    :param aws_conn_id: the Airflow connection that reaches the images
    :param error: the exception's class, where the task failed
    :param message: what happened then
    :param manifest: the ``s3://`` place of a batch's list of all its images
    """

    state: str
    images: tuple[ResultImage, ...] = ()
    count: int = 0
    prompt: str = ""
    model: str | None = None
    size: str | None = None
    quality: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    request_id: str | None = None
    created: int | None = None
    reused: bool = False
    receipt: str | None = None
    aws_conn_id: str | None = None
    error: str | None = None
    message: str | None = None
    manifest: str | None = None

    @classmethod
    def of_xcom(cls, value: Any) -> Result | None:
        """Read an XCom's value. Whoever may write XComs may write anything: what is no result gives ``None``."""
        try:
            if not isinstance(value, Mapping) or value["version"] != VERSION:
                return None
            state = value["state"]
            if state not in ("complete", "failed"):
                return None
            images = tuple(_image(one) for one in value["images"])
            return cls(
                state=state,
                images=images,
                count=max(_number(value.get("count")) or 0, len(images)),
                prompt=str(value.get("prompt") or "")[:MAX_PROMPT],
                usage=_usage(value.get("usage")),
                seconds=float(value["seconds"]) if value.get("seconds") is not None else None,
                created=_number(value.get("created")),
                reused=value.get("reused") is True,
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
)


def of_manifest(manifest: Mapping[str, Any], *, prompt: str, aws_conn_id: str | None) -> dict[str, Any]:
    """Return the XCom's value for images that were made or reused.

    :param manifest: what the operator returns
    """
    images = list(manifest["images"])
    return {
        "version": VERSION,
        "state": "complete",
        "images": images,
        "count": len(images),
        "prompt": shortened(prompt, MAX_PROMPT),
        **{name: manifest.get(name) for name in ("model", "size", "quality", "usage", "seconds")},
        **{name: manifest.get(name) for name in ("request_id", "created", "reused", "receipt")},
        "aws_conn_id": aws_conn_id,
        "error": None,
        "message": None,
        "manifest": None,
    }


def of_error(
    error: Any, *, prompt: str, aws_conn_id: str | None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the XCom's value for an attempt that failed: what it cost and what had arrived.

    :param error: a :class:`~airflow_provider_jojokey.exceptions.JojoKeyError`
    :param options: ``model``, ``size`` and ``quality`` as asked for
    """
    images = list(error.images or ())
    return {
        "version": VERSION,
        "state": "failed",
        "images": images,
        "count": len(images),
        "prompt": shortened(prompt, MAX_PROMPT),
        **{name: (options or {}).get(name) for name in ("model", "size", "quality")},
        "usage": error.usage or {},
        "seconds": None,
        "request_id": error.request_id,
        "created": None,
        "reused": False,
        "receipt": error.receipt,
        "aws_conn_id": aws_conn_id,
        "error": type(error).__name__,
        "message": shortened(str(error), MAX_MESSAGE),
        "manifest": None,
    }


def shortened(text: str, length: int) -> str:
    """Return ``text``, or its beginning and an ellipsis: ``length`` characters at most."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _image(value: Mapping[str, Any]) -> ResultImage:
    image = ResultImage(**{name: value[name] for name in ResultImage.__slots__})
    texts = (image.bucket, image.key, image.content_type, image.sha256)
    numbers = (image.width, image.height, image.bytes)
    if not all(isinstance(one, str) and one for one in texts):
        raise ValueError("an image has no place")
    if not all(type(one) is int and one >= 0 for one in numbers):
        raise ValueError("an image has no size")
    if len(image.sha256) != 64 or not set(image.sha256) <= set("0123456789abcdef"):
        raise ValueError("an image has no checksum")
    return image


def _usage(value: Any) -> dict[str, Any]:
    return (
        {name: one for name, one in value.items() if isinstance(name, str)}
        if isinstance(value, Mapping)
        else {}
    )


def _number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _text(value: Any) -> str | None:
    return value[:MAX_PROMPT] if isinstance(value, str) and value else None
