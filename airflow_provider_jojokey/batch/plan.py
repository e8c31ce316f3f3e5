"""The items of a batch: checked before anything is sent, and converted to jobs one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.operators.arguments import converted, filled
from airflow_provider_jojokey.payments.options import ON_UNKNOWN_OUTCOME, REUSE
from airflow_provider_jojokey.results import MAX_PROMPT, shortened

if TYPE_CHECKING:
    from airflow_provider_jojokey.img2.request import ImageRequest
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.job import ImageJob
    from airflow_provider_jojokey.store.keys import Destination

PLACE = ("s3_bucket", "s3_key")
CHOICES = {"reuse": REUSE, "on_unknown_outcome": ON_UNKNOWN_OUTCOME}
OPTIONS = (*FIELDS, *PLACE, *CHOICES)
"""The options of an item: its images, their keys, and how to pay."""

SHOWN = ("prompt", "model", "size", "quality")
"""The options that the result of an item shows."""

MAX_LISTED_PROBLEMS = 20
"""Maximum number of invalid items that an error lists."""
MAX_PROBLEM = 300


class Common(Struct):
    """The first item's prompt, and the other shown options if all items have the same.

    It is known before anything is sent: items from a mapped task are read from Airflow's API server, one by one.
    """

    options: dict[str, Any] = field(default_factory=dict)

    def add(self, request: ImageRequest) -> None:
        """Compare one item with the earlier ones."""
        if not self.options:
            self.options = {name: getattr(request, name) for name in SHOWN}
            self.options["prompt"] = shortened(request.prompt, MAX_PROMPT)
        for name in SHOWN[1:]:
            if self.options[name] != getattr(request, name):
                self.options[name] = None


class Plan(Struct, frozen=True):
    """A batch's items.

    :param items: any sequence of dicts, read one by one
    :param defaults: options for all items that don't set them
    :param owner: the task of the batch
    :param replace: see :class:`ImageJob`
    :param common: the options of the items that were added to it
    """

    items: Sequence[Any]
    defaults: Mapping[str, Any]
    owner: Owner
    replace: bool = False
    common: Common = field(default_factory=Common)

    def jobs(self) -> Iterator[tuple[int, ImageJob]]:
        """Yield each item's number, from 0, and its job.

        :raises ValueError: at the first invalid item
        """
        for index, item in enumerate(self.items):
            yield index, self._job(item)

    def shown(self) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        """Yield each item's number, the item, and the options that its result shows.

        This takes a hundredth of the time of :meth:`jobs`, whose checks must have succeeded.
        """
        for index, item in enumerate(self.items):
            values = {name: item.get(name) for name in SHOWN}
            values = {
                name: self.defaults.get(name) if filled(value) is None else value
                for name, value in values.items()
            }
            texts = {name: None if value is None else str(value) for name, value in values.items()}
            yield index, item, {**texts, "prompt": shortened(str(values["prompt"]).strip(), MAX_PROMPT)}

    def receipt_of(self, item: Mapping[str, Any]) -> str:
        """Return the URI of an item's receipt."""
        destination = destination_of(item, self.defaults.get("s3_bucket"), 1)
        return destination.uri(destination.receipt_key)

    def images_of(self, item: Mapping[str, Any]) -> int:
        """Return the number of images of an item."""
        given = filled(item.get("n"))
        return int(converted("n", self.defaults.get("n") if given is None else given) or 1)

    def problems(self) -> Iterator[tuple[int, str]]:
        """Yield the number and a description of each invalid item."""
        places: dict[tuple[str, str], int] = {}
        for index, item in enumerate(self.items):
            try:
                job = self._job(item)
            except (ValueError, TypeError, AttributeError) as error:
                yield index, shortened(str(error), MAX_PROBLEM)
                continue
            for place in set(_places(job)):
                if (other := places.setdefault(place, index)) != index:
                    yield index, f"it writes to s3://{place[0]}/{place[1][:200]}, like item {other}"
                    break

    def _job(self, item: Any) -> ImageJob:
        from airflow_provider_jojokey.img2.request import ImageRequest
        from airflow_provider_jojokey.payments.job import ImageJob

        if not isinstance(item, Mapping):
            raise ValueError(f"it must be a dict with prompt and s3_key, not {type(item).__name__}")
        if unknown := [name for name in item if name not in OPTIONS]:
            names = ", ".join(repr(name)[:40] for name in unknown[:5])
            raise ValueError(f"it has the unknown options {names}; known options are {', '.join(OPTIONS)}")
        values = {
            **self.defaults,
            **{name: value for name, value in item.items() if filled(value) is not None},
        }
        for name in ("prompt", "s3_key"):
            if values.get(name) is None:
                raise ValueError(f"{name} is missing")
        values = {name: converted(name, values.get(name)) for name in OPTIONS}
        values["prompt"] = values["prompt"].strip()
        request = ImageRequest(**{name: values[name] for name in FIELDS})
        return ImageJob(
            request=request,
            destination=destination_of(item, self.defaults.get("s3_bucket"), request.n),
            owner=self.owner,
            reuse=values["reuse"],
            on_unknown_outcome=values["on_unknown_outcome"],
            replace=self.replace,
        )


def destination_of(item: Mapping[str, Any], default_bucket: str | None, n: int) -> Destination:
    """Return the destination of an item, regardless of its other options.

    :param n: number of images
    :raises ValueError: if it is not valid
    """
    from airflow_provider_jojokey.store.keys import Destination

    bucket = converted("s3_bucket", filled(item.get("s3_bucket")))
    return Destination.parse(bucket, converted("s3_key", item["s3_key"]), n, lambda: default_bucket)


def format_problems(problems: Sequence[tuple[int, str]], total: int) -> str:
    """Return a message that lists the invalid items, up to a limit."""
    lines = [f"requests[{index}]: {problem}" for index, problem in problems[:MAX_LISTED_PROBLEMS]]
    if len(problems) > MAX_LISTED_PROBLEMS:
        lines.append(f"and {len(problems) - MAX_LISTED_PROBLEMS} more")
    return f"{len(problems)} of {total} requests are not valid: {'; '.join(lines)}"


def _places(job: ImageJob) -> Iterator[tuple[str, str]]:
    """Yield the objects that a job will write, including the receipt."""
    destination, output = job.destination, job.request.output_format or "png"
    extension = "jpg" if output == "jpeg" else output
    yield destination.bucket, destination.receipt_key
    for index in range(job.request.n):
        yield destination.bucket, destination.key_for(index, extension)
