"""The base class of the operators. Every parse of a Dag file imports it, so it has no heavy imports."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from airflow_provider_jojokey.img2.rules import FIELDS, problems
from airflow_provider_jojokey.links.jojokey import ImagesLink, S3ConsoleLink, names_endpoint
from airflow_provider_jojokey.operators.arguments import (
    converted,
    has_template,
    is_default,
    is_literal,
)
from airflow_provider_jojokey.operators.templates import TemplatedOperator
from airflow_provider_jojokey.payments.options import LIMITS, pays_again
from airflow_provider_jojokey.policies import JojoKeyRetryPolicy

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.common.compat.sdk import Context
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
    from airflow_provider_jojokey.operators.stopping import StopSwitch
    from airflow_provider_jojokey.payments.attempt import Owner
    from airflow_provider_jojokey.payments.job import Limit
    from airflow_provider_jojokey.payments.totals import Billed
    from airflow_provider_jojokey.results import Result
    from airflow_provider_jojokey.store.keys import Destination
    from airflow_provider_jojokey.store.s3 import ImageStore

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
RETRY_POLICY = JojoKeyRetryPolicy()
"""The policy of all operators whose Dag has none."""
READING = 30.0
"""Seconds within which a failed task reads from its receipts what it was billed."""
PLACES = ("s3_bucket", "s3_key", "requests", "aws_conn_id", "s3_extra_args")
"""Arguments that lead to the task's receipts."""
_NO_ARGUMENTS = frozenset({"self", "kwargs", "__class__"})
"""Local variables of an operator's constructor that are not its own arguments."""


@contextmanager
def imports_without_collection() -> Iterator[None]:
    """Import modules without the garbage collector, which would search their objects for garbage.

    Imports create some 100,000 objects, and free almost none. Examining them takes 5 % of the CPU of a task with one
    image. So exclude them from later collections too.
    """
    if not gc.isenabled():
        yield
        return
    loaded = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > loaded:
            gc.freeze()
        gc.enable()


