"""The exceptions that tasks end with: their class, their text, and copies in other processes."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_provider_jojokey import exceptions as errors
from airflow_provider_jojokey.exceptions import JojoKeyError
from airflow_provider_jojokey.img2.errors import Img2Error, Kind

FACTS: dict[str, Any] = {
    "status_code": 429,
    "code": "rate",
    "request_id": "20261123-x",
    "cf_ray": "8f2c-HKG",
    "retry_after": 2.5,
}

CLASSES = {
    Kind.REQUEST: errors.JojoKeyRequestError,
    Kind.TOKEN: errors.JojoKeyTokenError,
    Kind.ACCESS: errors.JojoKeyAccessError,
    Kind.EDGE_BLOCKED: errors.JojoKeyEdgeBlockedError,
    Kind.QUOTA: errors.JojoKeyQuotaError,
    Kind.CONTENT: errors.JojoKeyContentError,
    Kind.BASE_URL: errors.JojoKeyBaseUrlError,
    Kind.TLS: errors.JojoKeyTLSError,
    Kind.RATE_LIMIT: errors.JojoKeyRateLimitError,
    Kind.NO_CHANNEL: errors.JojoKeyNoChannelError,
    Kind.OVERLOADED: errors.JojoKeyOverloadedError,
    Kind.UNREACHABLE: errors.JojoKeyUnreachableError,
    Kind.UNKNOWN_OUTCOME: errors.JojoKeyUnknownOutcomeError,
    Kind.REPLY: errors.JojoKeyReplyError,
}

A_RETRY_MAY_HELP = {Kind.RATE_LIMIT, Kind.NO_CHANNEL, Kind.OVERLOADED, Kind.UNREACHABLE, Kind.UNKNOWN_OUTCOME}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_has_its_own_class(kind: Kind) -> None:
    error = JojoKeyError.of(Img2Error(kind, "It went wrong", billed="unknown", detail="so they say", **FACTS))
    assert type(error) is CLASSES[kind]
    assert isinstance(error, AirflowException)
    for name, value in {**FACTS, "billed": "unknown"}.items():
        assert getattr(error, name) == value


@pytest.mark.parametrize("end", [".", "!", "?", "。", "！", "？", "…", ")", "", '"'])  # noqa: RUF001
def test_quoted_message_ends_with_one_full_stop(end: str) -> None:
    stop = "." if end in ("…", ")", "", '"') else ""
    error = Img2Error(Kind.CONTENT, billed="no", detail=f"Not allowed{end}", status_code=400)
    expected = f'for its content (HTTP 400): "Not allowed{end}"{stop} '
    assert f"{expected}You were not charged." in str(error)
    assert f"{expected}Nothing was billed." in str(JojoKeyError.of(error))


@pytest.mark.parametrize("kind", Kind)
def test_kinds_that_a_retry_cannot_fix_fail_the_task_immediately(kind: Kind) -> None:
    error = JojoKeyError.of(Img2Error(kind, "It went wrong"))
    assert isinstance(error, AirflowFailException) is (kind not in A_RETRY_MAY_HELP)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    ("billed", "money"),
    [
        ("no", "Nothing was billed."),
        ("yes", "You were charged."),
        ("unknown", "You may have been charged."),
    ],
)
def test_text_names_cause_charge_advice_and_retry_in_order(kind: Kind, billed: Any, money: str) -> None:
    cause = Img2Error(kind, "It went wrong", billed=billed, detail="so they say", **FACTS)
    message = str(JojoKeyError.of(cause))
    positions = [message.find(words) for words in ("It went wrong", "so they say", money, cause.advice)]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert message.endswith(CLASSES[kind].retry)
    assert re.search("retr(y|ies)", CLASSES[kind].retry)
    for value in FACTS.values():
        if not isinstance(value, float):
            assert str(value) in message


def test_invalid_request_is_a_value_error() -> None:
    assert issubclass(errors.JojoKeyRequestError, ValueError)


def all_classes(base: type[JojoKeyError]) -> list[type[JojoKeyError]]:
    return [base, *(found for child in base.__subclasses__() for found in all_classes(child))]


@pytest.mark.parametrize("cls", all_classes(JojoKeyError))
@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_copies_keep_every_fact(cls: type[JojoKeyError], copied: Any) -> None:
    error = cls("It went wrong.", billed="yes", **FACTS)
    error.add_note("seen on the way")
    again = copied(error)
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.args == error.args
    for name, value in {**FACTS, "billed": "yes", "what": "It went wrong.", "message": error.message}.items():
        assert getattr(again, name) == value


@pytest.mark.parametrize("cls", all_classes(JojoKeyError))
def test_every_argument_is_optional(cls: type[JojoKeyError]) -> None:
    error = cls()
    assert error.billed == "no"
    assert error.status_code is None
