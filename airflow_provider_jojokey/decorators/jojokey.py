"""``@task.jojokey_image``: a function's words become images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.operators.jojokey import GenerateImageOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, TaskDecorator

OPTIONS = (*FIELDS, "s3_bucket", "s3_key", "reuse", "on_unknown_outcome")
"""What the function may decide."""


class _AtRunTime:
    """Stands for what the function will give."""

    def __repr__(self) -> str:
        return "what the function returns"


AT_RUN_TIME: Any = _AtRunTime()


class JojoKeyImageDecoratedOperator(DecoratedOperator, GenerateImageOperator):
    """Calls a function for the prompt, and is a :class:`GenerateImageOperator` for the rest.

    What the function returns is taken as it is: braces in it are no template, so a prompt from elsewhere
    cannot read variables or connections.

    :param python_callable: returns the prompt, or a dict of options with ``prompt`` among them
    :param s3_key: as in :class:`GenerateImageOperator`; leave it out where the function returns one
    :param op_args: its positional arguments (templated)
    :param op_kwargs: its keyword arguments (templated)
    :param kwargs: the arguments of :class:`GenerateImageOperator`; what the function returns comes before them
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *GenerateImageOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **GenerateImageOperator.template_fields_renderers,
    }
    custom_operator_name = "@task.jojokey_image"
    overwrite_rtif_after_execution = True
    """The UI shows the prompt that the function has given."""

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

        :raises JojoKeyError: if there are no images; the message says whether it cost money
        """
        self._note_start()
        context_merge(context, self.op_kwargs)
        arguments = determine_kwargs(self.python_callable, self.op_args, context)
        for name, value in self._options(self.python_callable(*self.op_args, **arguments)).items():
            setattr(self, name, value)
        manifest: dict[str, Any] = super().execute(context)
        return manifest

    def _options(self, returned: Any) -> Mapping[str, Any]:
        """Return what the function has decided.

        :raises JojoKeyRequestError: if it has given no prompt, or an option that there is not
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        name = getattr(self.python_callable, "__name__", "the function")
        returned = {"prompt": returned} if isinstance(returned, str) else returned
        if not isinstance(returned, Mapping) or not isinstance(returned.get("prompt"), str):
            raise JojoKeyRequestError(
                f"{name} must return the prompt, or a dict of options with 'prompt' among them, not "
                f"{type(returned).__name__}."
            )
        unknown = [str(one)[:50] for one in returned if one not in OPTIONS]
        if unknown:
            raise JojoKeyRequestError(
                f"{name} returned {', '.join(unknown)}, which it cannot decide. It may return "
                f"{', '.join(OPTIONS)}."
            )
        if self.s3_key is AT_RUN_TIME and "s3_key" not in returned:
            raise JojoKeyRequestError(
                f"s3_key is missing: give it to @task.jojokey_image, or return it from {name}. "
            )
        return returned


def jojokey_image_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns a prompt: ``@task.jojokey_image(s3_key="s3://posters/hero.png")``.

    :param python_callable: returns the prompt, or a dict of options with ``prompt`` among them
    :param kwargs: the arguments of :class:`GenerateImageOperator`
    """
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=JojoKeyImageDecoratedOperator,
        **{"multiple_outputs": False, **kwargs},  # not inferred: what is returned is the manifest
    )
