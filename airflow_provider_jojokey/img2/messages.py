"""Find the gateway's error message and codes in a JSON document of any shape.

Errors come as ``{"error": {…}}``, ``{"error": "…"}``, ``{"message": …}``, ``{"detail": [{"loc": …, "msg": …}]}``,
RFC 9457 problems, lists, and JSON inside strings. Messages are displayed, never parsed, because they come in
two languages and change. Only codes are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from msgspec import Struct

from airflow_provider_jojokey.img2.json_text import parse_json

MAX_DEPTH = 6
MAX_MESSAGES = 5
MAX_FIELDS = 1000

# Names are compared without case and punctuation: errorMessage, error_message and ErrorMessage are one name.
_MESSAGE_KEYS = (
    "message", "msg", "detail", "details", "errormessage", "errormsg", "errmsg", "errordescription", "statusmsg",
    "statusmessage", "faultstring", "failreason", "failurereason", "reason", "description", "title", "refusal", "text",
)  # fmt: skip
_ERROR_KEYS = ("error", "errors", "fault", "failure", "lasterror", "exception")
_NESTED_KEYS = (
    *_ERROR_KEYS, "response", "responsemetadata", "cause", "baseresp", "data", "output", "result", "item",
    "incompletedetails",
)  # fmt: skip
_CODE_KEYS = ("code", "errorcode", "errcode", "errortype", "statuscode", "finishreason")
_TYPE_KEYS = ("type", "status", "reason")
_INNER_KEYS = (
    *_ERROR_KEYS, "innererror", "metadata", "raw", "detail", "details", "message", "msg", "cause", "baseresp",
    "responsemetadata", "incompletedetails",
)  # fmt: skip
_NOT_WORDS = {*_CODE_KEYS, *_TYPE_KEYS, "param", "object", "id", "requestid", "taskid", "url", "input", "loc", "ctx",
              "metadata"}  # fmt: skip
_REPORTS = ("item", "response", "data", "output", "result", "detail")
"""Names of objects whose error is the document's error."""
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
        failure = next((failure for failure in found if failure is not None), None)
        if failure is None and _is_failed({}, event):
            return _failure_of({"errors": document}, message_of(document), structured=False)
        return failure
    if not isinstance(document, dict):
        return None
    fields = _fields(document)
    error = _parsed(fields.get("error") or fields.get("errors"))
    if isinstance(error, list) and error and isinstance(error[0], dict):
        error = {**error[0], "message": message_of(error)}
    if isinstance(error, dict) and _is_blank(error):
        error = None
    if isinstance(error, dict):
        return _failure_of(error, message_of(error, said=True) or message_of(document), structured=True)
    if error:
        message = message_of(document) if isinstance(error, (int, float)) else message_of(error)
        return _failure_of(document, message, structured=False)
    if document.get("success") is False:
        return _failure_of(document, message_of(document), structured=True)
    inner = [value for name in _REPORTS if isinstance(value := fields.get(name), dict)]
    failures = (find_failure(value, "", depth + 1) for value in inner)
    failure = next((failure for failure in failures if failure is not None), None)
    if failure is None and _is_failed(document, event):
        return _failure_of(document, message_of(document), structured=False)
    return failure


def read_failure(document: Any) -> Failure:
    """Return the message and codes of ``document``, even if it does not report an error."""
    found = find_failure(document)
    if found is not None:
        return found
    source = document if isinstance(document, dict) else {}
    return _failure_of(source, message_of(document), structured=False)


def message_of(value: Any, depth: int = 0, said: bool = False) -> str:
    """Return the human-readable message in ``value``, or an empty string.

    :param value: any JSON value
    :param depth: how deep it is nested
    :param said: whether it is an error or a message, so that its texts are words whatever their names
    """
    if depth > MAX_DEPTH:
        return ""
    if isinstance(value, str):
        parsed = _parsed(value)
        return (message_of(parsed, depth + 1) if parsed is not value else "") or value.strip()
    if isinstance(value, list):
        messages = (message_of(element, depth + 1, said) for element in value[:MAX_MESSAGES])
        return "; ".join(filter(None, messages))
    if not isinstance(value, dict):
        return ""
    fields = _fields(value)
    found = (message_of(fields.get(name), depth + 1, True) for name in _MESSAGE_KEYS)
    message = next(filter(None, found), "")
    for name in () if message else _NESTED_KEYS:
        inner = fields.get(name)
        # A string under these names is data: an image, a link or a prompt that the gateway echoes.
        if (name == "error" or isinstance(inner, (dict, list))) and (
            message := message_of(inner, depth + 1, said or name in _ERROR_KEYS)
        ):
            break
    if not message and said:
        words = [(name, value[name]) for name in [*value][:MAX_MESSAGES] if _normal(name) not in _NOT_WORDS]
        messages = (
            f"{name}: {text}" for name, inner in words if (text := message_of(inner, depth + 1, True))
        )
        message = "; ".join(messages)
    location = value.get("loc")
    if message and isinstance(location, list):
        message = f"{'.'.join(map(str, location[:8]))}: {message}"
    metadata = value.get("metadata")
    raw = message_of(metadata.get("raw"), depth + 1) if isinstance(metadata, dict) else ""
    return f"{message}: {raw}" if raw and message and raw not in message else message or raw


