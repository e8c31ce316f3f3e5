"""Reuse of earlier payments: retries, cleared tasks, other runs, other tasks, deleted images."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_jojokey import exceptions
from airflow_provider_jojokey.hooks.jojokey import JojoKeyHook
from airflow_provider_jojokey.payments.generate import ImageJob
from airflow_provider_jojokey.payments.job import Limit
from tests.support.harness import Harness, name_of
from tests.support.loopback import Exchange
from tests.support.patience import PATIENCE
from tests.support.scripted import ScriptedGateway, good


def test_cleared_task_reuses_image_of_its_run(harness: Harness) -> None:
    first = harness.run()

    again = harness.run(try_number=2)

    assert again == {**first, "reused": True}
    assert (harness.posts, again["usage"]["total_tokens"]) == (1, harness.tokens)


def test_new_run_pays_for_new_image(harness: Harness) -> None:
    harness.run()
    harness.run(run="tuesday")
    assert harness.billed == 2


def test_changed_prompt_pays_for_another_image(harness: Harness) -> None:
    harness.run()

    manifest = harness.run("an owl", try_number=2)

    assert harness.billed == 2
    assert manifest["usage"]["total_tokens"] == harness.tokens


def test_restored_prompt_is_not_paid_again_while_unresolved(harness: Harness) -> None:
    harness.set(longest_generation=300.0)
    harness.fail("a fox [sandbox: reset times=1]")
    harness.run("an owl", try_number=2)

    error = harness.fail("a fox [sandbox: reset times=1]", try_number=3)

    assert error.billed == "unknown"
    assert harness.posts == 2


def test_reuse_always_takes_image_of_earlier_run_for_free(harness: Harness) -> None:
    harness.run()

    again = harness.run(run="tuesday", reuse="always")

    assert (harness.billed, again["reused"], again["usage"]["total_tokens"]) == (1, True, 0)


def test_reuse_always_pays_for_another_prompt(harness: Harness) -> None:
    harness.run()
    assert harness.run("an owl", run="tuesday", reuse="always")["reused"] is False
    assert harness.billed == 2


def test_reuse_never_pays_in_each_try(harness: Harness) -> None:
    harness.run()

    again = harness.run(try_number=2, reuse="never")

    assert (harness.billed, again["reused"]) == (2, False)
    assert again["usage"]["total_tokens"] == harness.tokens


def test_reuse_never_pays_once_for_trigger_that_runs_twice(harness: Harness) -> None:
    harness.run(reuse="never")
    assert harness.run(reuse="never")["reused"] is True
    assert harness.billed == 1


def test_reuse_never_pays_again_for_recreated_run(harness: Harness) -> None:
    """``dag.test()`` deletes a run and creates it again: same names, same try, another task instance."""
    harness.run(reuse="never", ti_id="first")

    again = harness.run(reuse="never", ti_id="second")

    assert (again["reused"], harness.billed) == (False, 2)


def test_reuse_never_does_not_repeat_a_lost_response(harness: Harness) -> None:
    harness.set(longest_generation=300.0)
    harness.fail("a fox [sandbox: reset times=1]", reuse="never")

    error = harness.fail("a fox [sandbox: reset times=1]", reuse="never")

    assert error.billed == "unknown"
    assert harness.posts == 1


def test_mapped_tasks_with_one_key_conflict_before_second_pays(harness: Harness) -> None:
    harness.run(map_index=0)

    error = harness.fail(map_index=1)

    assert isinstance(error, exceptions.JojoKeyReceiptError)
    assert "image[0]" in error.message
    assert "ti.map_index" in error.message
    assert harness.billed == 1


def test_concurrent_tasks_with_one_key_pay_once(harness: Harness) -> None:
    harness.gateway.behave(delay=0.3)
    harness.store()
    with ThreadPoolExecutor(4) as threads:
        ends = sorted(name_of(end) for end in threads.map(lambda i: harness.end(map_index=i), range(4)))

    assert ends == ["JojoKeyReceiptError"] * 3 + ["image"]
    assert harness.billed == 1


def test_image_of_removed_map_index_is_reused(harness: Harness) -> None:
    harness.run(map_index=2)

    manifest = harness.run(map_index=1, try_number=2)

    assert (manifest["reused"], harness.billed) == (True, 1)
    assert manifest["usage"]["total_tokens"] == 0  # billed to the other task


def test_shared_key_of_different_items_conflicts_when_cleared(harness: Harness) -> None:
    harness.run("a fox", map_index=2)

    error = harness.fail("an owl", map_index=1, try_number=2)

    assert isinstance(error, exceptions.JojoKeyReceiptError)
    assert harness.billed == 1


@pytest.mark.parametrize(("before", "after"), [(-1, -1), (2, 2), (2, 1), (0, 5)])
@pytest.mark.parametrize("reuse", ["run", "always"])
def test_deleted_image_is_not_paid_again(harness: Harness, before: int, after: int, reuse: str) -> None:
    harness.run(map_index=before)
    harness.delete("fox.png")

    error = harness.fail(map_index=after, try_number=2, reuse=reuse)

    assert isinstance(error, exceptions.JojoKeyReceiptError)
    assert "is missing or has changed" in error.message
    assert "received and stored" not in error.message
    assert not error.images
    assert "reuse='never'" in error.message
    assert harness.billed == 1


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("earlier", [False, True])
def test_slow_run_does_not_overwrite_a_newer_image(
    harness: Harness, png: bytes, replace: bool, earlier: bool
) -> None:
    sent, arrive = threading.Event(), threading.Event()

    def slow(gateway: ScriptedGateway, exchange: Exchange, request_id: str) -> None:
        sent.set()
        arrive.wait(PATIENCE)
        good(gateway, exchange, request_id)

    with ScriptedGateway(png) as gateway, ThreadPoolExecutor(1) as pool:
        harness.connect(host=gateway.url)
        if earlier:
            harness.run(run="sunday", replace=replace)
        gateway.behaviors = [slow]
        monday = pool.submit(harness.run, run="monday", replace=replace)
        sent.wait(PATIENCE)
        tuesday = harness.run(run="tuesday", replace=replace)
        arrive.set()
        paid = {"monday": monday.result(), "tuesday": tuesday}

        for run, manifest in paid.items():
            assert harness.run(run=run, try_number=2, replace=replace)["images"] == manifest["images"]
        assert gateway.posts == 2 + earlier
    assert [image["key"] for image in tuesday["images"]] == ["fox.png"]


def test_image_overwritten_by_another_run_is_not_reused(harness: Harness) -> None:
    harness.run()
    harness.run("an owl", run="tuesday")

    error = harness.fail(try_number=2)

    assert isinstance(error, exceptions.JojoKeyReceiptError)
    assert "another Dag run has overwritten it" in error.message
    assert harness.billed == 2


def test_reuse_always_pays_again_for_missing_image(harness: Harness) -> None:
    harness.run()
    harness.delete("fox.png")

    assert harness.run(run="tuesday", reuse="always")["reused"] is False
    assert harness.billed == 2


@pytest.mark.parametrize("reuse", ["run", "always"])
def test_missing_image_of_other_run_does_not_hide_lost_response(harness: Harness, reuse: str) -> None:
    harness.fail("a fox [sandbox: reset times=1]")
    harness.run("a fox [sandbox: reset times=1]", run="tuesday")
    harness.delete("fox.png")
    harness.time.skip(60)

    error = harness.fail("a fox [sandbox: reset times=1]", try_number=2, reuse=reuse)

    assert error.billed == "unknown"
    assert harness.posts == 2


@pytest.mark.parametrize("reuse", ["run", "always"])
def test_stored_image_is_reused_after_later_lost_response(harness: Harness, reuse: str) -> None:
    harness.run()
    harness.gateway.behave("reset", times=1)
    harness.fail(try_number=2, reuse="never")

    manifest = harness.run(try_number=3, reuse=reuse, on_unknown_outcome="regenerate")

    assert (manifest["reused"], harness.posts) == (True, 2)


def test_reused_image_needs_no_budget(harness: Harness) -> None:
    harness.run()

    manifest = harness.run(run="tuesday", reuse="always", limits={"task_limit": Limit(images=0)})

    assert manifest["reused"] is True


@pytest.mark.parametrize("limit", ["task_limit", "run_limit"])
def test_budget_prevents_payment(harness: Harness, limit: str) -> None:
    error = harness.fail(n=3, limits={limit: Limit(images=2)})

    assert isinstance(error, exceptions.JojoKeyBudgetError)
    assert (harness.posts, error.billed) == (0, "no")


def test_usage_adds_up_over_all_tries(harness: Harness) -> None:
    prompt = "a fox [sandbox: truncated times=1]"
    failed = harness.fail(prompt, n=2)
    assert failed.usage is not None
    made = harness.run(prompt, try_number=2, n=2, on_unknown_outcome="regenerate")
    cleared = harness.run(prompt, try_number=3, n=2, reuse="never")
    reused = harness.run(prompt, try_number=4, n=2)
    other = harness.run(prompt, run="tuesday", n=2)

    each = [record.total_tokens for record in harness.gateway.charges]
    assert failed.usage["total_tokens"] == each[0]
    assert made["usage"]["total_tokens"] == each[0] + each[1]
    assert cleared["usage"] == reused["usage"]
    assert cleared["usage"]["total_tokens"] + other["usage"]["total_tokens"] == sum(each) == harness.tokens


def test_job_survives_json(harness: Harness) -> None:
    job = harness.job(reuse="always", n=2, extra_body={"user": "me"})
    assert ImageJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_many_lost_responses_read_the_log_once(harness: Harness) -> None:
    """The gateway allows about 20 reads in 20 minutes."""
    for try_number in range(1, 5):
        harness.fail("a fox [sandbox: reset times=4]", try_number=try_number, on_unknown_outcome="regenerate")
    hook = JojoKeyHook()
    reads, read = [], hook.client.billing_log
    vars(hook.client)["billing_log"] = lambda: (reads.append(1), read())[1]

    harness.run("a fox [sandbox: reset times=4]", try_number=5, on_unknown_outcome="regenerate", hook=hook)

    assert harness.posts == 5
    assert len(reads) <= 2
