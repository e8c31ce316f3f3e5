"""Find the images in a JSON document of any known envelope.

The API promises ``{"data": [{"b64_json": "…"}]}``. Gateways also send ``data`` as an object, a list at the
root, ``{"images": […]}``, ``{"code": 0, "data": {"data": […]}}``, bare strings, and links instead of base64.
A text without the signature of an image, or a link, counts only if every key above it is a known container.

If a document has no image there, base64 with the signature of an image counts anywhere, as in a chat completion
(``choices[].message.images[].image_url.url``) or in Gemini's ``candidates[].content.parts[].inlineData.data``. Below
the name of an input, an error or a decoration, it doesn't: an image that the gateway echoes, or its logo, would be
taken for the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from msgspec import Struct

from airflow_provider_jojokey.img2.base64_value import Base64Value
from airflow_provider_jojokey.img2.splitter import Path

CONTAINERS = (
    "data", "images", "image", "result", "results", "output", "outputs", "response", "artifacts", "predictions",
    "items", "item", "image_url", "image_urls", "urls", "url", "generated_images", "generatedImages", "image_base64",
)  # fmt: skip
BASE64_KEYS = (
    "b64_json", "b64", "base64", "image_base64", "image_b64", "b64Json", "imageBase64", "bytesBase64Encoded",
    "partial_image_b64",
)  # fmt: skip
LINK_KEYS = ("url", "image_url", "image", "link", "src", "uri")
_NOT_RESULTS = frozenset(
    ("error", "errors", "detail", "details",
     "input", "inputs", "inputimage", "inputimages", "request", "requestbody", "prompt", "parameters", "params",
     "messages", "mask", "maskimage", "initimage", "initimages", "imageprompt", "reference", "references",
     "referenceimage", "referenceimages", "sourceimage", "originalimage", "controlimage",
     "logo", "avatar", "icon", "favicon", "watermark", "thumbnail", "thumbnails", "thumb", "preview", "previews")
)  # fmt: skip
"""Names without case, underscores and hyphens."""
MAX_PATH = 8
MAX_OTHER_PATH = 24

_IMAGE_KEYS = dict.fromkeys((*BASE64_KEYS, *LINK_KEYS, "result", "data"))
"""In order of precedence."""
_CONTAINERS = frozenset(CONTAINERS)
_BASE64_KEYS = frozenset(BASE64_KEYS)
_LINK_PLACES = frozenset(LINK_KEYS) | _CONTAINERS

PREVIEW_WORDS = ("partial", "chunk", "preview", "progress", "intermediate")
"""Words in the type, the event or the status of a preview."""
_KINDS = ("type", "object", "event", "event_type", "status", "state")
_PREVIEW_FLAG = re.compile(r"(?:is_?)?(?:partial|preview|intermediate)|thought", re.IGNORECASE)
_CHAT = "chat.completion"
"""The object type of chat completions. The images in their chunks are whole."""
_FINAL_FLAG = re.compile(r"(?:is_?)?(?:final|finished|completed?|done)", re.IGNORECASE)
_FINISHED = ("succeeded", "completed", "done", "finished")
"""The endings of events with an image that is part of a set: ``image_generation.partial_succeeded``."""

ValueOf = Callable[[Any], Base64Value | None]


class Slot(Struct, frozen=True):
    """One element of a response that should be an image.

    :param value: its decoded base64
    :param url: the link to download it from if ``value`` is not usable
    :param revised_prompt: the prompt as the model rewrote it
    :param element: the element itself, without base64
    :param at_known_path: whether its path is that of images
    """

    value: Base64Value | None
    url: str | None
    revised_prompt: str | None
    element: Any
    at_known_path: bool = True


def is_base64(path: Path) -> bool:
    """Return whether the string at ``path`` is the base64 of an image."""
    return bool(path) and path[-1] in _BASE64_KEYS and _in_containers(path)


def is_link(path: Path) -> bool:
    """Return whether the string at ``path`` may be an image or a link to one."""
    return bool(path) and (path[-1] in _LINK_PLACES or isinstance(path[-1], int)) and _in_containers(path)


def is_other(path: Path) -> bool:
    """Return whether the string at ``path`` is an image if it has the signature of one."""
    return (
        0 < len(path) <= MAX_OTHER_PATH
        and path[-1] is not None
        and not any(isinstance(key, str) and _is_no_result(key) for key in path)
    )


def _is_certain(path: Path) -> bool:
    return path[-1] == "b64_json" or any(isinstance(key, int) for key in path)


_Places = tuple[Callable[[Path], bool], Callable[[Path], bool], Callable[[Path], bool]]

PLACES: _Places = (is_base64, is_link, is_other)
"""Whether a string is base64, an image or a link, or an image by its signature alone."""
CERTAIN_PLACES: _Places = (
    lambda path: is_base64(path) and _is_certain(path),
    lambda path: is_link(path) and _is_certain(path),
    lambda path: False,
)
"""The same for documents that may have other pictures: only lists, and the API's own name."""


@lru_cache(maxsize=1000)
def _is_no_result(key: str) -> bool:
    return re.sub("[_-]", "", key.lower()) in _NOT_RESULTS


def _in_containers(path: Path) -> bool:
    return len(path) <= MAX_PATH and all(isinstance(key, int) or key in _CONTAINERS for key in path[:-1])


