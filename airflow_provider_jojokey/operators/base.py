"""The base class of the operators. Every parse of a Dag file imports it, so it has no heavy imports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_jojokey.img2.rules import FIELDS, problems
from airflow_provider_jojokey.links.jojokey import ImagesLink, S3ConsoleLink, names_endpoint
from airflow_provider_jojokey.operators.arguments import (
    TEXTS,
    converted,
    has_template,
    is_default,
    is_literal,
)
from airflow_provider_jojokey.payments.options import LIMITS
from airflow_provider_jojokey.policies import JojoKeyRetryPolicy
from airflow_provider_jojokey.results import XCOM_KEY, Result, storable

if TYPE_CHECKING:
    from collections.abc import Iterator

    import jinja2
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
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


OPTIONS_AT_PARSING = (
    *FIELDS,
    "reuse",
    "on_unknown_outcome",
    "max_in_flight",
    "s3_extra_args",
    "replace",
    *LIMITS,
)
"""Arguments that are checked when the Dag is parsed."""

MAX_LABEL = 250
"""Characters of a mapped task's label in Airflow's database."""
_LABEL = "{{ task.map_label }}"


class ImageOperator(BaseOperator):
    """The common part of the operators: argument checks, links and lineage.

    Each operator declares all its arguments itself, for editors, type checkers and the reference.
    """

    jojokey_conn_id: str
    aws_conn_id: str | None
    s3_extra_args: Any
    operator_extra_links = (ImagesLink(), S3ConsoleLink())
    ui_fgcolor = "#2b1a66"

    _ui_result: dict[str, Any] | None = None
    """The XCom value for the UI, after the task has pushed it."""
    _began = 0.0
    """When :meth:`execute` began, in seconds since 1970."""
    _label = ""
    _label_template: str | None = None
    _upstream_values: list[Any] | None = None
    _uris: list[str] | None = None
    """The URIs of all images, if the XCom value does not list all of them and there are not too many."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._upstream_arguments: set[str] = set()
        if getattr(self, "retry_policy", self) is None:
            self.retry_policy = JojoKeyRetryPolicy()

    @cached_property
    def hook(self) -> JojoKeyHook:
        """The JojoKey hook."""
        from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook

        return JojoKeyHook(self.jojokey_conn_id)

    @cached_property
    def store(self) -> ImageStore:
        """The S3 store."""
        return self._image_store()

    @cached_property
    def _stop_switch(self) -> StopSwitch:
        from airflow_provider_jojokey.operators.stopping import StopSwitch

        return StopSwitch()

    # Called by OpenLineage's listener if it is installed.

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the images, the model and the cost."""
        from airflow_provider_jojokey.integrations.lineage import lineage_of

        return lineage_of(self._ui_result, self._uris)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Return the received images, the model and the cost."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def _record_start(self) -> None:
        self._began = self._began or time.time()

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
        from airflow_provider_jojokey.payments.job import parse_limits

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
            own = converted("s3_extra_args", self.s3_extra_args) or {}
            extra = {**Settings.from_airflow_config().s3_extra_args, **own}
        except ValueError as error:
            raise JojoKeyRequestError(f"{error}.") from None
        return ImageStore(self.aws_conn_id, connections=connections, extra_args=extra)

    def _create_clients(self) -> None:
        """Read the connections and create both clients, outside of the interruptible part.

        The imports allocate a lot and free nothing, so the garbage collector would only cost time (measured: 4 %
        of a task's CPU).

        :raises JojoKeyError: if a connection can't be used
        """
        import gc

        enabled = gc.isenabled()
        gc.disable()
        try:
            self.hook.client, self.store.client  # noqa: B018
        finally:
            if enabled:
                gc.enable()

    def _default_bucket(self) -> str | None:
        """Return the AWS connection's default bucket.

        :raises JojoKeyError: if the connection can't be used
        """
        from airflow_provider_jojokey.store.default_bucket import default_bucket

        return default_bucket(self.aws_conn_id)

    def _push(self, context: Context, key: str, value: Any) -> None:
        """Push an XCom. Errors are only logged, because a paid image matters more than an XCom."""
        if not self.do_xcom_push:
            return
        try:
            context["ti"].xcom_push(key, storable(value))
        except Exception:
            self.log.exception(
                "Could not store the XCom %r. The images and receipts in S3 are complete.", key
            )

    def _push_result(self, context: Context, result: Result) -> None:
        """Push the XCom for the UI."""
        self._ui_result = result.to_xcom()
        self._push(context, XCOM_KEY, self._ui_result)
        store = vars(self).get("store")
        if store is not None and names_endpoint(store.connection_extra or {}):
            # Airflow calls its API for each link, also for an empty one. A subclass may define a property.
            links = (link for link in self.operator_extra_links if not isinstance(link, S3ConsoleLink))
            vars(self)["operator_extra_links"] = tuple(links)

    # Templates and arguments

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render the templates in an argument.

        Values from an upstream task are not templates, but Airflow renders those of ``expand_kwargs(upstream())``.
        Then text from outside could read connections and variables. Text arguments also stay text with
        ``render_template_as_native_obj=True``, which would turn the key ``2026_11_11`` into a number.

        :param content: an argument, or a part of one
        :param context: values for the templates
        """
        try:
            return self._rendered(content, context, jinja_env, seen_oids)
        except Exception:
            if not _is_resumed(context):
                raise
            # For example, an upstream XCom was deleted. The trigger has the values from before the payment.
            self.log.warning(
                "A template can't be rendered any more, but the images don't need it.", exc_info=True
            )
            return content

    def _rendered(
        self, content: Any, context: Context, jinja_env: jinja2.Environment | None, seen_oids: set[int] | None
    ) -> Any:
        if id(content) in (seen_oids or ()):
            return content  # Airflow has marked it as a value from upstream
        if any(content is value for value in self._values_from_upstream(context)):
            return content
        if isinstance(content, str) and self._renders_natively and self._is_text_argument(content):
            environment = self.dag.get_template_env(force_sandboxed=True)
            is_file = content.endswith(tuple(self.template_ext))
            template = environment.get_template(content) if is_file else environment.from_string(content)
            return template.render(context)
        return super().render_template(content, context, jinja_env, seen_oids)

    @property
    def _renders_natively(self) -> bool:
        own = getattr(self, "render_template_as_native_obj", None)
        return bool(getattr(self.get_dag(), "render_template_as_native_obj", False) if own is None else own)

    def _is_text_argument(self, content: Any) -> bool:
        return any(content is getattr(self, name, None) for name in TEXTS)

    def _values_from_upstream(self, context: Context) -> list[Any]:
        """Return the values that an upstream task chose through ``expand_kwargs``, and record their arguments.

        These are the values of the mapped arguments that are not in the Dag file.
        """
        if self._upstream_values is None:
            self._upstream_values = []
            dag = self.get_dag()
            mapped = dag.task_dict.get(self.task_id) if dag else None
            for expansion, arguments, written in _expansions(mapped, self):
                if not _is_from_upstream(expansion, getattr(context["ti"], "map_index", -1)):
                    continue
                for name, value in arguments.items():
                    if not any(value is template for template in written.values()):
                        self._upstream_values.append(value)
                        self._upstream_arguments.add(name)
        return self._upstream_values

    def _convert_arguments(self, *more: str) -> None:
        """Convert all templated arguments to the types they need.

        :param more: arguments that only this operator has
        :raises JojoKeyRequestError: if an argument can't be converted
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError

        for name in (*more, *OPTIONS):
            value = getattr(self, name)
            if has_template(value) and name in self._upstream_arguments:
                if name in ("s3_key", "s3_bucket"):
                    raise JojoKeyRequestError(
                        f"{name} comes from an upstream task and contains a template. Such templates are not rendered.",
                        "Let the upstream task return the complete value, or write the template in the Dag file.",
                    )
                self.log.warning("%s comes from an upstream task: the braces in it are not a template.", name)
            try:
                setattr(self, name, converted(name, value))
            except ValueError as error:
                raise JojoKeyRequestError(f"{error}.") from None

    # The label of a mapped task

    @property
    def map_label(self) -> str:
        """The label of a mapped task, as text that a template can render.

        A native template evaluates its text: only a quoted number stays text.
        """
        return repr(self._label) if self.dag.render_template_as_native_obj else self._label

    def _set_label(self, context: Context, default: Any = None, *, paid: bool = False) -> None:
        """Replace the label of a mapped task if Airflow's database would reject it.

        Airflow renders the label after ``execute``, and an error there fails the task even if it has paid. The Dag
        author's own template stays if its label can be stored.

        :param default: the label if the Dag's author did not choose one
        :param paid: whether the task has paid, so that an error in the author's template is only logged
        """
        if getattr(context["ti"], "map_index", None) in (None, -1):
            return
        label = default
        if (template := context.get("map_index_template")) and template != _LABEL:
            self._label_template = template
        if self._label_template is not None:
            try:
                label = self.dag.get_template_env().from_string(self._label_template).render(context)
            except Exception:
                if paid:
                    self.log.warning("The task has no label: its template failed.", exc_info=True)
                    context["map_index_template"] = None
                return
            if label is None:  # a native template may render to None, which fails in Airflow
                context["map_index_template"] = None
                return
            if isinstance(label, str) and label == _short_line(label):
                context["map_index_template"] = self._label_template
                return
        if label is not None:
            self._label = _short_line(str(label))
            context["map_index_template"] = _LABEL

    def _check_literals(self, *more: str) -> None:
        """Check the arguments that are known when the Dag is parsed.

        :param more: problems that the operator itself has found
        :raises ValueError: if anything was found
        """
        found: list[str] = []
        literals: dict[str, Any] = {}
        for name in OPTIONS_AT_PARSING:
            value = getattr(self, name, None)
            if name != "prompt" and is_default(name, value):
                if name == "output_format":  # it decides what other fields may be
                    literals[name] = None
                continue
            if not hasattr(self, name) or not is_literal(value):
                continue
            if name == "prompt" and str(value).endswith(".prompt"):
                continue
            try:
                value = converted(name, value)
            except ValueError as error:
                found.append(str(error))
                continue
            if name in FIELDS and not (name == "model" and value is None):
                literals[name] = value
        found += [*problems(literals), *more]
        if found:
            raise _error(f"{type(self).__name__} {self.task_id!r}: {'; '.join(found)}")


def _is_resumed(context: Context) -> bool:
    """Return whether a deferred task continues, so that it may have paid."""
    given = getattr(context["ti"], "_ti_context_from_server", None)
    return bool(getattr(given, "next_method", None))


def _error(text: str) -> ValueError:
    """Return the error for a wrong argument. In a mapped task it occurs on the worker, and must not be retried."""
    from airflow.providers.common.compat.sdk import get_current_context

    try:
        get_current_context()
    except Exception:
        return ValueError(text)
    from airflow_provider_jojokey.exceptions import JojoKeyRequestError

    return JojoKeyRequestError(f"{text}.")


def _expansions(mapped: Any, task: Any) -> Iterator[tuple[Any, dict[str, Any], Mapping[str, Any]]]:
    """Yield each expansion of a mapped task, with the task's arguments and those in the Dag file.

    :param mapped: Airflow's mapped operator
    :param task: the operator of one mapped task
    """
    written = getattr(mapped, "partial_kwargs", None) or {}
    if (expansion := getattr(mapped, "expand_input", None)) is not None:
        yield expansion, {name: getattr(task, name, None) for name in task.template_fields}, written
    # The parameters of a decorated function have other names than the operator's arguments.
    if (expansion := getattr(mapped, "op_kwargs_expand_input", None)) is not None:
        given = getattr(task, "op_kwargs", None) or {}
        yield expansion, {f"{name}()": value for name, value in given.items()}, written.get("op_kwargs") or {}


def _is_from_upstream(expansion: Any, map_index: int) -> bool:
    """Return whether an upstream task chose the arguments of a mapped task, names included."""
    if getattr(expansion, "EXPAND_INPUT_TYPE", "") != "list-of-dicts":
        return False
    value = expansion.value
    return not isinstance(value, Sequence) or not isinstance(value[map_index], Mapping)


def _short_line(text: str) -> str:
    """Return one printable line that fits into Airflow's column. Of a long text, keep the end, which differs."""
    line = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
    return line if len(line) <= MAX_LABEL else f"…{line[1 - MAX_LABEL :]}"
