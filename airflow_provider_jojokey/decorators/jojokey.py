"""``@task.jojokey_image``: generate images from the prompt that a function returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowSkipException,
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.operators.arguments import filled
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator
from airflow_provider_jojokey.operators.templates import TemplateFields

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator

    from airflow_provider_jojokey.payments.totals import Billed

OPTIONS = (*FIELDS, "s3_bucket", "s3_key", "reuse", "on_unknown_outcome")
"""The options that the function may return."""


class _AtRunTime:
    """Placeholder for a value that the function returns."""

    def __repr__(self) -> str:
        return "what the function returns"


AT_RUN_TIME: Any = _AtRunTime()


class JojoKeyImageDecoratedOperator(DecoratedOperator, GenerateImageOperator):
    """A :class:`GenerateImageOperator` that calls a function for the prompt.

    The returned values are not rendered as templates, so a prompt from outside cannot read variables or connections.

    :param python_callable: returns the prompt, or a dict of options that includes ``prompt``
    :param s3_key: as in :class:`GenerateImageOperator`; omit it if the function returns one
    :param op_args: the function's positional arguments (templated)
    :param op_kwargs: the function's keyword arguments (templated)
    :param kwargs: the arguments of :class:`GenerateImageOperator`; values from the function take precedence
    """

    template_fields: Sequence[str] = TemplateFields(  # type: ignore[assignment]
        *DecoratedOperator.template_fields, *GenerateImageOperator.template_fields
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **GenerateImageOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.jojokey_image"
    overwrite_rtif_after_execution = True
    """Makes the UI show the prompt that the function returned."""

    _returned = False
    """Whether the function has returned options that can be used."""

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        s3_key: str = AT_RUN_TIME,
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            prompt=AT_RUN_TIME,
            s3_key=s3_key,
            **kwargs,
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Call the function, generate the images, store them, and return the manifest.

        :raises JojoKeyError: if there are no images; the message says whether you were charged
        """
        self._record_start()
        try:
            context_merge(context, self.op_kwargs)
            arguments = determine_kwargs(self.python_callable, self.op_args, context)
            options = self._options(self.python_callable(*self.op_args, **arguments))
        except AirflowSkipException:
            raise
        except BaseException as error:  # also a timeout
            self._report_interruption(context, error)
            raise
        self._returned = True
        for name, value in options.items():
            setattr(self, name, value)
        manifest: dict[str, Any] = super().execute(context)
        return manifest

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Resume after the trigger fires.

        :raises JojoKeyError: the error that the trigger reported
        """
        self._returned = bool(event and "job" in event)  # otherwise the function's values are not known
        if not self._returned:
            self.prompt, self.s3_key = "", "" if self.s3_key is AT_RUN_TIME else self.s3_key
        manifest: dict[str, Any] = super().execute_complete(context, event)
        return manifest

    def _billed_so_far(self, context: Context, sent: bool) -> Billed | None:
        from airflow_provider_jojokey.payments.totals import Billed

        billed = super()._billed_so_far(context, sent)
        earlier = sent or context["ti"].try_number > 1
        if not self._returned and earlier and billed == Billed():
            return None  # the function may have returned another key earlier
        return billed

    def _options(self, returned: Any) -> Mapping[str, Any]:
        """Check and return the function's options, except empty ones: the decorator's own values apply.

        :raises JojoKeyRequestError: if there is no prompt, or an unknown option
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        name = getattr(self.python_callable, "__name__", "the function")
        returned = {"prompt": returned} if isinstance(returned, str) else returned
        if not isinstance(returned, Mapping) or not isinstance(returned.get("prompt"), str):
            raise JojoKeyRequestError(
                f"{name} must return the prompt, or a dict of options that includes 'prompt', not "
                f"{type(returned).__name__}."
            )
        unknown = [str(option)[:50] for option in returned if option not in OPTIONS]
        if unknown:
            raise JojoKeyRequestError(
                f"{name} returned the unknown options {', '.join(unknown)}. It may return "
                f"{', '.join(OPTIONS)}."
            )
        given = {option: value for option, value in returned.items() if filled(value) is not None}
        if self.s3_key is AT_RUN_TIME and "s3_key" not in given:
            raise JojoKeyRequestError(
                f"s3_key is missing: pass it to @task.jojokey_image, or return it from {name}."
            )
        return {"prompt": returned["prompt"], **given}


def jojokey_image_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Turn a function that returns a prompt into a task: ``@task.jojokey_image(s3_key="s3://posters/hero.png")``.

    :param python_callable: returns the prompt, or a dict of options that includes ``prompt``
    :param kwargs: the arguments of :class:`GenerateImageOperator`
    """
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=JojoKeyImageDecoratedOperator,
        **{"multiple_outputs": False, **kwargs},  # not inferred from the function, which returns no manifest
    )
