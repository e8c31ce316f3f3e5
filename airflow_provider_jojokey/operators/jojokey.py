"""The operators. Importing this module costs a Dag file next to nothing: what is heavy waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_jojokey import assets
from airflow_provider_jojokey.arguments import converted, filled, is_literal
from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.operators.base import OPTIONS, ImageOperator
from airflow_provider_jojokey.results import Result, storable
from airflow_provider_jojokey.store.keys import Destination, bucket_problems, key_problems, split

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.img2.request import ImageRequest
    from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator
    from airflow_provider_jojokey.payments.job import ImageJob

__all__ = ["GenerateImageBatchOperator", "GenerateImageOperator"]

PROMPT_IN_LOG = 200
PAYS_AGAIN = "A retry sends a new request and pays for it, because of reuse='never'."


def __getattr__(name: str) -> Any:
    """Import the batch operator when it is first asked for: a Dag file with single images pays nothing for it.

    :raises AttributeError: if this module has no such name
    """
    if name == "GenerateImageBatchOperator":
        from airflow_provider_jojokey.operators.batch import GenerateImageBatchOperator

        return GenerateImageBatchOperator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class GenerateImageOperator(ImageOperator):
    """Turn a prompt into images in S3.

    All that describes the image and its place is templated. What is written literally is checked
    when the Dag is parsed; what templates give is checked before anything is sent.

    XCom: ``keys`` (the images' S3 keys), ``usage`` (the tokens billed) and, as the return value,
    a manifest of what was made. Never image data. One more, ``jojokey_images``, is for the UI.

    :param prompt: what to draw, 1 to 32,000 characters, or the name of a ``.prompt`` file beside the Dag
    :param s3_bucket: the bucket; leave it out if ``s3_key`` is a full ``s3://`` URL. The default is the
        ``bucket_name`` in the ``service_config`` of the AWS connection
    :param s3_key: the key; ``{index}`` is filled in with 0, 1, 2 …, ``{ext}`` with the image's real
        type (``png``, ``jpg``, ``webp``). With ``n`` above 1 and no ``{index}``, ``hero.png``
        gives ``hero-0.png``, ``hero-1.png`` …
    :param model: the model; by default the connection's, which by default is ``gpt-image-2``
    :param size: ``"auto"`` or ``"WIDTHxHEIGHT"`` in pixels: multiples of 16, the long edge at most
        3,840 and at most three times the short one, 655,360 to 8,294,400 pixels in all
    :param quality: ``"low"``, ``"medium"``, ``"high"`` or ``"auto"``
    :param n: how many images, 1 to 10
    :param background: ``"auto"``, ``"opaque"`` or ``"transparent"`` (PNG and WebP)
    :param output_format: ``"png"``, ``"jpeg"`` or ``"webp"``
    :param output_compression: 0 to 100 (JPEG and WebP)
    :param moderation: ``"auto"`` or ``"low"``
    :param extra_body: more fields of the request's body, as the gateway understands them
    :param stream: ask for the event stream, which keeps the connection of a long generation alive where
        the gateway knows it; one that does not answers as usual
    :param partial_images: previews in the event stream, 0 to 3; each costs some 100 output tokens
    :param reuse: which earlier payment for the same images counts. ``"run"``: a retry or a cleared task
        takes what its Dag run has paid for, a new Dag run pays for a new image. ``"always"``: so does any
        earlier run with the same request and key. ``"never"``: each attempt pays
    :param on_unknown_outcome: what to do where an earlier attempt gave no images and was, or may have
        been, billed: ``"fail"``, or ``"regenerate"``, which may pay twice
    :param max_tokens: the most tokens that this task may be billed for in one Dag run, over all its tries. What
        would pass it, by the published token figures, is not sent
    :param max_images: the same in images
    :param max_tokens_per_run: the most tokens that all tasks of the Dag run may be billed for which have this
        argument and write to the same bucket
    :param max_images_per_run: the same in images
    :param jojokey_conn_id: the connection to JojoKey
    :param aws_conn_id: the connection to S3
    :param s3_extra_args: additional S3 parameters for every object that is written, such as
        ``{"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "…"}``, ``ACL`` or ``RequestPayer``. Storage class,
        tags and cache control apply to images only. The default is ``[jojokey] s3_extra_args``
    :param replace: overwrite an object at ``s3_key`` that no receipt mentions. By default the task fails
        before it pays
    :param deferrable: free the worker's slot while the image is made; by default what
        ``[operators] default_deferrable`` says
    :raises ValueError: when the Dag is parsed, if a literal argument breaks a rule
    """

    template_fields: Sequence[str] = ("prompt", "s3_key", *OPTIONS)
    template_ext: Sequence[str] = (".prompt",)
    template_fields_renderers: ClassVar[dict[str, str]] = {"extra_body": "json"}
    ui_color = "#ece7fb"

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
        max_tokens_per_run: int | None = None,
        max_images_per_run: int | None = None,
        jojokey_conn_id: str = "jojokey_default",
        aws_conn_id: str | None = "aws_default",
        s3_extra_args: Mapping[str, Any] | str | None = None,
        replace: bool = False,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.s3_key = s3_key
        self.s3_bucket = s3_bucket
        self.model = model
        self.size = size
        self.quality = quality
        self.n = n
        self.background = background
        self.output_format = output_format
        self.output_compression = output_compression
        self.moderation = moderation
        self.extra_body = extra_body
        self.stream = stream
        self.partial_images = partial_images
        self.reuse = reuse
        self.on_unknown_outcome = on_unknown_outcome
        self.max_tokens = max_tokens
        self.max_images = max_images
        self.max_tokens_per_run = max_tokens_per_run
        self.max_images_per_run = max_images_per_run
        self.jojokey_conn_id = jojokey_conn_id
        self.aws_conn_id = aws_conn_id
        self.s3_extra_args = s3_extra_args
        self.replace = replace
        self.deferrable = _default_deferrable() if deferrable is None else deferrable
        self._check_literals(*self._place_problems())

    def execute(self, context: Context) -> dict[str, Any]:
        """Generate the images, store them, and return the manifest.

        :raises JojoKeyError: if there are no images; the message says whether it cost money
        """
        from airflow_provider_jojokey.exceptions import JojoKeyError
        from airflow_provider_jojokey.img2.estimate import expected_usage
        from airflow_provider_jojokey.operators.stopping import TaskStopped
        from airflow_provider_jojokey.payments.generate import Services, generate_images
        from airflow_provider_jojokey.settings import Settings

        self._note_start()
        self._set_label(context, self.s3_key)
        self._convert_arguments("prompt", "s3_key", "stream", "partial_images")
        job = self._job(context)
        request = job.request
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
        if self.deferrable:
            self._defer(job)
        services = Services(
            self.hook, self.store, Settings.from_airflow_config(), on_send=self._stop_switch.note_send
        )
        try:
            self._create_clients()
            with self._stop_switch.interruptible():
                generated = generate_images(job, services)
        except JojoKeyError as error:
            raise self._failed(context, error) from None
        except TaskStopped:
            raise self._failed(context, self._stop_switch.error()) from None
        finally:
            self._stop_switch.end()
        return self._succeeded(context, generated.manifest)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resume after the trigger fires.

        :raises JojoKeyError: the error that the trigger reported
        """
        from airflow_provider_jojokey.exceptions import JojoKeyError

        if event and "job" in event:
            self._resume(event["job"])
        self._set_label(context, self.s3_key)
        if event and "manifest" in event:
            return self._succeeded(context, event["manifest"])
        raise self._failed(context, JojoKeyError.from_json((event or {}).get("error") or _NO_EVENT))

    def _job(self, context: Context) -> ImageJob:
        from airflow_provider_jojokey.payments.job import ImageJob

        request = self._request()
        task_limit, run_limit = self._limits()
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

    def _defer(self, job: ImageJob) -> None:
        from airflow_provider_jojokey.triggers.jojokey import GenerateImageTrigger

        timeout = self.execution_timeout
        deadline = None if timeout is None else self._began + timeout.total_seconds()
        self.defer(
            trigger=GenerateImageTrigger(
                job.to_json(), self.jojokey_conn_id, self.aws_conn_id, self.store.extra_args, deadline
            ),
            method_name="execute_complete",
        )

    def _resume(self, job: dict[str, Any]) -> None:
        """Restore what was requested: a template with the current time would render differently now.

        :param job: see :meth:`ImageJob.to_json`
        """
        for name in FIELDS:
            setattr(self, name, job["request"][name])
        self.s3_bucket, self.s3_key = job["destination"]["bucket"], job["destination"]["key"]
        self.reuse, self.on_unknown_outcome = job["reuse"], job["on_unknown_outcome"]
        connection = filled(self.aws_conn_id)
        self.aws_conn_id = None if connection is None else str(connection)

    def _succeeded(self, context: Context, manifest: dict[str, Any]) -> dict[str, Any]:
        self._push(context, "keys", [image["key"] for image in manifest["images"]])
        self._push(context, "usage", manifest["usage"])
        result = Result.from_manifest(manifest, prompt=str(self.prompt), aws_conn_id=self.aws_conn_id)
        self._push_result(context, result)
        self._set_label(context, self.s3_key, paid=True)
        manifest = storable(manifest)
        if self.outlets:
            try:
                assets.add_image_event_extras(context, self.outlets, manifest)
            except Exception:  # whatever it is, the images are paid for
                self.log.exception("The asset events could not be written.")
        return manifest

    def _failed(self, context: Context, error: JojoKeyError) -> JojoKeyError:
        from airflow_provider_jojokey.exceptions import JojoKeyFailure
        from airflow_provider_jojokey.payments.receipt import total_usage

        # Also after a failure: without it, the sum over the XComs would be below the bill.
        self._push(context, "usage", error.usage or total_usage(()))
        options = {name: getattr(self, name) for name in ("model", "size", "quality")}
        result = Result.from_error(
            error, prompt=str(self.prompt), aws_conn_id=self.aws_conn_id, options=options
        )
        self._push_result(context, result)
        self._set_label(context, self.s3_key, paid=True)
        if self.reuse == "never" and not isinstance(error, JojoKeyFailure):
            return error.changed(retry=PAYS_AGAIN)
        return error

    def on_kill(self) -> None:
        """Send nothing more. A response in flight is paid for: it has a few seconds to arrive.

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
            raise JojoKeyRequestError(f"The place in S3 is not valid: {error}.") from None

    def _place_problems(self) -> list[str]:
        """Return what is wrong with the place in S3, as far as it is known when the Dag is parsed."""
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
    "todo": "Clear the task: it reads its receipt first, and stores or reuses what was paid for.",
}


def _default_deferrable() -> bool:
    from airflow.providers.common.compat.sdk import conf

    return bool(conf.getboolean("operators", "default_deferrable", fallback=False))
