"""The reply decoder must agree with ``json`` and ``base64``, in any chunks."""

from __future__ import annotations

import base64
import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airflow_provider_jojokey.img2 import reply as reply_module
from airflow_provider_jojokey.img2.images import ImageFile
from airflow_provider_jojokey.img2.reply import Reply, ReplyDecoder, ReplyError
from airflow_provider_jojokey.img2.splitter import Splitter


class Sink:
    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert data, "an empty write is a wasted system call"
        self.data += data

    def close(self) -> None:
        self.closed = True


class RecordingDecoder:
    """A decoder that records its sinks."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.decoder = ReplyDecoder(self._open)

    def _open(self, index: int) -> Sink:
        assert index == len(self.sinks)
        self.sinks.append(Sink())
        return self.sinks[-1]

    def decode(self, document: bytes, cuts: list[int] | None = None) -> Reply:
        start = 0
        for cut in [*(cuts or []), len(document)]:
            self.decoder.feed(document[start:cut])
            start = cut
        return self.decoder.finish()


def decode(document: bytes | str, cuts: list[int] | None = None) -> Reply:
    return RecordingDecoder().decode(document.encode() if isinstance(document, str) else document, cuts)


def images_of(reply: Reply) -> list[tuple[int, bytes | None, str | None, str | None]]:
    return [
        (image.index, image.sink.data if image.sink else None, image.url, image.revised_prompt)
        for image in reply.images
    ]


def rejection(document: bytes | str, cuts: list[int] | None = None) -> str:
    with pytest.raises(ReplyError) as caught:
        decode(document, cuts)
    return str(caught.value)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- the oracle: json and base64 ---------------------------------------------------------------------------------


class Pairs(list[Any]):
    """A JSON object that keeps duplicate keys."""


def loads(document: bytes) -> Any:
    """Read the first document, and ignore bytes after it."""
    text = document.decode("utf-8", "replace").lstrip(" \t\r\n,")
    if text[:1] not in ("{", "["):
        raise ValueError("not an object or a list")
    return json.JSONDecoder(strict=False).raw_decode(text)[0]


def is_image(name: str, value: Any) -> bool:
    heads = ("data:", "ivborw0kggo", "/9j/", "uklgr")
    return isinstance(value, str) and (name == "b64_json" or value.lower().startswith(heads))


def image_bytes(text: str) -> bytes:
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or len(head) >= 256 or not head.lower().endswith(";base64"):
            raise ValueError("not a base64 data URI")
        # A quotation mark may be written as \u0022 or as \"; json reads both alike.
        assume('"' not in head)
    text = re.sub("[ \t\r\n]", "", text).replace("-", "+").replace("_", "/")
    if text.endswith("=") and len(text.rstrip("=")) % 4 == 0:
        raise ValueError("padding without need, which some versions of Python let pass")
    if "=" not in text and len(text) % 4 > 1:
        text += "=" * (4 - len(text) % 4)
    return base64.b64decode(text, validate=True)


BROKEN = b"broken"


def oracle(document: bytes) -> tuple[Any, list[tuple[int, bytes | None, str | None, str | None]]]:
    parsed = loads(document)
    images = []
    elements = parsed.get("data") if isinstance(parsed, dict) else None
    for index, element in enumerate(elements if isinstance(elements, list) else []):
        if not isinstance(element, dict):
            continue
        found = None
        for name in ("b64_json", "url"):
            if is_image(name, value := element.get(name)):
                try:
                    found = found or image_bytes(value) or None
                except ValueError:
                    found = found or BROKEN
                element[name] = None
        texts = [element.get("url") or None, element.get("revised_prompt") or None]
        images.append((index, found, *(text if isinstance(text, str) else None for text in texts)))
    return parsed, images


def comparable_images(reply: Reply) -> list[tuple[int, bytes | None, str | None, str | None]]:
    """Return the images of a reply in the form of the oracle."""
    return [
        (
            image.index,
            BROKEN
            if "base64" in image.problem or "data URI" in image.problem
            else image.sink.data
            if image.sink
            else None,
            image.url,
            image.revised_prompt,
        )
        for image in reply.images
        if image.problem != "it is missing" or image.index in dicts_of(reply)
    ]


def dicts_of(reply: Reply) -> list[int]:
    return [index for index, item in enumerate(reply.document["data"]) if isinstance(item, dict)]


# --- random replies ----------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "",
        "b64_json",
        "data",
        "url",
        "a fox",
        'he said "b64_json":"AAAA"',
        "\\",
        "{}[],:",
        "中文",
        "\U0001f98a",
        "/",
        "\n",
    ]
)
KEYS = st.sampled_from(["b64_json", "data", "url", "usage", "error", "", "中", 'q"uote', "x"])
ROOT_KEYS = st.sampled_from(["usage", "", "中", 'q"uote', "x"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**6), st.just(1.5), WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(st.tuples(KEYS, inner), max_size=3).map(Pairs)
    ),
    max_leaves=8,
)
RAW = st.one_of(st.binary(max_size=12), st.binary(min_size=30, max_size=200))
HEADS = st.sampled_from(
    [
        "data:image/png;base64,",
        "data:image/webp;charset=x;base64,",
        "DATA:image/jpeg;BASE64,",
        "data:;base64,",
    ]
)


@st.composite
def encoded_images(draw: Callable[..., Any]) -> str:
    return (draw(HEADS) if draw(st.booleans()) else "") + b64(draw(RAW))


ELEMENTS = st.lists(
    st.one_of(
        st.tuples(st.just("b64_json"), st.one_of(encoded_images(), st.none(), st.just(""))),
        st.tuples(
            st.just("url"), st.sampled_from(["", "https://example.com/a.png", "data:image/png;base64,AAAA"])
        ),
        st.tuples(st.just("revised_prompt"), WORDS),
        st.tuples(st.sampled_from(["x", "usage"]), VALUES),
    ),
    max_size=4,
).map(Pairs)
FIELDS = st.one_of(
    st.tuples(st.just("data"), st.lists(st.one_of(ELEMENTS, ELEMENTS, SCALARS), max_size=4)),
    st.tuples(ROOT_KEYS, VALUES),
)


def write(value: Any, rnd: random.Random) -> str:
    """Write JSON as oddly as the grammar allows."""
    blank = "".join(rnd.choices(" \t\r\n", k=rnd.choice([0, 0, 0, 1, 3])))
    if isinstance(value, Pairs):
        inside = ",".join(f"{write(key, rnd)}:{write(member, rnd)}" for key, member in value)
        return f"{blank}{{{inside}{blank}}}"
    if isinstance(value, list):
        return f"{blank}[{','.join(write(item, rnd) for item in value)}{blank}]{blank}"
    if isinstance(value, str):
        return blank + write_string(value, rnd) + blank
    return blank + json.dumps(value) + blank


def write_string(value: str, rnd: random.Random) -> str:
    written = json.dumps(value, ensure_ascii=rnd.random() < 0.5)[1:-1]
    if "\\" not in written and written.isascii() and rnd.random() < 0.2:
        # A url is an image only after a plain "data:".
        plain = 5 if value[:5].lower() == "data:" else 0
        written = written[:plain] + "".join(
            f"\\u{ord(c):04{rnd.choice('xX')}}" if rnd.random() < 0.2 else c for c in written[plain:]
        )
    elif rnd.random() < 0.3:
        written = written.replace("/", "\\/")
    return f'"{written}"'


@st.composite
def replies(draw: Callable[..., Any]) -> bytes:
    fields = draw(st.lists(FIELDS, max_size=4))
    fields.insert(0, ("data", draw(st.lists(ELEMENTS, max_size=3))))
    rnd = draw(st.randoms(use_true_random=False))
    rnd.shuffle(fields)
    return write(Pairs(fields), rnd).encode()


@st.composite
def cuts_of(draw: Callable[..., Any], document: bytes) -> list[int]:
    how = draw(st.sampled_from(["whole", "bytes", "some"]))
    if how == "whole" or not document:
        return []
    if how == "bytes":
        return list(range(1, len(document)))
    return sorted(draw(st.lists(st.integers(0, len(document)), max_size=8)))


BREAKAGE = [b"=", b"==", b"\\", b'"', b"A", b"\xff", b"\\/", b"\\\\/", b"\\u0041", b"\\u00", b"\\n", b"\n", b" ", b"-",
            b"\x00", b"\x07", b",", b":", b"}", b"]", b"{", b"[", b"data:", b";base64,", b"\\ud83d",
            "é".encode()]  # fmt: skip


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_decoder_agrees_with_json_and_base64(data: st.DataObject) -> None:
    document = data.draw(replies())
    cuts = data.draw(cuts_of(document))

    reply = decode(document, cuts)

    parsed, images = oracle(document)
    assert comparable_images(reply) == images
    assert reply.document == parsed


def test_broken_base64_beside_a_link_is_reported() -> None:
    [image] = decode(b'{"data": [{"url": "https://example.com/a.png", "b64_json": "AA==="}]}', []).images

    assert image.url == "https://example.com/a.png"
    assert image.problem


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_decoder_yields_only_bytes_that_base64_decodes(data: st.DataObject) -> None:
    broken = bytearray(data.draw(replies()))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(broken)))
        until = at + data.draw(st.sampled_from([0, 0, 1, 2, 1000]))
        broken[at:until] = data.draw(st.sampled_from([b"", *BREAKAGE]))
    document = bytes(broken)
    recorder = RecordingDecoder()
    try:
        reply = recorder.decode(document, data.draw(cuts_of(document)))
    except ReplyError:
        recorder.decoder.close()
        assert all(sink.closed for sink in recorder.sinks)
        return
    strings = document.decode("utf-8", "replace").split('"')
    for image in reply.images:
        if image.sink and not image.problem:
            assert image.sink.data in decoded(strings)


def decoded(strings: list[str]) -> list[bytes]:
    """Return what each text between two quotation marks is as base64."""
    found = []
    for text in strings:
        try:
            found.append(image_bytes(json.loads(f'"{text}"', strict=False)))
        except ValueError:
            continue
    return found


@pytest.mark.parametrize(
    "document",
    [
        b'{"created":1,"data":[{"b64_json":"QUJDREVGRw==","revised_prompt":"a \\"fox\\""}],"usage":{"total_tokens":3}}',
        b'{"data":[{"url":"","b64_json":"data:image/png;base64,QUJD\\/EVG"},{"b64_json":"QUI="}]}',
        b'[{"data":1}]',
    ],
)
def test_truncated_response_is_rejected_at_any_byte(document: bytes) -> None:
    decode(document)
    for length in range(len(document)):
        rejection(document[:length])


# --- which values are images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(9))
def test_base64_padding_is_read_in_any_chunks(length: int) -> None:
    image = bytes(range(length))
    document = json.dumps({"data": [{"b64_json": b64(image)}]}).encode()
    for piece in range(1, 9):
        cuts = list(range(piece, len(document), piece))
        assert images_of(decode(document, cuts)) == [(0, image or None, None, None)]


@pytest.mark.parametrize(
    "value",
    [
        "A",
        "ABCDE",
        "AB=",
        "AB==CDEF",
        "AB==AB==",
        "=",
        "====",
        "A===",
        "AB=C",
        "ABCD=",
        "ABCD====",
        "AB*D",
        "ABCDé",
        "data:image/png,plain",
        "data:image/png;base64",
        "data:image/png;base64;x,QUJD",
        "data:" + "x" * 300 + ";base64,QUJD",
        "QUJDdata:image/png;base64,QUJD",
    ],
)
def test_broken_base64_is_rejected_in_any_chunks(value: str) -> None:
    document = json.dumps({"data": [{"b64_json": value}]}, ensure_ascii=False).encode()
    for piece in (len(document), 1, 2, 3, 5, 7):
        rejection(document, list(range(piece, len(document), piece)))


@pytest.mark.parametrize(
    "written", ["QUJD\\\\/EVG", "QUJD\\\\u0041EVG", 'QUJD\\"EVG', "QUJD\\bEVG", "QUJD\\u00e9"]
)
def test_escaped_character_outside_base64_is_rejected(written: str) -> None:
    document = f'{{"data":[{{"b64_json":"{written}"}}]}}'
    for piece in (len(document), 1, 2, 3):
        rejection(document, list(range(piece, len(document), piece)))


@pytest.mark.parametrize("blank", [" ", "\n", "\r\n", "\\n", "\\r\\n", "\t", "\\u0020"])
def test_white_space_inside_base64_is_skipped(blank: str) -> None:
    image = bytes(range(100))
    value = blank.join(re.findall(".{1,7}", b64(image))) + blank
    document = f'{{"data":[{{"b64_json":"{value}"}}]}}'
    for piece in (len(document), *range(1, 40)):
        assert images_of(decode(document, list(range(piece, len(document), piece))))[0][1] == image


@pytest.mark.parametrize(
    "head", ["data:image/png;é=\\u4e2d;base64,", "data:image\\/png;中;base64,", "data:a\\\\/\\\\u;base64,"]
)
def test_head_of_data_uri_may_contain_anything(head: str) -> None:
    document = f'{{"data":[{{"b64_json":"{head}QUJD"}}]}}'.encode()
    for piece in (len(document), 1, 2, 3, 7):
        assert images_of(decode(document, list(range(piece, len(document), piece))))[0][1] == b"ABC"


def test_invalid_utf8_in_text_does_not_lose_image() -> None:
    reply = decode(b'{"note":"\xff\xfe","data":[{"b64_json":"QUJD","revised_prompt":"a \xe9"}]}')
    assert images_of(reply) == [(0, b"ABC", None, "a �")]


def test_only_known_paths_are_images() -> None:
    reply = decode(
        '{"x_b64_json":"!","usage":{"b64_json":"!","data":[{"b64_json":"!"}]},"data":[["b64_json","!"],'
        '{"x":{"b64_json":"!"},"b64_json":{"b64_json":"!"}},"b64_json",{"b64_json":["!"]}]}'
    )
    assert all(image.sink is None and image.url is None for image in reply.images)
    assert reply.document["data"][1] == {"x": {"b64_json": "!"}, "b64_json": {"b64_json": "!"}}


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
URI = f"data:image/png;base64,{b64(PNG)}"


@pytest.mark.parametrize("image", [b64(PNG), URI])
@pytest.mark.parametrize(
    "document",
    [
        {"choices": [{"message": {"content": [{"type": "image_url", "image_url": {"url": "IMAGE"}}]}}]},
        {"candidates": [{"content": {"parts": [{"text": "a fox"}, {"inlineData": {"data": "IMAGE"}}]}}]},
        {"content": [{"type": "image", "source": {"type": "base64", "data": "IMAGE"}}]},
        {"Picture": "IMAGE"},
        {"data": [{"file": {"content": "IMAGE"}}]},
        {"data": [], "extra": ["IMAGE"]},
    ],
)
def test_image_counts_anywhere_if_no_known_path_has_one(document: Any, image: str) -> None:
    written = json.dumps(document).replace("IMAGE", image)
    for step in (1, 7, len(written)):
        reply = decode(written, [*range(0, len(written), step)])
        assert images_of(reply) == [(0, PNG, None, None)]
        assert b64(PNG) not in json.dumps(reply.document)


@pytest.mark.parametrize(
    "result", [{"data": [{"b64_json": "QUJD"}]}, {"data": [{"url": "https://a.example/b.png"}]}]
)
def test_image_elsewhere_does_not_add_to_known_ones(result: Any) -> None:
    assert images_of(decode(json.dumps({"thumbnail": URI, **result}))) == images_of(
        decode(json.dumps(result))
    )


@pytest.mark.parametrize(
    "name", ["input", "Input", "request", "prompt", "mask", "init_image", "error", "messages"]
)
def test_echoed_input_is_not_an_image(name: str) -> None:
    assert not images_of(decode(json.dumps({name: {"image": [URI]}, "id": "1"})))


def test_text_elsewhere_is_not_an_image() -> None:
    texts = ["data: a fox", "data:text/plain;base64,QUJD", b64(b"a fox" * 100), "/9", "iVBOR", "RIFF"]
    reply = decode(json.dumps({"texts": texts, "note": texts[0], texts[2]: 1}))
    assert (reply.images, reply.document["texts"]) == ([], texts)


def test_draft_of_a_thinking_model_is_a_preview() -> None:
    draft, final = (
        {"thought": thought, "inlineData": {"data": b64(PNG + text)}}
        for thought, text in ((True, b"1"), (False, b"2"))
    )
    reply = decode(json.dumps({"candidates": [{"content": {"parts": [draft, final]}}]}))
    assert images_of(reply) == [(0, PNG + b"2", None, None)]


@pytest.mark.parametrize("before", ["", "\n", "\ufeff", " \r\n" * 100])
@pytest.mark.parametrize("after", ["", "\n", "\r\n\r\n"])
@pytest.mark.parametrize(
    "image", [b64(PNG), URI, f'"{b64(PNG)}"', f'"{URI}"', base64.encodebytes(PNG).decode()]
)
def test_body_may_be_the_base64_of_an_image(before: str, image: str, after: str) -> None:
    body = (before + image + after).encode()
    for step in (1, 5, len(body)):
        reply = decode(body, [*range(0, len(body), step)])
        assert images_of(reply) == [(0, PNG, None, None)]


@pytest.mark.parametrize("text", ["", "data", "iVBOR", '"', "/9", "data: [DONE]", "UkxH", " " * 5000])
def test_body_of_other_text_is_not_an_image(text: str) -> None:
    for step in (1, 3, 1000):
        with pytest.raises(ReplyError):
            decode(text, [*range(0, len(text), step)])


def test_escaped_key_equals_plain_key() -> None:
    reply = decode('{"d\\u0061ta":[{"b64\\u005fjson":"QUJD"}]}')
    assert images_of(reply) == [(0, b"ABC", None, None)]


def test_images_keep_their_index_among_other_elements() -> None:
    reply = decode('{"data":[null,{"b64_json":"QUJD"},7,{"url":"https://example.com/x"},{}]}')
    assert images_of(reply) == [
        (0, None, None, None),
        (1, b"ABC", None, None),
        (2, None, None, None),
        (3, None, "https://example.com/x", None),
        (4, None, None, None),
    ]
    assert [bool(image.problem) for image in reply.images] == [True, False, True, False, True]


@pytest.mark.parametrize("text", ["", "null"])
def test_empty_and_null_mean_absent(text: str) -> None:
    value = text or '""'
    reply = decode(f'{{"data":[{{"b64_json":{value},"url":{value},"revised_prompt":{value}}}]}}')
    assert images_of(reply) == [(0, None, None, None)]
    assert reply.document["data"][0]["b64_json"] is None


def test_data_uri_in_url_is_an_image() -> None:
    image = bytes(range(256)) * 40
    reply = decode(json.dumps({"data": [{"url": f"data:image/png;base64,{b64(image)}"}, {"url": "data"}]}))
    assert images_of(reply) == [(0, image, None, None), (1, None, "data", None)]
    assert reply.document["data"][0]["url"] is None


def test_data_uri_may_exceed_text_limit() -> None:
    image = bytes(reply_module.MAX_TEXT_BYTES)
    reply = decode(json.dumps({"data": [{"url": f"data:image/png;base64,{b64(image)}"}]}))
    assert images_of(reply)[0][1] == image


def test_b64_json_takes_precedence_over_url() -> None:
    for fields in (
        '"b64_json":"QUJD","url":"data:;base64,WFla"',
        '"url":"data:;base64,WFla","b64_json":"QUJD"',
    ):
        recorder = RecordingDecoder()
        reply = recorder.decode(f'{{"data":[{{{fields}}}]}}'.encode())
        assert images_of(reply) == [(0, b"ABC", None, None)]
        assert [sink.data for sink in recorder.sinks if sink.closed] == [b"XYZ"]


def test_placeholder_cannot_be_guessed() -> None:
    documents = [b'{"data":[{"b64_json":"QUJD"}]}', b'{"data":[{"revised_prompt":"%s0","url":"%s0"}]}']
    decoder = RecordingDecoder().decoder
    nonces = {Splitter(lambda _: True, lambda _: True, lambda _: True, Sink)._nonce for _ in range(50)}
    assert len(nonces) == 50
    assert min(map(len, nonces)) >= 32
    decoder.feed(documents[0])
    assert decoder.finish().images[0].sink.data == b"ABC"


# --- sinks -------------------------------------------------------------------------------------------------------


def test_later_duplicate_key_wins_and_closes_first_sink() -> None:
    recorder = RecordingDecoder()
    reply = recorder.decode(
        b'{"data":[{"b64_json":"T0xE"}],"data":[{"b64_json":"Rk9Y","b64_json":"QUJD"},{"b64_json":"WFla"}]}'
    )
    assert [image.sink.data for image in reply.images] == [b"ABC", b"XYZ"]
    assert [(sink.data, sink.closed) for sink in recorder.sinks] == [
        (b"OLD", True),
        (b"FOX", True),
        (b"ABC", False),
        (b"XYZ", False),
    ]


def test_later_empty_value_removes_image() -> None:
    recorder = RecordingDecoder()
    reply = recorder.decode(b'{"data":[{"b64_json":"QUJD","b64_json":""}]}')
    assert images_of(reply) == [(0, None, None, None)]
    assert recorder.sinks[0].closed


def test_close_closes_every_undelivered_sink() -> None:
    recorder = RecordingDecoder()
    recorder.decoder.feed(b'{"data":[{"b64_json":"QUJD"},{"b64_json":"WFlaWFla')
    assert [sink.closed for sink in recorder.sinks] == [False, False]
    assert recorder.decoder.whole_sinks == recorder.sinks[:1]
    recorder.decoder.close()
    assert [sink.closed for sink in recorder.sinks] == [True, True]


def test_sinks_stay_open_until_close() -> None:
    recorder = RecordingDecoder()
    recorder.decode(b'{"data":[{"b64_json":"QUJD"}]}')
    assert not recorder.sinks[0].closed
    recorder.decoder.close()
    assert recorder.sinks[0].closed


def test_empty_image_opens_no_sink() -> None:
    recorder = RecordingDecoder()
    recorder.decode(b'{"data":[{"b64_json":""},{"b64_json":"data:image/png;base64,"}]}')
    assert recorder.sinks == []


def test_full_disk_is_reported() -> None:
    class Full(Sink):
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    decoder = ReplyDecoder(lambda _: Full())
    with pytest.raises(OSError, match="No space left"):
        decoder.feed(b'{"data":[{"b64_json":"QUJD"}]}')


def test_image_over_limit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_jojokey.img2.images.MAX_IMAGE_BYTES", 10)
    decoder = ReplyDecoder()
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        decoder.feed(json.dumps({"data": [{"b64_json": b64(bytes(30))}]}).encode())
    decoder.close()


def test_default_sink_is_a_file_with_digest() -> None:
    decoder = ReplyDecoder()
    decoder.feed(b'{"data":[{"b64_json":"QUJD"}]}')
    sink = decoder.finish().images[0].sink
    assert isinstance(sink, ImageFile)
    assert sink.size == 3
    assert sink.sha256 == "b5d4045c3f466fa91fe2cc6abe79232a1a57cdf104f7a26e716e0a1e2789df78"
    sink.close()


# --- limits and hostile replies -----------------------------------------------------------------------------------


def test_text_is_limited_to_four_mebibytes() -> None:
    frame = len(b'{"x":""}')
    assert decode(b'{"x":"%s"}' % (b"a" * (reply_module.MAX_TEXT_BYTES - frame))).images == []
    for filler in (b"a", b" "):
        text = b'{"x":"' + filler * (reply_module.MAX_TEXT_BYTES + 1 - frame) + b'"}'
        assert "4,194,304" in rejection(text, list(range(0, len(text), 65536)))


def test_text_over_limit_is_rejected_immediately() -> None:
    decoder = RecordingDecoder().decoder
    for _ in range(64):
        decoder.feed(b" " * 65536)
    with pytest.raises(ReplyError):
        decoder.feed(b" ")


def test_images_do_not_count_as_text() -> None:
    image = bytes(reply_module.MAX_TEXT_BYTES * 2)
    assert images_of(decode(json.dumps({"data": [{"b64_json": b64(image)}]})))[0][1] == image


def test_number_of_images_is_limited_to_128() -> None:
    many = [{"b64_json": "QUJD"}] * reply_module.MAX_VALUES
    assert len(decode(json.dumps({"data": many})).images) == 128
    assert "128" in rejection(json.dumps({"data": [*many, *many[:1]]}))


@pytest.mark.parametrize(
    "document",
    [b"", b" ", b"{", b"[" * 200_000, b'{"a":' * 100_000, b"]" * 200_000, b"<html>", b"null", b"7", b'"b64_json"',
     b"\x00", b'{"data":[{"b64_json" "QUJD"}]}', b"," * 200_000],
)  # fmt: skip
def test_invalid_document_is_rejected(document: bytes) -> None:
    rejection(document)


@pytest.mark.parametrize("document", [b"[]", b"{}", b'{"data":null}', b'{"data":{"0":{}}}'])
def test_document_without_data_has_no_images(document: bytes) -> None:
    assert decode(document).images == []


@pytest.mark.parametrize(
    "after", [b"}", b"{}", b" x", b"\x00", b'{"data":[{"b64_json":"QU', b"<html>", b"data: {"]
)
def test_bytes_after_document_do_not_lose_images(after: bytes) -> None:
    document = b'{"data":[{"b64_json":"QUJD"}],"usage":{"total_tokens":7}}' + after
    for cuts in ([], list(range(len(document)))):
        reply = decode(document, cuts)
        assert images_of(reply)[0] == (0, b"ABC", None, None)
        assert reply.usage == {"total_tokens": 7}


def test_byte_order_mark_is_accepted() -> None:
    assert images_of(decode(b'\xef\xbb\xbf{"data":[{"b64_json":"QUJD"}]}'))[0][1] == b"ABC"
