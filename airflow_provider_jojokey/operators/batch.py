"""The operator for many images in one task. It has no heavy imports, because Dag files import it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.integrations import assets
from airflow_provider_jojokey.operators.arguments import converted, is_literal
from airflow_provider_jojokey.operators.base import ImageOperator, text_of
from airflow_provider_jojokey.operators.templates import OPTIONS, TemplateFields
from airflow_provider_jojokey.payments.options import PAYS_AGAIN
from airflow_provider_jojokey.results import (
    MAX_MESSAGE,
    PROGRESS_KEY,
    Result,
    StoredImage,
    budget_of,
    shortened,
    storable,
)
from airflow_provider_jojokey.store.keys import bucket_problems

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_jojokey.batch.manifest import Manifest
    from airflow_provider_jojokey.batch.plan import Plan
    from airflow_provider_jojokey.batch.runner import Batch
    from airflow_provider_jojokey.batch.tally import Tally
    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.budget import Budget
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.s3 import ImageStore

MAX_IN_FLIGHT = 1000
PROGRESS = 10.0
"""Minimum seconds between two XComs with the progress."""
DECODE_SLOTS = 8
"""Responses to decode at once. More would take memory, but would not be faster in one interpreter."""
S3_CONNECTIONS = 32
"""More would take memory without need: an upload takes milliseconds, an image takes seconds."""
RESULT_VERSION = 1
MAX_REASON = 200


class GenerateImageBatchOperator(ImageOperator):
    """Turn many prompts into images in S3, in one task. Each image is paid for once.

    Each image has its own thread, and up to ``max_in_flight`` images are generated at once. All threads share one
    rate limiter, so the batch slows down when JojoKey rejects requests. Each item has its own receipt, so a retry
    generates only the missing images. If an item fails, the batch continues and fails at the end.

    XComs: the return value counts generated, reused and failed items, and names the manifest, a file of JSON lines
    in S3 with one line for each item. ``usage`` contains the billed tokens. ``keys`` lists the images if there are at
    most 100. ``jojokey_images`` and ``jojokey_progress`` are for the UI. No XCom contains image data.

    :param requests: a list of dicts, often from an upstream task. Each has ``prompt`` and ``s3_key``,
        and may override any option below that describes an image or its location
    :param max_in_flight: maximum number of images in flight, 1 to 1,000
    :param s3_bucket: the bucket of items without one, and of the manifest. The default is the
        ``bucket_name`` in the ``service_config`` of the AWS connection
    :param model: the model of items that don't name one. The same applies to ``size``, ``quality``, ``n``,
        ``background``, ``output_format``, ``output_compression``, ``moderation``, ``extra_body``, ``stream``,
        ``partial_images``, ``reuse`` and ``on_unknown_outcome``, see :class:`GenerateImageOperator`
    :param max_tokens: maximum number of tokens billed to this task in one Dag run, over all its tries. Requests
        whose estimate exceeds the limit are not sent
    :param max_images: the same in images
    :param max_cost: the same in money, in the currency of ``price_per_million``
    :param max_tokens_per_run: maximum number of tokens billed to all tasks of the Dag run that have this argument
        and write to the same bucket. A batch counts for the bucket of its manifest
    :param max_images_per_run: the same in images
    :param max_cost_per_run: the same in money
    :param jojokey_conn_id: the connection to JojoKey
    :param aws_conn_id: the connection to S3
    :param s3_extra_args: additional S3 parameters for every object that is written, such as
        ``{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "…"}``, ``ACL`` or ``RequestPayer``. Storage class,
        tags and cache control apply to images only. The default is ``[jojokey] s3_extra_args``
    :param replace: overwrite an object at ``s3_key`` that no receipt mentions. By default the task fails
        before it pays
    :raises ValueError: when the Dag is parsed, if a literal argument breaks a rule
    """

    template_fields: Sequence[str] = TemplateFields("requests", "max_in_flight", *OPTIONS)  # type: ignore[assignment]
    template_fields_renderers: ClassVar[dict[str, str]] = {"requests": "json", "extra_body": "json"}
    ui_color = "#ded4f7"

    requests: Any
    max_in_flight: int

    def __init__(
        self,
        *,
        requests: Any,
        max_in_flight: int = 8,
        s3_bucket: str | None = None,
        model: str | None = None,
        size: str = "1024x1024",
        quality: str = "low",
        n: int = 1,
        background: str | None = None,
        output_format: str | None = None,
        output_compression: int | None = None,
        moderation: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        stream: bool = False,
        partial_images: int | None = None,
        reuse: str = "run",
        on_unknown_outcome: str = "fail",
        max_tokens: int | None = None,
        max_images: int | None = None,
        max_cost: float | str | Decimal | None = None,
        max_tokens_per_run: int | None = None,
        max_images_per_run: int | None = None,
        max_cost_per_run: float | str | Decimal | None = None,
        jojokey_conn_id: str = "jojokey_default",
        aws_conn_id: str | None = "aws_default",
        s3_extra_args: Mapping[str, Any] | str | None = None,
        replace: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._set_arguments(locals())
        self._batch: Batch | None = None
        found = []
        if type(max_in_flight) is int and not 1 <= max_in_flight <= MAX_IN_FLIGHT:
            found.append(_IN_FLIGHT.format(max_in_flight))
        if isinstance(self.s3_bucket, str) and is_literal(self.s3_bucket):
            found += bucket_problems(self.s3_bucket)
        self._check_literals(*found)

    @cached_property
    def hook(self) -> JojoKeyHook:
        """The JojoKey hook, which all threads share."""
        from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

        hook = JojoKeyHook(self.jojokey_conn_id)
        hook.decode_slots = DECODE_SLOTS
        return hook

    @cached_property
    def store(self) -> ImageStore:
        """The S3 store, which all threads share."""
        return self._image_store(min(self._in_flight(), S3_CONNECTIONS))

    def execute(self, context: Context) -> dict[str, Any]:
        """Generate the missing images, and return the counts and the manifest's URI.

        :raises JojoKeyError: if an item has no images; the message counts the errors by class, and says what
            was spent and what a retry does
        """
        from airflow_provider_jojokey.batch.heap import limit_malloc_arenas
        from airflow_provider_jojokey.exceptions import JojoKeyError
        from airflow_provider_jojokey.operators.stopping import TaskStopped

        limit_malloc_arenas()
        self._set_label(context)
        switch = self._stop_switch
        with ExitStack() as ending:
            ending.callback(switch.end)
            try:
                plan, batch, place = self._prepare(self._owner(context), ending)
            except (JojoKeyError, TaskStopped) as failure:
                error = self._with_settings(failure if isinstance(failure, JojoKeyError) else switch.error())
                self._report_interruption(context, error)
                raise error from None
            except BaseException as interruption:  # such as a timeout
                self._report_interruption(context, interruption)
                raise
            uri = None
            try:
                with self._progress_reports(context, batch):
                    tally = batch.run()
                self._settle(batch)
                self.log.info(batch.summary())
                uri = self._store_manifest(batch.manifest, place, batch.settings.upload_patience)
            except BaseException as interruption:
                # Such as a timeout, which may also come after the last image: report the usage so far.
                try:
                    self._settle(batch)
                    uri = self._store_manifest(batch.manifest, place, timeout=0.0)
                finally:
                    self._report(context, plan, batch.tally, uri, interruption)
                raise
        return self._ended(context, plan, tally, uri, batch.stopped)

    def on_kill(self) -> None:
        """Send nothing more. Responses in flight are billed, so they have a few seconds to arrive.

        :raises TaskStopped: to interrupt a part of ``execute`` that waits for S3
        """
        if self._batch is not None:
            self._batch.stop()
        self._stop_switch.request(self.hook if "hook" in vars(self) else None)

    # Before anything is sent

    def _prepare(self, owner: Owner, ending: ExitStack) -> tuple[Plan, Batch, tuple[str, str] | None]:
        """Return the checked items, the batch, and the manifest's bucket and key, if there are items.

        :param ending: closes the manifest
        :raises JojoKeyError: if the batch can't start
        """
        from airflow_provider_jojokey.batch import previous
        from airflow_provider_jojokey.batch.manifest import Manifest, manifest_key
        from airflow_provider_jojokey.batch.runner import Batch
        from airflow_provider_jojokey.payments.amount import Amount, estimate
        from airflow_provider_jojokey.settings import Settings

        self._convert_arguments("requests", "max_in_flight", "stream", "partial_images")
        plan, buckets = self._plan(owner)
        total = len(plan.items)
        settings = Settings.from_airflow_config()
        place = (buckets[0], manifest_key(owner)) if buckets else None
        budget = self._budget(owner, total, buckets)
        wanted, settings_of_items = Amount(), {""}
        for _, job in plan.jobs():
            wanted += estimate(job, self.hook.prices)
            plan.common.add(job.request)
            settings_of_items.add(job.pays_again)
        self.log.info("%d items, about %s, at most %d in flight", total, wanted, self._in_flight())
        manifest = Manifest(settings.spool_directory, total)
        ending.callback(manifest.close)
        self._batch = batch = Batch(
            plan,
            total,
            hook=self.hook,
            store=self.store,
            settings=settings,
            manifest=manifest,
            max_in_flight=self._in_flight(),
            aws_conn_id=self.aws_conn_id,
            budget=budget,
        )
        batch.tally.pays_again = max(settings_of_items, key=PAYS_AGAIN.index)
        self._create_clients()
        with self._stop_switch.interruptible():
            if place:
                if owner.try_number > 1:
                    batch.previous = previous.load(self.store, *place, settings.spool_directory)
                self._preflight(buckets, place)
            if total:
                batch.preflight()
            batch.load_spent(wanted)
        return plan, batch, place

    def _with_settings(self, error: JojoKeyError) -> JojoKeyError:
        if self._batch is None:
            return super()._with_settings(error)
        return error.changed(pays_again=self._batch.tally.pays_again)  # an item may have its own settings

    def _destinations(self) -> Iterator[Destination]:
        from airflow_provider_jojokey.batch.plan import destination_of

        bucket = converted("s3_bucket", self.s3_bucket) or self._default_bucket()
        for item in self.requests:
            yield destination_of(item, bucket, 1)  # all images of an item share one receipt

    def _plan(self, owner: Owner) -> tuple[Plan, list[str]]:
        """Return the checked items and their buckets, with the manifest's bucket first.

        :raises JojoKeyRequestError: if an item is not valid
        """
        from airflow_provider_jojokey.batch.plan import Plan, format_problems
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        items = self.requests
        names = (*FIELDS, "s3_bucket", "reuse", "on_unknown_outcome")
        defaults = {name: getattr(self, name) for name in names if name != "prompt"}
        defaults["model"] = defaults["model"] or self.hook.settings.default_model
        defaults["s3_bucket"] = defaults["s3_bucket"] or self._default_bucket()
        plan = Plan(items, defaults, owner, self.replace)
        found = list(plan.problems())
        if found:
            raise JojoKeyRequestError(f"{format_problems(found, len(items))}.")
        first = [defaults["s3_bucket"]] if defaults["s3_bucket"] else []
        return plan, list(dict.fromkeys([*first, *(job.destination.bucket for _, job in plan.jobs())]))

    def _preflight(self, buckets: list[str], place: tuple[str, str]) -> None:
        """Check that all buckets are writable before any payment.

        :raises JojoKeyError: if not
        """
        import json

        from airflow_provider_jojokey.batch.manifest import CONTENT_TYPE

        bucket, key = place
        pointer = json.dumps({"version": RESULT_VERSION, "manifest": f"s3://{bucket}/{key}"}).encode() + b"\n"
        for name in buckets:
            self.store.put(name, key, pointer, CONTENT_TYPE)

    def _budget(self, owner: Owner, items: int, buckets: list[str]) -> Budget | None:
        """Return the spending limits, or ``None`` if there are none.

        :raises JojoKeyRequestError: if a limit is not a number
        """
        from airflow_provider_jojokey.payments.budget import Budget
        from airflow_provider_jojokey.payments.run_budget import RunBudget

        own, run = self._limits()
        if not items or not (own or run):
            return None
        shared = RunBudget(self.store, buckets[0], owner) if run else None
        return Budget(own, run, shared, prices=self.hook.prices)

    def _in_flight(self) -> int:
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        if not 1 <= self.max_in_flight <= MAX_IN_FLIGHT:
            raise JojoKeyRequestError(f"{_IN_FLIGHT.format(str(self.max_in_flight)[:20])}.")
        return self.max_in_flight

    def _progress_reports(self, context: Context, batch: Batch) -> AbstractContextManager[None]:
        """Push counts and the cost so far for the UI, while the block runs."""
        from airflow_provider_jojokey.batch.progress import is_supported, repeat

        reported = 0

        def push() -> None:
            nonlocal reported
            if batch.tally.done != reported:
                reported = batch.tally.done
                self._push(context, PROGRESS_KEY, batch.tally.progress())

        return repeat(push, PROGRESS) if is_supported() else nullcontext()

    # Afterwards

    def _settle(self, batch: Batch) -> None:
        """Look up missing usage, unless the task must end first."""
        from airflow_provider_jojokey.operators.stopping import TaskStopped

        try:
            with self._stop_switch.interruptible(sent=True):
                batch.settle()
        except TaskStopped:
            self.log.warning("The task must end now. Clearing it looks up the usage that is still unknown.")

    def _store_manifest(
        self, manifest: Manifest, place: tuple[str, str] | None, timeout: float
    ) -> str | None:
        """Upload the manifest and return its URI, or ``None`` if S3 does not accept it in time."""
        from airflow_provider_jojokey.batch.manifest import CONTENT_TYPE
        from airflow_provider_jojokey.exceptions import JojoKeyStoreError
        from airflow_provider_jojokey.operators.stopping import TaskStopped
        from airflow_provider_jojokey.store.s3 import retry_transient

        if place is None:
            return None
        bucket, key = place
        try:
            with manifest.in_order() as lines:

                def put() -> None:
                    lines.seek(0)
                    self.store.put(bucket, key, lines, CONTENT_TYPE)

                with self._stop_switch.interruptible(sent=True):
                    retry_transient(put, timeout=timeout, stopping=self.hook.stopping)
        except JojoKeyStoreError as error:
            problem = f"in S3: {error.what_happened}"
        except OSError as error:
            problem = f"on the local disk: {error.strerror}."
        except TaskStopped:
            problem = "in S3, which did not respond."
        else:
            return f"s3://{bucket}/{key}"
        self.log.error("Could not store the manifest %s The receipts contain the same facts.", problem)
        return None

    def _ended(
        self, context: Context, plan: Plan, tally: Tally, uri: str | None, stopped: bool
    ) -> dict[str, Any]:
        error = None
        if not tally.complete:
            error = tally.error(", because Airflow stopped the task" if stopped else "", uri)
        try:
            self._report(context, plan, tally, uri, error)
        except BaseException as interruption:
            self._report(context, plan, tally, uri, error or interruption)
            raise
        if error is not None:
            raise error
        summary: dict[str, Any] = {
            "version": RESULT_VERSION,
            "manifest": uri,
            "total": tally.total,
            "made": tally.made,
            "reused": tally.reused,
            "failed": tally.failed,
            "images": tally.images,
            "usage": tally.usage,
            "cost": tally.cost.to_json(),
        }
        summary = storable(summary)
        if self.outlets:
            try:
                assets.add_batch_event_extras(context, self.outlets, summary, tally.uris)
            except Exception:  # must not fail a task with paid images
                self.log.exception("Could not write the asset events.")
        return summary

    def _report(
        self, context: Context, plan: Plan, tally: Tally, uri: str | None, error: BaseException | None
    ) -> None:
        """Push the images and the cost, regardless of how the task ended."""
        self._set_label(context, paid=True)
        if tally.keys is not None and (error is None or tally.images):
            self._push(context, "keys", tally.keys)
        if not tally.earlier_unknown:
            self._push(context, "usage", tally.usage)
        self._uris = tally.uris
        self._push_result(context, self._result(plan, tally, uri, error))

    def _result(self, plan: Plan, tally: Tally, uri: str | None, error: BaseException | None) -> Result:
        common = plan.common.options
        return Result(
            state="failed" if error else "complete",
            images=tuple(StoredImage.from_json(image) for image in tally.listed),
            count=tally.images,
            prompt=common.get("prompt", ""),
            model=common.get("model"),
            size=common.get("size"),
            quality=common.get("quality"),
            usage={} if tally.earlier_unknown else tally.usage,
            cost=None if tally.earlier_unknown else tally.cost,
            batch=True,
            reused=0 < tally.total == tally.reused,
            aws_conn_id=self.aws_conn_id,
            error=type(error).__name__ if error else None,
            message=shortened(_message(tally, uri, error), MAX_MESSAGE) if error else None,
            billed=tally.billed if error else None,
            manifest=uri,
            budget=budget_of(self._batch.uses if self._batch else ()),
        )


def _message(tally: Tally, uri: str | None, error: BaseException) -> str:
    """Return the text of an error. An interruption such as a timeout does not say what is missing."""
    from airflow_provider_jojokey.exceptions import JojoKeyError

    if tally.complete or isinstance(error, JojoKeyError):
        return text_of(error)
    reason = shortened(text_of(error), MAX_REASON) or type(error).__name__
    return str(tally.error(f", because the task was interrupted ({reason})", uri))


_IN_FLIGHT = f"max_in_flight must be a whole number from 1 to {MAX_IN_FLIGHT:,}, not {{}}"
