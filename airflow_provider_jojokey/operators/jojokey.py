"""The operators. This module has no heavy imports, because Dag files import it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.integrations import assets
from airflow_provider_jojokey.operators.arguments import converted, filled, is_literal
from airflow_provider_jojokey.operators.base import ImageOperator, imports_without_collection
from airflow_provider_jojokey.operators.templates import OPTIONS, TemplateFields
from airflow_provider_jojokey.store.keys import Destination, bucket_problems, key_problems, split

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.img2.request import ImageRequest
    from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator
    from airflow_provider_jojokey.payments.generate import Generated
    from airflow_provider_jojokey.payments.job import ImageJob
    from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger

__all__ = ["GenerateImageBatchOperator", "GenerateImageOperator"]

PROMPT_IN_LOG = 200


def __getattr__(name: str) -> Any:
    """Import the batch operator on first use, so that other Dag files don't pay for it.

    :raises AttributeError: if this module has no such name
    """
    if name == "GenerateImageBatchOperator":
        from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator

        return GenerateImageBatchOperator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class GenerateImageOperator(ImageOperator):
    """Turn a prompt into images in S3.

    All arguments that describe the image and its location are templated. Literal values are checked when the Dag
    is parsed, rendered values before anything is sent.

    XComs: ``keys`` (the images' S3 keys), ``usage`` (the billed tokens) and, as the return value, a manifest of
    the images. The XCom ``jojokey_images`` is for the UI. No XCom contains image data.

    :param prompt: a description of the image, 1 to 32,000 characters, or the name of a ``.prompt`` file next to
        the Dag file
    :param s3_bucket: the bucket; leave it out if ``s3_key`` is a full ``s3://`` URL. The default is the
        ``bucket_name`` in the ``service_config`` of the AWS connection
    :param s3_key: the key; ``{index}`` is replaced by 0, 1, 2 …, and ``{ext}`` by the image's actual type
        (``png``, ``jpg``, ``webp``). With ``n`` above 1 and no ``{index}``, ``hero.png`` becomes ``hero-0.png``,
        ``hero-1.png`` …
    :param model: the model; by default the connection's default model, or ``gpt-image-2``
    :param size: ``"auto"`` or ``"WIDTHxHEIGHT"`` in pixels: multiples of 16, the long edge at most
        3,840 and at most three times the short one, 655,360 to 8,294,400 pixels in total
    :param quality: ``"low"``, ``"medium"``, ``"high"`` or ``"auto"``
    :param n: number of images, 1 to 10
    :param background: ``"auto"``, ``"opaque"`` or ``"transparent"`` (PNG and WebP)
    :param output_format: ``"png"`` (the API's default), ``"jpeg"`` or ``"webp"``
    :param output_compression: 0 to 100 (JPEG and WebP)
    :param moderation: ``"auto"`` or ``"low"``
    :param extra_body: additional fields of the request's body, passed through to the gateway;
        ``{"response_format": None}`` omits that field
    :param stream: request an event stream, which keeps the connection alive during a long generation. A gateway
        without streams returns a normal response
    :param partial_images: number of previews in the event stream, 0 to 3 (by default 2); each costs about 100
        output tokens
    :param reuse: which earlier payment for the same images is reused. ``"run"``: a retry or a cleared task reuses
        the images of its Dag run, and a new Dag run pays for new ones. ``"always"``: the task also reuses images
        of earlier runs with the same request and key. ``"never"``: each try pays
    :param on_unknown_outcome: what to do if an earlier attempt produced no images and was, or may have been,
        billed: ``"fail"``, or ``"regenerate"``, which may pay twice
    :param max_tokens: maximum number of tokens billed to this task in one Dag run, over all its tries. A request
        whose estimate exceeds the limit is not sent
    :param max_images: the same in images
    :param max_cost: the same in money, in the currency of ``price_per_million``
    :param max_tokens_per_run: maximum number of tokens billed to all tasks of the Dag run that have this argument
        and write to the same bucket
    :param max_images_per_run: the same in images
    :param max_cost_per_run: the same in money
    :param jojokey_conn_id: the connection to JojoKey
    :param aws_conn_id: the connection to S3
    :param s3_extra_args: additional S3 parameters for every object that is written, such as
        ``{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "…"}``, ``ACL`` or ``RequestPayer``. Storage class,
        tags and cache control apply to images only. The default is ``[jojokey] s3_extra_args``
    :param replace: overwrite an object at ``s3_key`` that no receipt mentions. By default the task fails
        before it pays
    :param deferrable: free the worker slot while the image is generated; the default is
        ``[operators] default_deferrable``
    :raises ValueError: when the Dag is parsed, if a literal argument breaks a rule
    """

    template_fields: Sequence[str] = TemplateFields("prompt", "s3_key", *OPTIONS)  # type: ignore[assignment]
    template_ext: Sequence[str] = (".prompt",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"extra_body": "json"}
    ui_color = "#ece7fb"

    prompt: str
    s3_key: str
    deferrable: bool

    def __init__(
        self,
        *,
        prompt: str,
        s3_key: str,
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
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        deferrable = _default_deferrable() if filled(deferrable) is None else deferrable
        self._set_arguments(locals())
        self._check_literals(*self._deferrable_problems(), *self._destination_problems())

    def execute(self, context: Context) -> dict[str, Any]:
        """Generate the images, store them, and return the manifest.

        :raises JojoKeyError: if there are no images; the message says whether you were charged
        """
        self._record_start()
        self._set_label(context, self.s3_key)
        with self._reported(context):
            job = self._job(context)
            if not self.deferrable:
                return self._succeeded(context, self._generate(job).manifest)
            trigger = self._trigger(job)
        self.defer(trigger=trigger, method_name="execute_complete")

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume a deferred task. Airflow also calls this if the trigger failed or could not be loaded.

        :raises JojoKeyError: if there are no images; the message says whether you were charged
        """
        from airflow.providers.common.compat.sdk import AirflowException

        from airflow_provider_jojokey.img2.redact import clean

        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except AirflowException as error:
            if hasattr(self, next_method):
                raise
            # Without the XComs of a failed task, the sum over the XComs would be lower than the bill.
            return self.execute_complete(context, {"error": {**_NO_EVENT, "detail": clean(str(error))}})

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resume after the trigger fires.

        :raises JojoKeyError: the error that the trigger reported
        """
        from airflow_provider_jojokey.exceptions import JojoKeyError

        if event and "job" in event:
            self._resume(event["job"])
        self._set_label(context, self.s3_key)
        # An earlier run of the trigger may have sent a request.
        with self._reported(context, sent=True):
            if event and "manifest" in event:
                return self._succeeded(context, event["manifest"])
            raise JojoKeyError.from_json((event or {}).get("error") or _NO_EVENT)

    @contextmanager
    def _reported(self, context: Context, sent: bool = False) -> Iterator[None]:
        """Report how the task fails in the block, also if an interruption such as a timeout cuts the report short.

        :param sent: whether this try may have sent a request, apart from what the error and the switch show
        """
        with imports_without_collection():
            from airflow_provider_jojokey.exceptions import JojoKeyError
            from airflow_provider_jojokey.operators.stopping import TaskStopped
            from airflow_provider_jojokey.results import MAX_PROMPT, Result, shortened

        failure: JojoKeyError | None = None
        try:
            try:
                yield
                return
            except JojoKeyError as error:
                failure = error
            except TaskStopped:
                failure = self._stop_switch.error()
            reported = self._failed(context, failure, sent)
        except BaseException as interruption:
            request = {name: getattr(self, name) for name in ("model", "size", "quality")}
            if failure is not None:  # it has interrupted the read of the receipts
                result = Result.from_error(
                    failure, prompt=str(self.prompt), aws_conn_id=self.aws_conn_id, options=request
                )
                self._push_failure(context, result)
            else:
                prompt = shortened(str(self.prompt), MAX_PROMPT)
                self._report_interruption(context, interruption, sent, prompt=prompt, **request)
            raise
        finally:
            self._stop_switch.end()
        raise reported from None

    def _job(self, context: Context) -> ImageJob:
        from airflow_provider_jojokey.img2.estimate import expected_usage
        from airflow_provider_jojokey.payments.job import ImageJob

        self._convert_arguments("prompt", "s3_key", "stream", "partial_images")
        request = self._request()
        task_limit, run_limit = self._limits()
        usage = expected_usage(request)
        self.log.info(
            "Generating %d of %s %s, about %s tokens (%s): %s",
            request.n,
            request.size,
            request.quality,
            f"{usage['total_tokens']:,}",
            self.hook.prices.cost_of(usage),
            self._short_prompt(),
        )
        return ImageJob(
            request=request,
            destination=self._destination(request.n),
            owner=self._owner(context),
            reuse=self.reuse,
            on_unknown_outcome=self.on_unknown_outcome,
            task_limit=task_limit,
            run_limit=run_limit,
            replace=self.replace,
        )

    def _generate(self, job: ImageJob) -> Generated:
        with imports_without_collection():
            from airflow_provider_jojokey.payments.generate import Services, generate_images
            from airflow_provider_jojokey.settings import Settings

        settings = Settings.from_airflow_config()
        services = Services(self.hook, self.store, settings, on_send=self._stop_switch.record_send)
        self._create_clients()
        with self._stop_switch.interruptible():
            return generate_images(job, services)

    def _trigger(self, job: ImageJob) -> GenerateImageTrigger:
        from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger

        timeout = self.execution_timeout
        deadline = None if timeout is None else self._began + timeout.total_seconds()
        return GenerateImageTrigger(
            job.to_json(), self.jojokey_conn_id, self.aws_conn_id, self.store.extra_args, deadline
        )

    def _resume(self, job: dict[str, Any]) -> None:
        """Restore the request, because a template with the current time would now render differently.

        :param job: see :meth:`ImageJob.to_json`
        """
        for name in FIELDS:
            setattr(self, name, job["request"][name])
        self.s3_bucket, self.s3_key = job["destination"]["bucket"], job["destination"]["key"]
        self.reuse, self.on_unknown_outcome = job["reuse"], job["on_unknown_outcome"]
        connection = filled(self.aws_conn_id)
        self.aws_conn_id = None if connection is None else str(connection)

    def _succeeded(self, context: Context, manifest: dict[str, Any]) -> dict[str, Any]:
        from airflow_provider_jojokey.results import Result, storable

        self._push(context, "keys", [image["key"] for image in manifest["images"]])
        self._push(context, "usage", manifest["usage"])
        result = Result.from_manifest(manifest, prompt=str(self.prompt), aws_conn_id=self.aws_conn_id)
        self._push_result(context, result)
        self._set_label(context, self.s3_key, paid=True)
        manifest = storable(manifest)
        if self.outlets:
            try:
                assets.add_image_event_extras(context, self.outlets, manifest)
            except Exception:  # must not fail a task with paid images
                self.log.exception("Could not write the asset events.")
        return manifest

    def _failed(self, context: Context, error: JojoKeyError, sent: bool = False) -> JojoKeyError:
        """Report a failure, and return the error to raise.

        :param sent: whether this try may have sent a request, apart from what the error and the switch show
        """
        from airflow_provider_jojokey.results import Result

        error = self._with_settings(error)
        if error.usage is None:
            billed = self._billed_so_far(context, sent or error.sent or self._stop_switch.sent)
            if billed is not None:
                error = error.changed(usage=billed.usage, cost=billed.cost.to_json())
        options = {name: getattr(self, name) for name in ("model", "size", "quality")}
        result = Result.from_error(
            error, prompt=str(self.prompt), aws_conn_id=self.aws_conn_id, options=options
        )
        self._push_failure(context, result)
        self._set_label(context, self.s3_key, paid=True)
        return error

    def on_kill(self) -> None:
        """Send nothing more. A response in flight is billed, so it has a few seconds to arrive.

        :raises TaskStopped: if nothing has been sent, to interrupt ``execute``
        """
        self._stop_switch.request(self.hook if "hook" in vars(self) else None)

    def _request(self) -> ImageRequest:
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError
        from airflow_provider_jojokey.img2.request import ImageRequest

        values = {name: getattr(self, name) for name in FIELDS}
        values["model"] = values["model"] or self.hook.settings.default_model
        values["prompt"] = values["prompt"].strip()
        try:
            return ImageRequest(**values)
        except ValueError as error:
            raise JojoKeyRequestError(f"The request is not valid: {error}.") from None

    def _destination(self, n: int) -> Destination:
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        try:
            return Destination.parse(self.s3_bucket, self.s3_key, n, self._default_bucket)
        except ValueError as error:
            raise JojoKeyRequestError(f"The S3 destination is not valid: {error}.") from None

    def _destinations(self) -> Iterator[Destination]:
        yield self._destination(1)  # all images share one receipt

    def _deferrable_problems(self) -> list[str]:
        """Convert ``deferrable``, which is not a template. A Dag from YAML may have it as text."""
        if type(self.deferrable) is bool:
            return []
        try:
            vars(self)["deferrable"] = converted("deferrable", self.deferrable)
        except ValueError as error:
            return [str(error)]
        return []

    def _destination_problems(self) -> list[str]:
        """Return the problems of literal values of s3_bucket and s3_key."""
        if not (is_literal(self.s3_key) and is_literal(self.s3_bucket)):
            return []
        try:
            bucket, key = split(converted("s3_bucket", self.s3_bucket), converted("s3_key", self.s3_key))
        except ValueError as error:
            return [str(error)]
        return [*(bucket_problems(bucket) if bucket else ()), *key_problems(key)]

    def _short_prompt(self) -> str:
        text = " ".join(self.prompt.split())
        return text if len(text) <= PROMPT_IN_LOG else f"{text[:PROMPT_IN_LOG]}… ({len(text):,} characters)"


_NO_EVENT = {
    "class": "JojoKeyError",
    "what": "The trigger ended without a result.",
    "billed": "unknown",
    "sent": True,
    "todo": "Clear the task: it first reads its receipt, and then stores or reuses paid images.",
}


@cache
def _default_deferrable() -> bool:
    """Return the setting of this process. Airflow's own operators also read it once, when they are imported."""
    from airflow.providers.common.compat.sdk import conf

    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))
