"""Record how each item of a batch ended: in the counts, in the manifest, and later its missing usage."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_jojokey.batch.tally import Unsettled
from airflow_provider_jojokey.cost import Costs
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.integrations.telemetry import metrics_of
from airflow_provider_jojokey.payments import errors
from airflow_provider_jojokey.payments.context import Context
from airflow_provider_jojokey.payments.usage import settle_usage
from airflow_provider_jojokey.results import MAX_MESSAGE, Result, shortened

if TYPE_CHECKING:
    from airflow_provider_jojokey.batch.manifest import Manifest
    from airflow_provider_jojokey.batch.plan import Plan
    from airflow_provider_jojokey.batch.previous import Previous
    from airflow_provider_jojokey.batch.tally import Tally
    from airflow_provider_jojokey.payments.context import Services
    from airflow_provider_jojokey.payments.generate import Generated
    from airflow_provider_jojokey.payments.job import ImageJob

log = logging.getLogger(__name__)

UNKNOWN_COST = Costs(unknown=1)
"""The cost of an item that was, or may have been, billed, and whose receipt is not known."""


class Recorder:
    """Records the items of one batch. Not thread-safe.

    :param tally: the counts
    :param manifest: receives a line per item
    :param aws_conn_id: the AWS connection, which the UI uses to show the images
    :param is_retry: whether an earlier try may have paid for items
    """

    def __init__(
        self, tally: Tally, manifest: Manifest, aws_conn_id: str | None, is_retry: bool = False
    ) -> None:
        self._tally = tally
        self._manifest = manifest
        self._aws_conn_id = aws_conn_id
        self._is_retry = is_retry
        self._unsettled: list[Unsettled] = []
        self._stopped: dict[str, dict[str, Any]] = {}
        """The lines of items that were not started, by whether they were billed, without the items' own fields."""

    def unchanged(self, index: int, line: Mapping[str, Any]) -> None:
        """Record an item that an earlier try has completed.

        :param line: the item's line in the earlier manifest
        """
        self._tally.succeed(index, {**line, "reused": True})
        self._manifest.add(index, {**line, "reused": True})

    def succeeded(self, index: int, job: ImageJob, generated: Generated) -> None:
        """Record an item whose images are in S3."""
        images, missing_usage = generated.manifest["images"], bool(generated.receipt.missing_usage(job.owner))
        self._tally.succeed(index, generated.manifest)
        if missing_usage:
            self._unsettled.append(Unsettled(index, job, len(images)))
        result = Result.from_manifest(
            generated.manifest, prompt=job.request.prompt, aws_conn_id=self._aws_conn_id
        )
        proof = {
            "fingerprint": generated.attempt.fingerprint,
            "reuse": job.reuse,
            "receipt_etag": generated.etag,
            "settled": not missing_usage,
        }
        self._manifest.add(index, {**result.to_xcom(), **proof})

    def failed(self, index: int, job: ImageJob, error: JojoKeyError) -> None:
        """Record an item that lacks some or all of its images."""
        self._fail(index, job, error)
        unknown = error.billed != "no" or (error.cost and Costs.from_json(error.cost).unknown)
        if unknown and not error.spool:  # the receipt does not list a response that waits in the spool
            # A copy has no traceback, which would keep the frames of its request in memory.
            self._unsettled.append(Unsettled(index, job, job.request.n, error.changed()))

    def unrecorded(self, index: int, job: ImageJob) -> None:
        """Record an item whose request was sent, and whose outcome is not known in time."""
        self._tally.unrecorded += 1
        self._fail(index, job, errors.unrecorded())

    def not_started(self, plan: Plan, previous: Previous | None) -> None:
        """Record the items without a result, because the batch was stopped. The tally counts them as the rest.

        There may be many, and a stopped task must end soon, so this creates no jobs.

        :param previous: the manifest of an earlier try, which may have paid for items
        """
        earlier = iter(()) if previous is None else previous.from_the_start()
        line = next(earlier, None)
        for index, item, shown in plan.shown():
            while line is not None and line["index"] < index:
                line = next(earlier, None)
            if self._manifest.has(index):
                continue
            found = Result.from_xcom(line) if line is not None and line["index"] == index else None
            if found is not None and found.receipt not in (None, plan.receipt_of(item)):
                found = None  # it is about another item
            self._not_started(index, shown, found, plan.images_of(item))

    def _not_started(self, index: int, shown: Mapping[str, Any], earlier: Result | None, images: int) -> None:
        usage = dict(earlier.usage) if earlier is not None else {}
        cost = earlier.cost.to_json() if earlier is not None and earlier.cost is not None else None
        billed = earlier.paid if earlier is not None else "unknown" if self._is_retry else "no"
        if earlier is None and self._is_retry:
            self._tally.earlier_unknown = True
        if cost is None and billed != "no":
            cost = UNKNOWN_COST.to_json()
        facts = {"usage": usage, "cost": cost, "receipt": None if earlier is None else earlier.receipt}
        if billed not in self._stopped:
            error = errors.stopped().changed(billed=billed, pays_again=self._tally.pays_again)
            result = Result.from_error(error, prompt="", aws_conn_id=self._aws_conn_id)
            self._stopped[billed] = {**result.to_xcom(), "retryable": True}
        self._tally.not_started(billed, images, usage, cost)
        self._manifest.add(index, {**self._stopped[billed], **shown, **facts})

    def _fail(self, index: int, job: ImageJob, error: JojoKeyError) -> None:
        if self._is_retry and error.usage is None and not error.spool:
            # The receipt could not be read, so what earlier tries were billed for this item is unknown.
            self._tally.earlier_unknown = True
            if error.billed == "no":
                error = error.changed(billed="unknown")
        if error.cost is None and error.billed != "no":
            error = error.changed(cost=UNKNOWN_COST.to_json())
        self._tally.fail(index, job, error)
        self._add_failure(index, job, error)

    def _add_failure(self, index: int, job: ImageJob, error: JojoKeyError) -> None:
        request = job.request
        options = {name: getattr(request, name) for name in ("model", "size", "quality")}
        result = Result.from_error(
            error, prompt=request.prompt, aws_conn_id=self._aws_conn_id, options=options
        )
        self._manifest.add(index, {**result.to_xcom(), **_failure(error)})

    def settle_usage(self, services: Services) -> None:
        """Look up the usage of items whose responses did not report it, and write their lines again.

        :param services: with a gateway log that has not been read yet, so that one read is enough
        """
        for item in self._unsettled:
            owner = item.job.owner
            try:
                context = Context(item.job, services, metrics_of(item.job))
                receipt = settle_usage(context, context.receipts.read())
            except JojoKeyError as error:
                log.warning("The usage of %s is not known yet: %s", item.job.uri, error.what_happened)
                continue
            if services.budget is not None:
                services.budget.settle(item.job, receipt, claimed=False)
            before = self._manifest.line(item.index)
            after = {**before, "usage": receipt.usage_of(owner), "cost": receipt.cost_of(owner).to_json()}
            if before["state"] == "complete":
                settled = not receipt.missing_usage(owner)
                after |= {"receipt_etag": context.receipts.etag, "settled": settled}
            elif before["billed"] == "unknown":
                after["billed"] = receipt.billed_to(owner)
                if after["billed"] == "yes" and item.error is not None and item.error.billed == "unknown":
                    proven = errors.proven_billed(item.error, item.job)
                    self._tally.prove(item.index, item.job, proven)
                    after |= _failure(proven)
            # An interruption in between leaves the sum too low. In the other order, the next call would count it twice.
            self._manifest.add(item.index, after)
            self._tally.settle(item, before, after)


def _failure(error: JojoKeyError) -> dict[str, Any]:
    """Return what the line of a failed item says about its error."""
    return {
        "error": type(error).__name__,
        "message": shortened(str(error), MAX_MESSAGE),
        "retryable": not isinstance(error, AirflowFailException),
    }