def is_preview(document: Any, event: str = "") -> bool:
    """Return whether the images in ``document`` are previews.

    :param document: a JSON document
    :param event: the name of the server-sent event that it came in
    """
    if not isinstance(document, dict):
        return False
    if document.get("partial_image_index") is not None or document.get("partial_image_b64") is not None:
        return True
    kinds = [kind.lower() for kind in (event, *map(document.get, _KINDS)) if isinstance(kind, str)]
    names = [kind for kind in kinds if not kind.startswith(_CHAT)]
    if any(name.endswith(_FINISHED) for name in names):
        return False
    return any(word in name for name in names for word in PREVIEW_WORDS) or any(
        (value is True and _PREVIEW_FLAG.fullmatch(name)) or (value is False and _FINAL_FLAG.fullmatch(name))
        for name, value in document.items()
    )


def find_slots(document: Any, value_of: ValueOf) -> list[Slot]:
    """Return the elements of a response in order, and remove the placeholders from it.

    :param document: the JSON document, with placeholders for base64
    :param value_of: returns the value that a placeholder stands for
    """
    slots = [_slot(element, value_of) for element in _elements(document, value_of)]
    if not any(slot.url or (slot.value and slot.value.sink) for slot in slots):
        slots = list(_other_slots(document, value_of)) or slots
    _remove_placeholders(document, value_of)
    return slots


def is_listed(slot: Slot, document: Any, depth: int = 0) -> bool:
    """Return whether a slot is an element of a list in ``document``: images are, links to documentation aren't."""
    if depth > MAX_PATH:
        return False
    if isinstance(document, list):
        return any(
            item is slot.element or (slot.url and item == slot.url) or is_listed(slot, item, depth + 1)
            for item in document
        )
    inner = [document[name] for name in CONTAINERS if name in document] if isinstance(document, dict) else []
    return any(is_listed(slot, value, depth + 1) for value in inner)


def _elements(document: Any, value_of: ValueOf, depth: int = 0) -> list[Any]:
    if depth > MAX_PATH:
        return []
    if isinstance(document, list):
        nested = [_elements(item, value_of, depth + 1) or [item] for item in document]
        return [element for elements in nested for element in elements]
    if not isinstance(document, dict):
        return []
    if _has_image(document, value_of):
        return [document]
    fallback: list[Any] = []
    for name in CONTAINERS:
        if name not in document:
            continue
        inner = document[name]
        if isinstance(inner, str) and _is_image_string(inner, value_of):
            return [inner]
        elements = _elements(inner, value_of, depth + 1)
        if any(_is_image_string(element, value_of) or _has_image(element, value_of) for element in elements):
            return elements
        fallback = fallback or elements
    return fallback


def _other_slots(document: Any, value_of: ValueOf) -> Iterator[Slot]:
    """Yield the images at any path, in order. Their element is the innermost list item: flags may stand beside them."""
    todo = [(document, document)]
    while todo:
        inner, element = todo.pop()
        if (value := value_of(inner)) is not None:
            if value.sink is not None:
                yield Slot(value, None, None, element, at_known_path=False)
        elif isinstance(inner, dict):
            todo += [(item, element) for item in reversed(inner.values())]
        elif isinstance(inner, list):
            todo += [(item, item if isinstance(item, dict) else element) for item in reversed(inner)]


def _has_image(element: Any, value_of: ValueOf) -> bool:
    if not isinstance(element, dict):
        return False
    if any(name in _IMAGE_KEYS and value_of(value) is not None for name, value in element.items()):
        return True
    return _link_in(element) is not None


def _is_image_string(element: Any, value_of: ValueOf) -> bool:
    return isinstance(element, str) and (value_of(element) is not None or _looks_like_url(element))


def _looks_like_url(text: str) -> bool:
    return text.startswith(("http://", "https://", "/")) and 1 < len(text) < 10_000


def _link_in(element: Mapping[str, Any]) -> str | None:
    for name in (*LINK_KEYS, *BASE64_KEYS):
        if name not in element:
            continue
        value = element[name]
        if isinstance(value, dict):
            value = value.get("url")
        if isinstance(value, list) and value:
            value = value[0]
        # The value of "url" is always a link; the value of "image" may be any text.
        if isinstance(value, str) and value and (name in ("url", "image_url") or _looks_like_url(value)):
            return value
    return None


def _slot(element: Any, value_of: ValueOf) -> Slot:
    if isinstance(element, str):
        value = value_of(element)
        return Slot(value, element if value is None and _looks_like_url(element) else None, None, None)
    if not isinstance(element, dict):
        return Slot(None, None, None, element)
    nested = element.get("image_url")
    places = [element[name] for name in _IMAGE_KEYS if name in element]
    places += [nested.get("url")] if isinstance(nested, dict) else []
    values = [value for place in places if (value := value_of(place)) is not None]
    # An empty string means that the image is missing.
    value = next((value for value in values if value.sink is not None), values[0] if values else None)
    link = _link_in(element)
    if link is not None and value_of(link) is not None:
        link = None
    revised = element.get("revised_prompt")
    return Slot(value, link, revised if isinstance(revised, str) and revised else None, element)


def _remove_placeholders(document: Any, value_of: ValueOf) -> None:
    todo = [document]
    while todo:
        inner = todo.pop()
        places = (
            inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        )
        for key, value in list(places):
            if value_of(value) is not None:
                inner[key] = None
            elif isinstance(value, (dict, list)):
                todo.append(value)
