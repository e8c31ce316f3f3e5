"""Find the gateway's error message and codes in a JSON document of any shape.

Errors come as ``{"error": {…}}``, ``{"error": "…"}``, ``{"message": …}``, ``{"detail": [{"loc": …, "msg": …}]}``,
RFC 9457 problems, lists, and JSON inside strings. Messages are displayed, never parsed, because they come in
two languages and change. Only codes are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

MAX_DEPTH = 6
MAX_MESSAGES = 5

_MESSAGE_KEYS = (
    "message", "msg", "detail", "details", "error_message", "error_msg", "errmsg", "errorMessage", "err_msg",
    "error_description", "faultstring", "fail_reason", "failure_reason", "reason", "description", "title",
)  # fmt: skip
_NESTED_KEYS = (
    "error", "errors", "fault", "failure", "last_error", "response", "cause", "base_resp", "data", "output",
    "item", "incomplete_details",
)  # fmt: skip
_CODE_KEYS = ("code", "error_code", "errorCode", "err_code", "error_type", "status_code", "finish_reason")
_TYPE_KEYS = ("type", "status", "reason", "errorType")
_INNER_KEYS = ("innererror", "inner_error", "metadata", "details", "error", "incomplete_details")
_NO_CODE = {"", "0", "200", "success", "ok", "none", "null"}
_FAILED_STATUS = {"failed", "failure", "error", "cancelled", "canceled", "expired", "incomplete", "blocked"}
_FAILED_TYPE = re.compile(r"(?:^|[._-])(?:error|failed|failure|incomplete)$", re.IGNORECASE)


class Failure(Struct, frozen=True):
    """An error that a JSON document reports.

    :param message: the gateway's message, not yet redacted
    :param code: the first error code
    :param type: the error's type
    :param codes: all values that may be an error code, most specific first
    :param structured: whether the error is an object, as the gateway and OpenAI's API write it
    """

    message: str = ""
    code: str = ""
    type: str = ""
    codes: tuple[str, ...] = ()
    structured: bool = False


def find_failure(document: Any, event: str = "", depth: int = 0) -> Failure | None:
    """Return the error that ``document`` reports, or ``None``.

    :param document: a JSON document
    :param event: the name of the server-sent event that it came in
    :param depth: how deep the document is nested in another one
    """
    if depth > MAX_DEPTH:
        return None
    if isinstance(document, list):
        found = (find_failure(element, "", depth + 1) for element in document[:MAX_MESSAGES])
        return next((failure for failure in found if failure is not None), None)
    if not isinstance(document, dict):
        return None
    error = document.get("error") or document.get("errors")
    if isinstance(error, list) and error and isinstance(error[0], dict):
        error = {**error[0], "message": message_of(error)}
    if isinstance(error, dict) and _is_blank(error):
        error = None
    if isinstance(error, dict):
        return _failure_of(error, message_of(error) or message_of(document), structured=True)
    if error and not isinstance(error, bool):
        message = message_of(document) if isinstance(error, (int, float)) else message_of(error)
        return _failure_of(document, message, structured=False)
    if document.get("success") is False:
        return _failure_of(document, message_of(document), structured=True)
    if _is_failed(document, event):
        nested = next((value for name in _NESTED_KEYS if isinstance(value := document.get(name), dict)), None)
        failure = find_failure(nested, "", depth + 1) if nested else None
        return failure or _failure_of(document, message_of(document), structured=False)
    # An event of the Responses API is not a failure itself, but what it reports may be.
    found = (find_failure(document.get(name), "", depth + 1) for name in ("item", "response"))
    return next((failure for failure in found if failure is not None), None)


def read_failure(document: Any) -> Failure:
    """Return the message and codes of ``document``, even if it does not report an error."""
    found = find_failure(document)
    if found is not None:
        return found
    source = document if isinstance(document, dict) else {}
    return _failure_of(source, message_of(document), structured=False)


def message_of(value: Any, depth: int = 0) -> str:
    """Return the human-readable message in ``value``, or an empty string."""
    if depth > MAX_DEPTH:
        return ""
    if isinstance(value, str):
        return _text_of(value, depth)
    if isinstance(value, list):
        messages = (message_of(element, depth + 1) for element in value[:MAX_MESSAGES])
        return "; ".join(filter(None, messages))
    if not isinstance(value, dict):
        return ""
    message = ""
    for name in _MESSAGE_KEYS:
        if message := message_of(value.get(name), depth + 1):
            break
    for name in () if message else _NESTED_KEYS:
        inner = value.get(name)
        # A string under these keys is data: an image, a link or a prompt that the gateway echoes.
        if (name == "error" or isinstance(inner, (dict, list))) and (message := message_of(inner, depth + 1)):
            break
    location = value.get("loc")
    if message and isinstance(location, list):
        message = f"{'.'.join(map(str, location[:8]))}: {message}"
    metadata = value.get("metadata")
    raw = message_of(metadata.get("raw"), depth + 1) if isinstance(metadata, dict) else ""
    return f"{message}: {raw}" if raw and message and raw not in message else message or raw


def _text_of(value: str, depth: int) -> str:
    """Return a text, or the message inside it if it is a JSON document."""
    text = value.strip()
    if text[:1] in ("{", "[") and len(text) < 100_000:
        try:
            return message_of(json.loads(text), depth + 1) or text
        except (ValueError, RecursionError):
            return text
    return text


def _is_failed(document: Mapping[str, Any], event: str) -> bool:
    kind = document.get("type")
    names = [name for name in (kind, event) if isinstance(name, str)]
    if any(_FAILED_TYPE.search(name) for name in names):
        return True
    for name in ("status", "task_status", "state"):
        if isinstance(status := document.get(name), str) and status.lower() in _FAILED_STATUS:
            return True
    return False


def _is_blank(error: Mapping[str, Any]) -> bool:
    """Return whether an error object says nothing: programs in Go write one if there is no error."""
    return all(
        not value or (isinstance(value, str) and value.lower() in _NO_CODE) for value in error.values()
    )


def _failure_of(error: Mapping[str, Any], message: str, structured: bool) -> Failure:
    codes = list(_codes_in(error))
    code = next((value for name in _CODE_KEYS if (value := _code(error.get(name)))), "")
    kind = error.get("type")
    return Failure(message, code, kind if isinstance(kind, str) else "", tuple(codes), structured)


def _codes_in(error: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    for name in _CODE_KEYS:
        if code := _code(error.get(name)):
            yield code
    for name in _INNER_KEYS:
        if isinstance(inner := error.get(name), dict) and depth < MAX_DEPTH:
            yield from _codes_in(inner, depth + 1)
    for name in _TYPE_KEYS:
        if isinstance(value := error.get(name), str) and value:
            yield value[:200]


def _code(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    text = str(value)[:200].strip()
    return "" if text.lower() in _NO_CODE else text


def find_task_id(document: Any, depth: int = 0) -> str | None:
    """Return the ID of an asynchronous task that ``document`` announces, or ``None``."""
    if depth > MAX_DEPTH:
        return None
    if isinstance(document, list):
        return next((found for element in document[:10] if (found := find_task_id(element, depth + 1))), None)
    if not isinstance(document, dict):
        return None
    for name in ("task_id", "taskId", "taskID", "job_id", "jobId", "prediction_id"):
        if (value := document.get(name)) and isinstance(value, (str, int)) and not isinstance(value, bool):
            return str(value)[:200]
    status = document.get("status") or document.get("task_status") or document.get("state")
    kind = f"{document.get('object') or ''} {document.get('type') or ''}".lower()
    waiting = isinstance(status, str) and status.lower().replace("-", "_") in _WAITING_STATUS
    if (waiting or "task" in kind) and (value := document.get("id")) and isinstance(value, (str, int)):
        return str(value)[:200]
    for name in ("data", "output", "result", "response", "task"):
        inner = document.get(name)
        if name == "task" and isinstance(inner, str) and inner:
            return inner[:200]
        if found := find_task_id(inner, depth + 1):
            return found
    return None


_WAITING_STATUS = {
    "submitted", "pending", "queued", "queueing", "processing", "in_progress", "in_queue", "running", "starting",
    "created", "accepted", "not_start", "waiting",
}  # fmt: skip