class ImageOperator(TemplatedOperator):
    """The common part of the operators: argument checks, links and lineage.

    Each operator declares all its arguments itself, for editors, type checkers and the reference.
    """

    s3_bucket: str | None
    model: str | None
    size: str
    quality: str
    n: int
    background: str | None
    output_format: str | None
    output_compression: int | None
    moderation: str | None
    extra_body: Mapping[str, Any] | None
    stream: bool
    partial_images: int | None
    reuse: str
    on_unknown_outcome: str
    max_tokens: int | None
    max_images: int | None
    max_cost: float | str | Decimal | None
    max_tokens_per_run: int | None
    max_images_per_run: int | None
    max_cost_per_run: float | str | Decimal | None
    jojokey_conn_id: str
    aws_conn_id: str | None
    s3_extra_args: Mapping[str, Any] | str | None
    replace: bool

    operator_extra_links = (ImagesLink(), S3ConsoleLink())
    ui_fgcolor = "#2b1a66"

    _ui_result: dict[str, Any] | None = None
    """The XCom value for the UI, after the task has pushed it."""
    _began = 0.0
    """When :meth:`execute` began, in seconds since 1970."""
    _uris: list[str] | None = None
    """The URIs of all images of a batch, unless there are too many. The XCom value lists only the first few."""

    # Airflow wraps the constructor of each class in code that costs about as much as the constructor itself, each time
    # that a Dag is parsed. So only the operators have one.

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

    def _destinations(self) -> Iterator[Destination]:
        """Yield the destinations of all items, whether or not the rest of their arguments is valid.

        :raises Exception: if an argument cannot be used
        """
        raise NotImplementedError

    def _billed_so_far(self, context: Context, sent: bool) -> Billed | None:
        """Return what the task was billed in its Dag run, over all tries; ``None`` if that is not known.

        :param sent: whether this try may have sent a request
        """
        from airflow_provider_jojokey.payments.totals import Billed, billed_so_far

        owner = self._owner(context)
        if owner.try_number <= 1 and not sent:
            return Billed()
        if self._stop_switch.requested:
            return None  # the process must end soon
        if self._rendering_failed and not all(is_literal(getattr(self, name, None)) for name in PLACES):
            return None
        try:
            # A key that several items have by mistake has one receipt, which must count once.
            by_receipt = {(item.bucket, item.receipt_key): item for item in self._destinations()}
            destinations = list(by_receipt.values())
            return billed_so_far(self.store, iter(destinations), len(destinations), owner, READING)
        except Exception as error:  # must not hide the error that the task fails with
            self.log.warning("What this task was billed in earlier tries is not known: %s", error)
            return None

    def _with_settings(self, error: JojoKeyError) -> JojoKeyError:
        """Return an error whose text says what a retry does with the settings of this task."""
        return error.changed(pays_again=pays_again(self.reuse, self.on_unknown_outcome))

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

        :raises JojoKeyRequestError: if a parameter or a setting can't be used
        """
        from airflow_provider_jojokey.exceptions import JojoKeyRequestError
        from airflow_provider_jojokey.settings import Settings
        from airflow_provider_jojokey.store.extra_args import combined
        from airflow_provider_jojokey.store.s3 import ImageStore

        defaults = Settings.from_airflow_config().s3_extra_args
        try:
            extra = combined(defaults, converted("s3_extra_args", self.s3_extra_args) or {})
        except ValueError as error:
            raise JojoKeyRequestError(f"{error}.") from None
        return ImageStore(self.aws_conn_id, connections=connections, extra_args=extra)

    def _create_clients(self) -> None:
        """Read the connections and create both clients, outside of the interruptible part.

        :raises JojoKeyError: if a connection can't be used
        """
        with imports_without_collection():
            self.hook.client, self.store.client  # noqa: B018

    def _default_bucket(self) -> str | None:
        """Return the AWS connection's default bucket.

        :raises JojoKeyError: if the connection can't be used
        """
        from airflow_provider_jojokey.store.default_bucket import default_bucket

        return default_bucket(self.aws_conn_id)

    def _push(self, context: Context, key: str, value: Any) -> None:
        """Push an XCom. Errors are only logged, because a paid image matters more than an XCom."""
        from airflow_provider_jojokey.results import storable

        if not self.do_xcom_push:
            return
        try:
            context["ti"].xcom_push(key, storable(value))
        except Exception:
            self.log.exception(
                "Could not store the XCom %r. The images and receipts in S3 are complete.", key
            )

    def _report_rendering_error(
        self, context: Context, jinja_env: jinja2.Environment | None, error: Exception
    ) -> None:
        """Push what earlier tries were billed, which Airflow deletes when a try starts."""
        try:
            for name in ("s3_bucket", "s3_key", "aws_conn_id"):
                if has_template(value := getattr(self, name, None)):
                    setattr(self, name, self._rendered(value, context, jinja_env, None))
        except Exception as another:
            self.log.info("The receipts of the task are not known: %s", another)
        try:
            self._report_interruption(context, error)
        except Exception:  # must not hide the error that the task fails with
            self.log.warning("Could not report what this task was billed in earlier tries.", exc_info=True)

    def _report_interruption(
        self, context: Context, error: BaseException, sent: bool = False, **request: Any
    ) -> None:
        """Push what the task was billed so far, if it ended without the result of a request.

        :param sent: whether this try may have sent a request, apart from what the switch shows
        :param request: fields of the result that describe the request
        """
        from airflow_provider_jojokey.results import MAX_MESSAGE, Result, shortened

        sent = sent or self._stop_switch.sent
        billed = None
        try:
            billed = self._billed_so_far(context, sent)
        finally:  # a timeout may interrupt that
            result = Result(
                state="failed",
                aws_conn_id=self.aws_conn_id,
                error=type(error).__name__,
                message=shortened(text_of(error), MAX_MESSAGE),
                billed="unknown" if sent else "no",
                usage={} if billed is None else billed.usage,
                cost=None if billed is None else billed.cost,
                **request,
            )
            self._push_failure(context, result)

    def _push_failure(self, context: Context, result: Result) -> None:
        """Push the XComs of a failed task: without them, the sum over the XComs would be lower than the bill.

        :param result: without ``usage`` if that is not known
        """
        if result.usage:
            self._push(context, "usage", result.usage)
        if result.billed == "no" and (not result.usage or (result.cost is not None and result.cost.unknown)):
            result = replace(result, billed="unknown")  # not by this try, but perhaps by earlier ones
        self._push_result(context, result)

    def _push_result(self, context: Context, result: Result) -> None:
        """Push the XCom for the UI."""
        from airflow_provider_jojokey.results import XCOM_KEY

        self._ui_result = result.to_xcom()
        self._push(context, XCOM_KEY, self._ui_result)
        store = vars(self).get("store")
        if store is not None and names_endpoint(store.connection_extra or {}):
            # Airflow calls its API for each link, also for an empty one. A subclass may define a property.
            links = (link for link in self.operator_extra_links if not isinstance(link, S3ConsoleLink))
            vars(self)["operator_extra_links"] = tuple(links)

    def _set_arguments(self, given: Mapping[str, Any]) -> None:
        """Set the attributes, and let the gateway's errors decide about retries unless the Dag has its own policy.

        :param given: the local variables of a constructor that has only set its arguments
        """
        # BaseOperator.__setattr__() does nothing else here, and would take a tenth of the constructor's time.
        vars(self).update((name, value) for name, value in given.items() if name not in _NO_ARGUMENTS)
        if getattr(self, "retry_policy", self) is None:  # Airflow before 3.3 has none
            self.retry_policy = RETRY_POLICY

    def _check_literals(self, *more: str) -> None:
        """Check the arguments that are known when the Dag is parsed.

        :param more: problems that the operator itself has found
        :raises ValueError: if anything was found
        """
        found: list[str] = []
        literals: dict[str, Any] = {}
        for name in OPTIONS_AT_PARSING:
            value = getattr(self, name, None)
            if value is None and not (name == "prompt" and name in vars(self)):
                if name == "output_format":  # it decides what other fields may be
                    literals[name] = None
                continue
            if (name != "prompt" and is_default(name, value)) or not is_literal(value):
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


def text_of(error: BaseException) -> str:
    """Return the text of an error for an XCom. Only the package's own errors are known to contain no secrets."""
    from airflow_provider_jojokey.exceptions import JojoKeyError
    from airflow_provider_jojokey.img2.redact import clean

    return str(error) if isinstance(error, JojoKeyError) else clean(str(error))


def _error(text: str) -> ValueError:
    """Return the error for a wrong argument. In a mapped task it occurs on the worker, and must not be retried."""
    from airflow.providers.common.compat.sdk import get_current_context

    try:
        get_current_context()
    except Exception:
        return ValueError(text)
    from airflow_provider_jojokey.exceptions import JojoKeyRequestError

    return JojoKeyRequestError(f"{text}.")
