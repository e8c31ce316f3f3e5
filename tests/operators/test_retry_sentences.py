"""The end of each error says what a retry does and pays, with the settings of the task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator
from airflow_provider_jojokey.results import XCOM_KEY
from tests.support.campaigns import posters
from tests.support.fault_proxy import FaultProxy, answer, error, on

NEVER, REGENERATE = {"reuse": "never"}, {"on_unknown_outcome": "regenerate"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__JOJOKEY__UPLOAD_PATIENCE", "0")


def attempt(try_number: int, **arguments: Any) -> str:
    """Run a try, and return its error, which the UI shows too."""
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="dag", run_id="monday", task_id="task", map_index=-1, try_number=try_number, id=f"ti-{try_number}",
        xcom_push=pushed.__setitem__,
    )  # fmt: skip
    kind: Any = GenerateImageBatchOperator if "requests" in arguments else GenerateImageOperator
    single = {} if "requests" in arguments else {"prompt": "a fox", "s3_key": "fox.png"}
    text = ""
    try:
        kind(task_id="task", s3_bucket="posters", **single, **arguments).execute({"ti": ti})
    except JojoKeyError as failure:
        text = str(failure)
    assert (pushed[XCOM_KEY]["message"] or "") == text
    return text


@pytest.mark.parametrize(
    ("settings", "sentence", "payments"),
    [
        ({}, "Airflow does not retry the task, which would pay a second time.", 1),
        (REGENERATE, "pays for it, even if an earlier one was billed, because of on_unknown_outcome='regenerate'.", 2),
        (NEVER, "A retry sends a new request and pays for it, because of reuse='never'.", 2),
        ({**NEVER, **REGENERATE}, "A retry sends a new request and pays for it, because of reuse='never'.", 2),
    ],
)  # fmt: skip
def test_error_says_whether_a_retry_pays_again(
    gateway: Any, store: Any, settings: dict[str, Any], sentence: str, payments: int
) -> None:
    gateway.behave("not_an_image", times=1)
    assert sentence in attempt(1, **settings)

    attempt(2, **settings)

    assert len(gateway.charges) == payments


def test_error_after_a_paid_try_does_not_deny_the_payment(gateway: Any, store: Any) -> None:
    gateway.behave("not_an_image", times=1)
    attempt(1, **REGENERATE)
    gateway.behave("rate_limited", times=2)

    text = attempt(2, **REGENERATE)

    assert "JojoKey rate-limits this token" in text
    assert "paid so far" not in text
    assert "even if an earlier one was billed" in text


def test_error_that_may_be_the_last_promises_no_retry(gateway: Any, store: Any) -> None:
    gateway.behave("rate_limited", times=2)
    text = attempt(1)
    assert text.endswith("A retry sends the request again.")
    assert "Airflow retries" not in text


@pytest.mark.parametrize(
    ("settings", "sentence", "payments"),
    [
        ({}, "A retry on this host stores them without paying again. A retry on another host can't reach them, but "
         "doesn't pay again either.", 1),
        (REGENERATE, "A retry on this host stores them without paying again. A retry on another host can't reach "
         "them, and pays for new ones, because of on_unknown_outcome='regenerate'.", 1),
        (NEVER, "A retry on this host stores them. Because of reuse='never', it also pays for new ones; with "
         "reuse='run', it would not.", 2),
    ],
)  # fmt: skip
def test_error_says_what_a_retry_does_with_the_spool(
    gateway: Any, s3: FaultProxy, settings: dict[str, Any], sentence: str, payments: int
) -> None:
    s3.faults = [on("PUT", "/posters/fox.png", answer(error(403, "AccessDenied")))]
    assert sentence in attempt(1, **settings)
    s3.faults = []

    assert not attempt(2, **settings)

    assert len(gateway.charges) == payments


def test_spool_is_stored_without_payment_as_the_error_says(gateway: Any, s3: FaultProxy, store: Any) -> None:
    s3.faults = [on("PUT", "/posters/fox.png", answer(error(403, "AccessDenied")))]
    assert "with reuse='run', it would not" in attempt(1, **NEVER)
    s3.faults = []

    assert not attempt(2, reuse="run")

    assert len(gateway.charges) == 1
    assert "fox.png" in store.objects()


@pytest.mark.parametrize(
    ("settings", "item", "sentence", "payments"),
    [
        ({}, {}, "A retry sends only what is missing: it does not pay twice.", 3),
        (NEVER, {}, "A retry sends what is missing, and pays again for all items with reuse='never'.", 5),
        ({}, NEVER, "A retry sends what is missing, and pays again for all items with reuse='never'.", 4),
        (REGENERATE, {}, "A retry sends only what is missing, and pays for it, even if an earlier request was "
         "billed, because of on_unknown_outcome='regenerate'.", 3),
    ],
)  # fmt: skip
def test_error_of_a_batch_says_whether_a_retry_pays_again(
    gateway: Any, store: Any, settings: dict[str, Any], item: dict[str, Any], sentence: str, payments: int
) -> None:
    requests = posters(3)
    requests[0] |= item
    requests[1]["prompt"] = "a fox [sandbox: cloudflare_524 billed=no]"
    assert attempt(1, requests=requests, **settings).endswith(sentence)
    assert len(gateway.charges) == 2

    requests[1]["prompt"] = "a fox"
    assert not attempt(2, requests=requests, **settings)

    assert len(gateway.charges) == payments


@pytest.mark.parametrize("item", [{}, NEVER])
def test_cleared_batch_pays_for_what_its_error_says(gateway: Any, store: Any, item: dict[str, Any]) -> None:
    requests = posters(2)
    requests[0] |= item
    requests[1]["prompt"] = "a fox [sandbox: moderation_blocked]"
    text = attempt(1, requests=requests)
    assert "Airflow does not retry the task" in text
    assert ("pays again for all items with reuse='never'" in text) is bool(item)
    assert ("only what is missing is sent and paid for" in text) is not bool(item)

    requests[1]["prompt"] = "a fox"
    assert not attempt(2, requests=requests)

    assert len(gateway.charges) == (3 if item else 2)


@pytest.mark.parametrize("settings", [{}, NEVER])
def test_budget_error_says_what_a_cleared_task_pays(
    gateway: Any, store: Any, settings: dict[str, Any]
) -> None:
    assert not attempt(1, **settings)
    payments = len(gateway.charges)

    text = attempt(2, max_images=1, **settings)

    assert ("it pays for new images, because of reuse='never'" in text) is bool(settings)
    assert len(gateway.charges) == payments


@pytest.mark.parametrize("settings", [{}, NEVER])
def test_batch_that_cannot_start_says_what_a_retry_pays(
    gateway: Any, s3: FaultProxy, settings: dict[str, Any]
) -> None:
    assert not attempt(1, requests=posters(2), **settings)
    s3.faults = [on("PUT", "/batches/", answer(error(403, "AccessDenied")))]

    text = attempt(2, requests=posters(2), **settings)

    assert text.endswith(
        "because of reuse='never'." if settings else "A retry is safe: it does not pay twice."
    )
