"""The base class of the operators. Its imports are light: every parse of a Dag file pays for them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_jojokey.arguments import is_literal
from airflow_provider_jojokey.choices import LIMITS, ON_UNKNOWN_OUTCOME, REUSE
from airflow_provider_jojokey.img2.rules import FIELDS, problems
from airflow_provider_jojokey.links.jojokey import ImagesLink, S3ConsoleLink
from airflow_provider_jojokey.policies import JojoKeyRetryPolicy
from airflow_provider_jojokey.store.extra_args import parse_extra_args

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_jojokey.operators.stopping import StopSwitch
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.job import Limit
    from airflow_provider_jojokey.store.s3 import ImageStore

OPTIONS = (
    "s3_bucket",
    "model",
    "size",
    "quality",
    "n",
    "background",
    "output_format",
    "output_compression",
    "moderation",
    "extra_body",
    "reuse",
    "on_unknown_outcome",
    *LIMITS,
    "jojokey_conn_id",
    "aws_conn_id",
    "s3_extra_args",
    "replace",
)
"""Templated arguments that all operators have."""


class ImageOperator(BaseOperator):
    """An operator that generates images: checks of its arguments, links and lineage.

    Each operator names all of its arguments itself, for editors, type checkers and the reference.
    """

    aws_conn_id: str | None
    s3_extra_args: Any
    operator_extra_links = (ImagesLink(), S3ConsoleLink())
    ui_fgcolor = "#2b1a66"

    _ui_result: dict[str, Any] | None = None
    """The XCom value for the UI, once the task has pushed it."""
    _uris: list[str] | None = None
    """The URIs of all images, if the XCom value does not list them and they are not too many."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if getattr(self, "retry_policy", self) is None:
            self.retry_policy = JojoKeyRetryPolicy()

    @cached_property
    def _stop_switch(self) -> StopSwitch:
        from airflow_provider_jojokey.operators.stopping import StopSwitch

        return StopSwitch()

    # Called by OpenLineage's listener if it is installed.

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the images, the model and the cost."""
        from airflow_provider_jojokey.lineage import lineage_of

        return lineage_of(self._ui_result, self._uris)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return what was received, the model and the cost."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def _owner(self, context: Context) -> Owner:
        """Return the task that the images belong to."""
        from airflow_provider_jojokey.payments.attempt import Owner

        ti = context["ti"]
        map_index = getattr(ti, "map_index", -1)
        return Owner(
            ti_id=str(getattr(ti, "id", None) or ""),
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=-1 if map_index is None else map_index,
            try_number=ti.try_number,
        )

    def _limits(self) -> tuple[Limit, Limit]:
        """Return the limits of the task and of the Dag run.

        :raises JojoKeyRequestError: if a limit is not a number
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError
        from airflow_provider_jojokey.payments.budget import parse_limits

        try:
            return parse_limits({name: getattr(self, name) for name in LIMITS})
        except ValueError as error:
            raise JojoKeyRequestError(f"{error}.") from None

    def _image_store(self, connections: int | None = None) -> ImageStore:
        """Return the S3 store with the task's and the worker's additional parameters.

        :raises JojoKeyRequestError: if a parameter can't be used
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError
        from airflow_provider_jojokey.settings import Settings
        from airflow_provider_jojokey.store.s3 import ImageStore

        try:
            extra = {**Settings.from_airflow_config().s3_extra_args, **parse_extra_args(self.s3_extra_args)}
        except ValueError as error:
            raise JojoKeyRequestError(f"{error}.") from None
        return ImageStore(self.aws_conn_id, connections=connections, extra_args=extra)

    def _push(self, context: Context, key: str, value: Any) -> None:
        if self.do_xcom_push:
            context["ti"].xcom_push(key, value)

    def _flag(self, name: str) -> bool:
        """Return the value of a flag, whatever a template rendered it to.

        :raises JojoKeyRequestError: if it is neither true nor false
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        value = getattr(self, name)
        known = {"true": True, "1": True, "false": False, "0": False, "none": False, "": False}
        found = known.get(str(value).strip().lower())
        if found is None:
            raise JojoKeyRequestError(f"{name} must be true or false, not {str(value)[:40]!r}.")
        return found

    def _check_literals(self, *more: str) -> None:
        """Check what is known when the Dag is parsed.

        :param more: what the operator itself has found
        :raises ValueError: if anything was found
        """
        literals = {
            name: value
            for name in FIELDS
            if hasattr(self, name)
            and is_literal(value := getattr(self, name))
            and not (name == "model" and value is None)
        }
        if str(literals.get("prompt", "")).endswith(".prompt"):
            del literals["prompt"]
        found = list(problems(literals))
        for name, choices in (("reuse", REUSE), ("on_unknown_outcome", ON_UNKNOWN_OUTCOME)):
            if is_literal(value := getattr(self, name)) and value not in choices:
                found.append(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        if is_literal(self.s3_extra_args):
            try:
                parse_extra_args(self.s3_extra_args)
            except ValueError as error:
                found.append(str(error))
        found += more
        if found:
            raise ValueError(f"{type(self).__name__} {self.task_id!r}: {'; '.join(found)}")
