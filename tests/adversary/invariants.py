"""Invariants, checked against payments that the package never sees."""

from __future__ import annotations

import traceback
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_provider_jojokey.exceptions import JojoKeyReceiptError, JojoKeyRequestError, JojoKeyStoreError
from airflow_provider_jojokey.payments.liveness import CLOCK_TOLERANCE
from tests.adversary.subject import identity
from tests.adversary.virtual import EPOCH

if TYPE_CHECKING:
    from tests.adversary.gateway import Sent
    from tests.adversary.world import Ended, World

SPOOL_LOSSES = {"power cut", "clean spool", "lose spool", "copy spool"}
"""Events that may take a request ID with them before the receipt has it."""
GRACE = 25.0
"""Seconds of virtual time in which a process ends after SIGTERM."""


def at_post(world: World, ended: Ended, sent: Sent) -> list[str]:
    """Return the invariants that a POST breaks when it is sent."""
    problems = []
    process, job = ended.process, ended.job
    if process.terminated is not None:
        world.problems.append("sent after SIGTERM")
    if sent.attempt is None and world.plan.conditional:
        world.problems.append("sent without a claim in the receipt")
    for attempt in world.receipt(job.destination.key)["attempts"]:
        now = EPOCH + world.scheduler.now + world.s3.offset
        tolerance = 0.0 if attempt["clock"] == "s3" else CLOCK_TOLERANCE.total_seconds()
        until = datetime.fromisoformat(attempt["lease_until"]).timestamp() + tolerance
        if attempt["id"] == sent.attempt and until < now:
            world.problems.append("sent after its lease")
    earlier = [other for other in world.sent(job) if other.billed and _same(other, sent)]
    order = [attempt["id"] for attempt in world.receipt(job.destination.key)["attempts"]]
    # A try with reuse="never" that was claimed later has paid for itself.
    later = set(order[order.index(sent.attempt) :] if sent.attempt in order else ())
    earlier = [other for other in earlier if not (other.job.reuse == "never" and other.attempt in later)]
    if job.reuse == "never":
        earlier = [other for other in earlier if _ti(other.job) == _ti(job)]
    if job.on_unknown_outcome == "regenerate":
        # Each try may pay for an image that is lost, but not if another run of the same try reports the loss.
        reported = {attempt["id"] for attempt in world.attempts(job) if attempt["error"]}
        earlier = [
            other
            for other in earlier
            if not _is_lost(world, other, process)
            or (_ti(other.job) == _ti(job) and other.attempt in reported)
        ]
    if earlier:
        problems.append("paid twice")
    latest = [
        attempt
        for attempt in world.receipt(job.destination.key)["attempts"]
        if attempt["fingerprint"] == _fingerprint(job)
        and attempt["billed"] != "no"
        and attempt["id"] not in later
    ]
    if (
        job.reuse == "always"
        and latest
        and latest[-1]["outcome"] == "complete"
        and _is_there(world, latest[-1])
    ):
        problems.append("paid although reuse='always' had the image")
    return problems


