"""Was it billed? What the gateway's log proves, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_jojokey.img2.billing import CONSUMED, FAILED, MAX_ROWS, TOLERANCE, Verdict, was_billed

SENT = 1_785_412_800.0
FINISHED = SENT + 300
LATE = FINISHED + 1


def row(began: float = 0, took: float = 20, **fields: Any) -> dict[str, Any]:
    """A row of a request that began so many seconds after ours was sent."""
    return {
        "created_at": int(SENT + began + took),
        "use_time": took,
        "type": CONSUMED,
        "model_name": "gpt-image-2",
        "prompt_tokens": 12,
        "completion_tokens": 196,
        "request_id": "req-1",
        **fields,
    }


def failed(began: float = 0, took: float = 20, **fields: Any) -> dict[str, Any]:
    return row(began, took, type=FAILED, prompt_tokens=0, completion_tokens=0, **fields)


def ask(*rows: dict[str, Any], now: float = LATE, **more: Any) -> Verdict:
    asked = {"model": "gpt-image-2", "sent_at": SENT, "sent_by": SENT + 5, "finished_by": FINISHED, **more}
    return was_billed(rows, now=now, **asked)


def test_one_billed_row_that_fits_is_ours() -> None:
    verdict = ask(row())
    assert (verdict.billed, verdict.final) == ("yes", True)
    assert verdict.request_id == "req-1"
    assert verdict.usage == {"input_tokens": 12, "output_tokens": 196, "total_tokens": 208}
    assert "req-1" in verdict.why


def test_one_billed_row_is_believed_before_all_must_have_finished() -> None:
    assert ask(row(), now=SENT + 30).billed == "yes"


def test_a_row_without_tokens_and_id_tells_only_that_it_was_billed() -> None:
    verdict = ask(row(prompt_tokens=0, completion_tokens=None, request_id=""))
    assert verdict == Verdict("yes", "the gateway's log has one request that fits, and it was billed", True)


@pytest.mark.parametrize("now", [SENT + 30, LATE])
def test_of_several_billed_rows_nobody_can_tell_which_is_ours(now: float) -> None:
    verdict = ask(row(), row(1, request_id="req-2"), now=now)
    assert (verdict.billed, verdict.final, verdict.request_id) == ("unknown", True, None)
    assert "2 requests" in verdict.why


def test_no_row_yet_means_nothing_while_the_model_may_be_at_work() -> None:
    verdict = ask(now=FINISHED - 1)
    assert (verdict.billed, verdict.final) == ("unknown", False)


def test_no_row_once_the_model_must_have_finished_means_not_billed() -> None:
    verdict = ask()
    assert (verdict.billed, verdict.final) == ("no", True)


def _full(oldest: float) -> list[dict[str, Any]]:
    return [row(oldest + 1000 + number, request_id=f"req-{number}") for number in range(MAX_ROWS - 1)] + [
        row(oldest, 0, model_name="another", request_id="oldest")
    ]


def test_a_log_that_does_not_reach_back_proves_nothing() -> None:
    verdict = ask(*_full(1))
    assert (verdict.billed, verdict.final) == ("unknown", True)
    assert "reach back" in verdict.why


def test_a_full_log_that_reaches_back_proves_that_nothing_was_billed() -> None:
    assert ask(*_full(-1)).billed == "no"


def test_a_short_log_reaches_back_to_the_beginning() -> None:
    assert ask(*_full(1)[1:]).billed == "no"


def test_a_failed_row_means_not_billed_once_all_must_have_finished() -> None:
    verdict = ask(failed())
    assert (verdict.billed, verdict.final) == ("no", True)
    assert "failed" in verdict.why


def test_a_failed_row_may_be_anothers_while_ours_may_be_at_work() -> None:
    verdict = ask(failed(), now=FINISHED - 1)
    assert (verdict.billed, verdict.final) == ("unknown", False)


def test_a_billed_row_beside_a_failed_one_may_be_either() -> None:
    verdict = ask(row(), failed(request_id="req-2"))
    assert (verdict.billed, verdict.final) == ("unknown", True)


@pytest.mark.parametrize("began", [-TOLERANCE, 0, 5, 5 + TOLERANCE])
def test_clocks_may_be_a_little_off(began: float) -> None:
    assert ask(row(began)).billed == "yes"


@pytest.mark.parametrize("began", [-TOLERANCE - 1, 5 + TOLERANCE + 1, -3600, 250])
def test_a_request_that_began_at_another_time_is_anothers(began: float) -> None:
    assert ask(row(began)).billed == "no"


def test_a_request_that_may_have_been_sent_again_may_have_begun_later() -> None:
    assert ask(row(100)).billed == "no"
    assert ask(row(100), sent_by=SENT + 120).billed == "yes"


@pytest.mark.parametrize("use_time", [0, None, "20", True, ...])
def test_a_row_without_a_duration_only_has_to_end_in_time(use_time: Any) -> None:
    def ended(after: float) -> dict[str, Any]:
        one = row(after, 0)
        del one["use_time"]
        return one if use_time is ... else {**one, "use_time": use_time}

    assert [ask(ended(after)).billed for after in (-11, -10, 0, 299, 310, 311)] == ["no", *["yes"] * 4, "no"]


def test_a_failure_that_took_no_whole_second_began_when_it_ended() -> None:
    assert "failed" in ask(failed(3, 0)).why
    assert "failed" not in ask(failed(60, 0)).why


def test_another_models_row_is_anothers() -> None:
    assert ask(row(model_name="gpt-image-1")).billed == "no"


@pytest.mark.parametrize("kind", [1, 3, 4, "2", None])
def test_a_row_of_another_type_is_no_request(kind: Any) -> None:
    assert ask(row(type=kind)).billed == "no"


def test_requests_that_are_known_to_be_others_do_not_count() -> None:
    assert ask(row(), others=["req-1"]).billed == "no"
    assert ask(row(), row(request_id="req-2"), others=["req-2", None]).request_id == "req-1"


def test_a_row_without_an_id_is_not_hidden_by_others_without_one() -> None:
    assert ask(row(request_id=""), others=[None, ""]).billed == "yes"


def test_a_request_whose_id_is_known_is_found_among_many_and_at_any_time() -> None:
    mine = row(-50, model_name="renamed", request_id="mine")
    verdict = ask(row(), row(request_id="req-2"), mine, request_id="mine")
    assert (verdict.billed, verdict.request_id) == ("yes", "mine")


def test_a_request_whose_id_is_known_to_have_failed_was_not_billed_even_before_the_end() -> None:
    verdict = ask(row(), failed(request_id="mine"), request_id="mine", now=SENT + 30)
    assert (verdict.billed, verdict.final) == ("no", True)


def test_a_request_whose_id_is_known_is_never_another_one() -> None:
    assert ask(row(), request_id="mine").billed == "no"
    verdict = ask(row(), request_id="mine", now=SENT + 30)
    assert (verdict.billed, verdict.final) == ("unknown", False)


def test_where_the_log_has_no_ids_a_request_is_looked_for_by_its_time() -> None:
    assert ask(row(request_id=""), request_id="mine").billed == "yes"


def test_what_had_ended_before_the_answer_was_lost_may_be_anothers_while_ours_may_be_at_work() -> None:
    lost_at = SENT + 120
    verdict = ask(row(took=20), lost_at=lost_at, now=SENT + 130)
    assert (verdict.billed, verdict.final) == ("unknown", False)
    assert ask(row(took=118), lost_at=lost_at, now=SENT + 130).billed == "yes"


def test_once_ours_must_have_finished_one_row_that_fits_is_ours_whenever_it_ended() -> None:
    assert ask(row(took=20), lost_at=SENT + 120).billed == "yes"


def test_rows_that_hold_nothing_are_borne() -> None:
    assert ask({}, {"type": CONSUMED}, {"model_name": "gpt-image-2", "type": CONSUMED}).billed == "no"
