"""Render the templates of an operator: its arguments, and the label of a mapped task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_provider_jojokey.img2.rules import FIELDS
from airflow_provider_jojokey.operators.arguments import TEXTS, converted, has_template, is_default
from airflow_provider_jojokey.payments.options import LIMITS

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import Context

OPTIONS = (
    "s3_bucket",
    *(name for name in FIELDS if name not in ("prompt", "stream", "partial_images")),
    "reuse",
    "on_unknown_outcome",
    *LIMITS,
    "jojokey_conn_id",
    "aws_conn_id",
    "s3_extra_args",
    "replace",
)
"""Templated arguments that all operators have."""

ALWAYS_SHOWN = ("size", "quality")
"""Arguments that Airflow's UI shows even if they have their defaults, because they decide what an image costs."""

MAX_LABEL = 250
"""Characters of a mapped task's label in Airflow's database."""
_LABEL = "{{ task.map_label }}"


class TemplateFields:
    """The names of an operator's templated arguments.

    A class has all of them. An operator has those without their defaults, and :data:`ALWAYS_SHOWN`: Airflow writes each
    one into the serialized Dag, and renders, validates and stores it in each task.

    :param names: names of the arguments
    """

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, operator: BaseOperator | None, owner: type) -> Sequence[str]:
        if operator is None:
            return self._names
        # A template stays in the list if it renders to the default.
        given: set[str] = vars(operator).setdefault("_given_arguments", set(ALWAYS_SHOWN))
        for name in self._names:
            value = getattr(operator, name, None)
            if value is not None and name not in given and not is_default(name, value):
                given.add(name)
        return [name for name in self._names if name in given]


class TemplatedOperator(BaseOperator):
    """An operator that renders only templates in the Dag file, never text from upstream tasks."""

    _label = ""
    _label_template: str | None = None
    _upstream_values: list[Any] | None = None
    _rendering_failed = False
    """Whether an argument could not be rendered, so that others may still be templates."""

    _upstream_arguments: frozenset[str] = frozenset()
    """Names of the arguments that come from other tasks."""

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render the templates in an argument.

        Values from an upstream task are not templates, but Airflow renders those of ``expand_kwargs(upstream())``.
        Then text from outside could read connections and variables. Text arguments, also those of a batch's items,
        and S3 parameters stay text with ``render_template_as_native_obj=True``, which would turn the key ``2026_11_11``
        and the account ``123456789012`` into numbers.

        :param content: an argument, or a part of one
        :param context: values for the templates
        """
        try:
            return self._rendered(content, context, jinja_env, seen_oids)
        except Exception as error:
            if not _is_resumed(context):
                if not self._rendering_failed:  # an outer call renders the same argument
                    self._rendering_failed = True
                    self._report_rendering_error(context, jinja_env, error)
                raise
            # For example, an upstream XCom was deleted. The trigger has the values from before the payment.
            self.log.warning(
                "A template can't be rendered any more, but the images don't need it.", exc_info=True
            )
            return content

    def _report_rendering_error(
        self, context: Context, jinja_env: jinja2.Environment | None, error: Exception
    ) -> None:
        """Report that the task fails because an argument can't be rendered."""
        raise NotImplementedError

    def _rendered(
        self, content: Any, context: Context, jinja_env: jinja2.Environment | None, seen_oids: set[int] | None
    ) -> Any:
        if id(content) in (seen_oids or ()):
            return content  # Airflow has marked it as a value from upstream
        if any(content is value for value in self._values_from_upstream(context)):
            return content
        if self._renders_natively:
            if isinstance(content, str) and self._is_text_argument(content):
                return self._text(content, context)
            if content is getattr(self, "s3_extra_args", None) and isinstance(content, dict):
                return self._rendered_options(
                    content, content.keys() - {"Metadata"}, context, jinja_env, seen_oids
                )
            if content is getattr(self, "requests", None) and isinstance(content, (list, tuple)):
                return [
                    self._rendered_options(item, TEXTS, context, jinja_env, seen_oids) for item in content
                ]
        return super().render_template(content, context, jinja_env, seen_oids)

    def _rendered_options(
        self,
        options: Any,
        texts: Collection[str],
        context: Context,
        jinja_env: jinja2.Environment | None,
        seen_oids: set[int] | None,
    ) -> Any:
        """Render a dict natively, but its texts to text.

        :param options: a dict in the Dag file, or anything else in its place
        :param texts: keys of the values that are text
        """
        if not isinstance(options, dict):
            return self._rendered(options, context, jinja_env, seen_oids)
        found = {}
        for name, value in options.items():
            if isinstance(value, str) and name in texts:
                found[name] = self._text(value, context)
            elif (
                isinstance(value, dict) and name == "Metadata"
            ):  # of an object in S3: all its values are text
                found[name] = self._rendered_options(value, value.keys(), context, jinja_env, seen_oids)
            else:
                found[name] = self._rendered(value, context, jinja_env, seen_oids)
        return found

    def _text(self, content: str, context: Context) -> str:
        environment = self.dag.get_template_env(force_sandboxed=True)
        is_file = content.endswith(tuple(self.template_ext))
        template = environment.get_template(content) if is_file else environment.from_string(content)
        return template.render(context)

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
                        self._upstream_arguments |= {name}
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


def _is_resumed(context: Context) -> bool:
    """Return whether a deferred task continues, so that it may have paid."""
    given = getattr(context["ti"], "_ti_context_from_server", None)
    return bool(getattr(given, "next_method", None))


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