def at_end_of_process(world: World, ended: Ended) -> list[str]:
    """Return violations in the result of a process that was not killed."""
    problems = []
    process, job, error = ended.process, ended.job, ended.error
    sent = world.sent(job)
    own = [post for post in sent if post.process is process]
    if error is not None:
        if error.billed == "no" and any(post.billed for post in own):
            problems.append(f"{type(error).__name__} says not billed, and it was")
        if error.billed == "yes" and not any(post.billed for post in _posts_at(world, job)):
            problems.append(f"{type(error).__name__} says billed, and it was not")
    if process.terminated is not None and not ended.step.faults and not ended.step.freeze_at:
        took = world.scheduler.now - process.terminated
        if took > GRACE:
            problems.append("does not end after SIGTERM")
    paid_for = any(post.billed and _ti(post.job) == _ti(job) for post in sent)
    if job.reuse == "never" and ended.manifest is not None and ended.manifest["reused"] and not paid_for:
        problems.append("reuse='never' asked for a new image, and got an old one")
    if ended.manifest is not None:
        prompts = {digest: post for post in world.gateway.sent for digest in post.images}
        for image in ended.manifest["images"]:
            found = world.s3.objects.get((image["bucket"], image["key"]))
            if image["sha256"] not in prompts:
                problems.append("stored an image that the gateway never sent")
            elif _fingerprint(prompts[image["sha256"]].job) != _fingerprint(job):
                problems.append("returns an image of another prompt")
            elif ended.alone and (found is None or found.sha256 != image["sha256"]):
                problems.append("returns an image that is not in S3")
    if isinstance(error, JojoKeyRequestError) and world.plan.conditional:
        problems.append("refuses to replace its own image")
    if process.name.startswith("last"):
        problems += _without_image(world, ended)
    mine = [attempt["outcome"] for attempt in world.attempts(job) if _is_of(attempt, ended)]
    unsure = "unknown" in mine or "billed" in mine
    if unsure and not own and world.plan.conditional and process.terminated is None:
        problems.append("nothing was sent, and the receipt does not say so")
    troubled = ended.step.faults or process.terminated is not None or isinstance(error, JojoKeyStoreError)
    if ended.alone and not troubled:
        usage = ended.manifest["usage"] if ended.manifest is not None else error.usage if error else None
        recorded = sum(_tokens(attempt["usage"]) for attempt in world.attempts(job))
        if _tokens(usage) != recorded:
            problems.append(
                f"XCom usage differs from the receipt ({type(error).__name__ if error else 'made'})"
            )
    return problems


def at_end(world: World) -> list[str]:
    """Return violations after the last step."""
    problems = []
    for ended in world.ended:
        if ended.process.crash is not None:
            problems.append(f"ended with {type(ended.process.crash).__name__}")
            world.scheduler.say(
                "".join(traceback.format_exception(ended.process.crash, limit=-4, chain=False))
            )
    for post in world.gateway.sent:
        if post.billed:
            problems += post.problems
    jobs = {(ended.job.owner.run_id, ended.job.owner.task_id): ended for ended in world.ended}
    for ended in jobs.values():
        problems += _of_task(world, ended)
    for ended in world.ended:
        if ended.process.name.startswith("last"):
            problems += _left_behind(world, ended)
    total = sum(_tokens(attempt["usage"]) for ended in jobs.values() for attempt in world.attempts(ended.job))
    if total > sum(post.tokens for post in world.gateway.sent):
        problems.append("receipts above the bill")
    return problems


def _of_task(world: World, ended: Ended) -> list[str]:
    problems = []
    attempts, sent = world.attempts(ended.job), world.sent(ended.job)
    by_id = {post.attempt: [other for other in sent if other.attempt == post.attempt] for post in sent}
    for attempt in attempts:
        posts = by_id.get(attempt["id"], [])
        billed = any(post.billed for post in posts)
        if attempt["outcome"] == "not_billed" and billed:
            problems.append("receipt says not billed, and it was")
        if attempt["outcome"] in ("billed", "complete") and not billed and world.plan.conditional:
            problems.append("receipt says billed, and it was not")
        if world.plan.conditional and _tokens(attempt["usage"]) > sum(post.tokens for post in posts):
            problems.append("an attempt's usage is above its bill")
    bill, recorded = sum(post.tokens for post in sent), sum(_tokens(attempt["usage"]) for attempt in attempts)
    if recorded > bill:
        problems.append("receipt above the bill")
    settled = all(attempt["outcome"] not in ("open", "unknown") for attempt in attempts)
    if settled and recorded != bill and world.plan.conditional and not _excused(world, attempts, by_id):
        problems.append("settled receipt differs from the bill")
    return problems