def _normal(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name[:100].lower())


def _fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an object by their normal names. Of several spellings, the first that has a value counts."""
    fields: dict[str, Any] = {}
    for name, value in islice(document.items(), MAX_FIELDS):
        if not fields.get(normal := _normal(name)):
            fields[normal] = value
    return fields


def _parsed(value: Any) -> Any:
    """Return the JSON value that is written in a string, or ``value`` itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"') and len(value) < 100_000:
        parsed = parse_json(value, default=value)
        return value if parsed is value else _parsed(parsed)
    return value


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
    codes = list(_values_in(error, _CODE_KEYS))
    kind = error.get("type")
    types = _values_in(error, _TYPE_KEYS)
    return Failure(
        message,
        codes[0] if codes else "",
        kind if isinstance(kind, str) else "",
        (*codes, *types),
        structured,
    )


def _values_in(error: Any, names: tuple[str, ...], depth: int = 0) -> Iterator[str]:
    """Yield the codes under ``names``, first those of the error itself, then those of the errors inside it."""
    error = _parsed(error)
    if isinstance(error, list) and depth <= MAX_DEPTH:
        for element in error[:MAX_MESSAGES]:
            yield from _values_in(element, names, depth + 1)
    if not isinstance(error, dict) or depth > MAX_DEPTH:
        return
    fields = _fields(error)
    for name in names:
        if code := _code(fields.get(name)):
            yield code
    for name in _INNER_KEYS:
        if name in fields:
            yield from _values_in(fields[name], names, depth + 1)


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
    fields = _fields(document)
    if found := next(filter(None, (_id(fields.get(name)) for name in _TASK_IDS)), None):
        return found
    status = fields.get("status") or fields.get("taskstatus") or fields.get("state")
    kind = f"{fields.get('object') or ''} {fields.get('type') or ''}".lower()
    waits = isinstance(status, str) and status.lower().replace("-", "_") in _WAITING_STATUS
    polled = any(fields.get(name) for name in _POLLED) or fields.get("done") is False
    announced = waits or polled or "task" in kind
    if announced and (found := next(filter(None, (_id(fields.get(name)) for name in _IDS)), None)):
        return found
    for name in _TASK_PLACES:
        inner = fields.get(name)
        if found := find_task_id(inner, depth + 1):
            return found
        # {"code": "success", "data": "task_1"}
        if isinstance(inner, str) and (name == "task" or "code" in fields) and _BARE_ID.fullmatch(inner):
            return inner
    return None


def find_task_link(headers: Mapping[str, str]) -> str:
    """Return the address of an asynchronous task that a response without images names in its headers, or "".

    :param headers: the response's headers, with lower-case names
    """
    return next((link.strip() for name in _TASK_HEADERS if (link := headers.get(name))), "")


def task_id_of(link: str) -> str | None:
    """Return the last part of a task's address, which is its ID."""
    return re.split("[?#]", link, maxsplit=1)[0].rstrip("/").rpartition("/")[2][:200] or None


def _id(value: Any) -> str | None:
    usable = isinstance(value, (str, int)) and not isinstance(value, bool) and value
    return str(value)[:200] if usable else None


_TASK_HEADERS = ("operation-location", "azure-asyncoperation", "location")
_TASK_IDS = ("taskid", "taskuuid", "jobid", "predictionid", "generationid")
_IDS = ("id", "uuid", "requestid", "name")
_POLLED = ("pollingurl", "statusurl", "responseurl")
_TASK_PLACES = ("data", "output", "result", "response", "task", "job", "sdgenerationjob")
_BARE_ID = re.compile(r"(?=.*[0-9])[A-Za-z0-9][A-Za-z0-9_-]{2,99}")
_WAITING_STATUS = {
    "submitted", "pending", "queued", "queueing", "processing", "in_progress", "in_queue", "running", "starting",
    "created", "accepted", "not_start", "waiting", "validating",
    "notrunning",
}  # fmt: skip