def _excused(world: World, attempts: list[dict[str, Any]], by_id: dict[str | None, list[Sent]]) -> bool:
    """Whether a usage could not become known, or belongs to a proxy's own retries."""
    for attempt in attempts:
        posts = by_id.get(attempt["id"], [])
        if any(post.outcome == "proxy" for post in posts):
            return True
        if attempt["billed"] == "yes" and attempt["usage"] is None:
            lost = attempt["request_id"] is None and not SPOOL_LOSSES.isdisjoint(world.plan.accidents())
            shown = world.plan.log in ("honest", "late") and any(post.id_seen for post in posts) and not lost
            if not shown:
                return True
    return False


def _left_behind(world: World, ended: Ended) -> list[str]:
    """Return images that this host received and that are neither in S3 nor in the receipt."""
    listed = {image["sha256"] for attempt in world.attempts(ended.job) for image in attempt["images"]}
    stored = {digest for _, digest in world.s3.ever}
    arrived = {digest for post in world.sent(ended.job) for digest in post.images}
    problems = []
    for digest in arrived & world.held[ended.process.host.name]:
        if digest not in stored:
            problems.append("a received image was not stored")
        elif digest not in listed and world.plan.conditional:
            problems.append("a stored image is not in the receipt")
    digests = {
        digest
        for post in world.sent(ended.job)
        if _same_request(post.job, ended.job)
        for digest in post.images
    }
    found = {stored.sha256 for stored in world.s3.objects.values()} & digests
    if found - listed and ended.manifest is None and world.plan.conditional:
        problems.append("a stored image is not in the receipt")
    return problems


def _without_image(world: World, ended: Ended) -> list[str]:
    """Return whether the last process of a task has no image, although nothing prevents it."""
    lost = [
        attempt
        for attempt in world.attempts(ended.job)
        if attempt["outcome"] in ("open", "billed", "unknown")
    ]
    if ended.error is None or lost or not world.plan.conditional:
        return []
    alone = all(
        _fingerprint(post.job) == _fingerprint(ended.job)
        and post.job.owner.run_id == ended.job.owner.run_id
        and post.job.reuse != "never"
        for post in _posts_at(world, ended.job)
    )
    if isinstance(ended.error, JojoKeyReceiptError) and not alone:
        return []  # another request has overwritten it
    return ["no image although nothing is lost"]


def _is_of(attempt: dict[str, Any], ended: Ended) -> bool:
    worker, process = attempt["worker"], ended.process
    known = (worker["pid"], worker["identity"], attempt["owner"]["ti_id"])
    return known == (process.pid, identity(process), ended.job.owner.ti_id)


def _posts_at(world: World, job: Any) -> list[Sent]:
    return [post for post in world.gateway.sent if post.job.destination == job.destination]


def _same(sent: Sent, other: Sent) -> bool:
    return sent is not other and _same_request(sent.job, other.job)


def _same_request(job: Any, other: Any) -> bool:
    return _fingerprint(job) == _fingerprint(other)


def _fingerprint(job: Any) -> str:
    from tests.adversary.world import URL

    return str(job.request.fingerprint(URL))


def _ti(job: Any) -> Any:
    return getattr(job.owner, "ti_id", None) or job.owner


def _is_lost(world: World, post: Sent, process: Any) -> bool:
    """Whether the images of an earlier payment are out of reach of ``process``."""
    if post.process.alive and world.scheduler.now < max(upstream.ended for upstream in post.upstream):
        return False
    listed = {image["sha256"] for attempt in world.attempts(post.job) for image in attempt["images"]}
    here = world.received(process.host)
    return not post.images or not all(digest in listed or digest in here for digest in post.images)


def _is_there(world: World, attempt: dict[str, Any]) -> bool:
    found = [(image, world.s3.objects.get((image["bucket"], image["key"]))) for image in attempt["images"]]
    return all(stored is not None and stored.sha256 == image["sha256"] for image, stored in found)


def _tokens(usage: Any) -> int:
    return int((usage or {}).get("total_tokens") or 0)
