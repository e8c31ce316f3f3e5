"""Mutate responses and streams, and check how the client handles them: ``make fuzz``.

Each case is built as a tree of JSON, mutated, written as JSON, JSON lines or server-sent events, mutated again as
bytes, and fed to the client in random pieces that end well, break off or time out. Only the socket is left out.
The checks: no exception but ``Img2Error``, nothing delivered that is not an image, no token, base64 or signature
in any text, usage that strict JSON accepts, no file left open, no second payment, no case that takes long.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
import multiprocessing
import random
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from PIL import Image

from airflow_provider_jojokey.img2 import Client, ImageRequest, Img2Error
from airflow_provider_jojokey.img2 import download as download_module
from airflow_provider_jojokey.img2.images import ImageFile

TOKEN = "sk-fuzz0123456789abcdefghij"
SIGNATURE = "s1gnatur3"
SIGNED = f"?Signature={SIGNATURE}".encode()
SLOW = 10.0
"""Time limit of a case, in seconds."""
LONG_BASE64 = re.compile(r"[A-Za-z0-9+/]{70,}")


def _image_data(kind: str, edge: int) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((edge, edge), 90).convert("RGB").save(out, kind)
    return out.getvalue()


IMAGES = [_image_data("PNG", 12), _image_data("JPEG", 16), _image_data("WEBP", 16), _image_data("PNG", 3)]
AVIF = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(90)
KEYS = ("data", "images", "b64_json", "url", "error", "message", "code", "type", "usage", "detail", "result", "output",
        "status", "task_id", "partial_image_index", "object", "created", "total_tokens", "image_url", "msg", "success",
        "revised_prompt", "x", "", "choices", "item", "base64")  # fmt: skip
TYPES = ("image_generation.completed", "image_generation.partial_image", "image_edit.partial_image", "error", "image.chunk",
         "response.failed", "", "x")  # fmt: skip
CODES = ("content_filter", "model_not_found", "insufficient_user_quota", "violation_fee.x", "server_error", "429", 0, None,
         "unknown_parameter", "channel:invalid_key", TOKEN)  # fmt: skip
TEXTS = ("Something failed", f"token {TOKEN} is bad", "Unknown parameter: 'response_format'.", "用户额度不足", "", "a" * 300,
         f"see https://user:pw@example.com/x?Signature={SIGNATURE}", "\u202e\x00odd", base64.b64encode(IMAGES[0]).decode(),
         '{"error": {"message": "inner"}}', "(request id: 2026112823085401726269)")  # fmt: skip
NUMBERS = (0, 1, -1, 253, "253", 2.5, 1e400, float("nan"), True, None, 10**30, "x")
HEADERS = (
    {"X-Oneapi-Request-Id": "2026112823085401726269"},
    {"x-litellm-call-id": "1"},
    {"CF-RAY": "8f2c-HKG", "Server": "cloudflare"},
    {"Retry-After": "2, 5"},
    {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"},
    {"retry-after-ms": "nan"},
    {"Content-Type": "text/event-stream"},
    {"Content-Type": "text/html"},
    {"X-Oneapi-Request-Id": TOKEN},
)
STATUSES = (200,) * 40 + (
    201,
    202,
    204,
    302,
    400,
    401,
    403,
    404,
    408,
    422,
    424,
    429,
    499,
    500,
    502,
    503,
    524,
    103,
)


class MemoryFile(ImageFile):
    """An image file in memory, counted until it is closed."""

    open_files = 0

    def __init__(self) -> None:
        import hashlib

        self.file = io.BytesIO()
        self.path = None
        self.size, self._head = 0, b""
        self._sha256 = hashlib.sha256()
        type(self).open_files += 1

    def close(self) -> None:
        if not self.file.closed:
            type(self).open_files -= 1
        super().close()


class _Bearer:
    token = TOKEN


class Raw:
    """The raw body of a response."""

    def __init__(self, pieces: list[bytes], failure: BaseException | None) -> None:
        self._pieces = pieces
        self._failure = failure

    def read1(self, amount: int = -1, decode_content: bool = True) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        if self._failure is not None:
            raise self._failure
        return b""

    def close(self) -> None:
        self._pieces.clear()

    release_conn = close


class Wire:
    """A session that returns the case's response for every POST."""

    verify = True

    def __init__(self) -> None:
        self.posts = 0
        self.case: Case | None = None
        self.auth = _Bearer()
        self.proxies: dict[str, str] = {}

    def post(self, url: str, **_: Any) -> requests.Response:
        assert self.case is not None
        self.posts += 1
        response = requests.Response()
        response.status_code = self.case.status
        response.headers.update(self.case.headers)
        response.raw = Raw(self.case.pieces(), self.case.failure)
        response.url = url
        return response


class Case:
    """One response.

    :param seed: decides everything
    """

    def __init__(self, seed: int) -> None:
        rnd = self.rnd = random.Random(seed)
        self.status = rnd.choice(STATUSES)
        self.headers: dict[str, str] = {}
        for _ in range(rnd.choice((0, 1, 1, 2))):
            self.headers.update(rnd.choice(HEADERS))
        self.pristine = True
        """Whether the base64 of all images is unchanged."""
        self.n = rnd.choice((1, 1, 1, 2, 3))
        self.stream = rnd.random() < 0.4
        self.body = self._bytes()
        self.failure = rnd.choice(
            (None, None, None, urllib3.exceptions.ProtocolError("broken"), urllib3.exceptions.ReadTimeoutError(None, "", "slow"),
             ConnectionResetError(104, "Connection reset by peer"))  # type: ignore[arg-type]
        )  # fmt: skip

    def pieces(self) -> list[bytes]:
        """The body in chunks of random size."""
        body, rnd = self.body, self.rnd
        if rnd.random() < 0.3 or len(body) < 2:
            return [body] if body else []
        step = rnd.choice((1, 2, 3, 7)) if len(body) < 400 else rnd.choice((97, 500, 2000))
        if rnd.random() < 0.5:
            return [body[at : at + step] for at in range(0, len(body), step)]
        cuts = sorted(rnd.randrange(len(body)) for _ in range(rnd.randrange(1, 9)))
        return [piece for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if (piece := body[a:b])]

    # --- the tree -----------------------------------------------------------------------------------------------

    def _image(self) -> str:
        rnd = self.rnd
        data = rnd.choice(IMAGES)
        if rnd.random() < 0.1:
            data = rnd.choice((AVIF, b"", b"a sentence", data[: rnd.randrange(len(data))], data + b"more"))
        text = base64.b64encode(data).decode()
        match rnd.randrange(12):
            case 0:
                text = text.replace("+", "-").replace("/", "_")
            case 1:
                text = text.rstrip("=")
            case 2:
                text = f"data:image/png;base64,{text}"
            case 3:
                text = "\n".join(text[at : at + 76] for at in range(0, len(text), 76))
            case 4 if text:
                self.pristine = False
                at = rnd.randrange(len(text))
                text = text[:at] + rnd.choice('*=\\"é A') + text[at + rnd.randrange(3) :]
        return text

    def _item(self) -> Any:
        rnd = self.rnd
        link = rnd.choice(("/own/fox.png", f"https://example.invalid/a?Signature={SIGNATURE}", "http://10.0.0.1/x", "fox.png",
                           "https://[::1", "ftp://x", f"https://{TOKEN}.invalid/{'a' * 90}"))  # fmt: skip
        return rnd.choice(
            (
                {"b64_json": self._image()},
                {"b64_json": self._image(), "revised_prompt": rnd.choice(TEXTS)},
                {"url": link},
                {"url": "", "b64_json": self._image()},
                {"error": {"code": rnd.choice(CODES), "message": rnd.choice(TEXTS)}},
                {"status": "submitted", "task_id": rnd.choice(("t1", TOKEN, 7))},
                self._image(),
                None,
                {},
            )
        )

    def _usage(self) -> Any:
        rnd = self.rnd
        names = ("input_tokens", "output_tokens", "total_tokens", "prompt_tokens", "completion_tokens")
        usage: dict[str, Any] = {name: rnd.choice(NUMBERS) for name in rnd.sample(names, 3)}
        usage["input_tokens_details"] = rnd.choice(({"text_tokens": rnd.choice(NUMBERS)}, None, 7))
        return rnd.choice((usage, usage, None, [], "x"))

    def _document(self) -> Any:
        rnd = self.rnd
        if self.status >= 300 or rnd.random() < 0.1:
            error = {"message": rnd.choice(TEXTS), "type": rnd.choice(TYPES), "code": rnd.choice(CODES)}
            return rnd.choice(
                ({"error": error}, {"error": rnd.choice(TEXTS)}, error, {"detail": [{"loc": ["body"], "msg": rnd.choice(TEXTS)}]},
                 {"cloudflare_error": True, "error_code": rnd.choice(NUMBERS), "detail": rnd.choice(TEXTS)})
            )  # fmt: skip
        items = [self._item() for _ in range(rnd.choice((self.n, self.n, self.n, 0, 5)))]
        return rnd.choice(
            (
                {"created": 1, "data": items, "usage": self._usage()},
                {"usage": self._usage(), "data": items},
                {"images": items},
                {"code": 0, "data": {"data": items, "usage": self._usage()}},
                {"data": items[0] if items else None},
                items,
            )
        )

    def _event(self) -> Any:
        rnd = self.rnd
        if rnd.random() < 0.2:
            return self._document()
        event: dict[str, Any] = {"type": rnd.choice(TYPES[:2] * 4 + TYPES), "b64_json": self._image()}
        if "partial" in event["type"]:
            event["partial_image_index"] = 0
        if rnd.random() < 0.6:
            event["usage"] = self._usage()
        if rnd.random() < 0.1:
            event = {"type": event["type"], "url": "/own/fox.png"}
        return event

    def _mutated(self, value: Any, depth: int = 0) -> Any:
        rnd = self.rnd
        if depth > 6:
            return value
        if rnd.random() < 0.02:
            return rnd.choice(
                (None, True, 7, [], {}, rnd.choice(TEXTS), [value], {rnd.choice(KEYS): value}, [value, value])
            )
        if isinstance(value, dict):
            pairs = list(value.items())
            if pairs and rnd.random() < 0.05:
                pairs.pop(rnd.randrange(len(pairs)))
            if rnd.random() < 0.05:
                pairs.insert(
                    rnd.randrange(len(pairs) + 1),
                    (rnd.choice(KEYS), rnd.choice((*TEXTS, *NUMBERS, self._item()))),
                )
            if rnd.random() < 0.2:
                rnd.shuffle(pairs)
            return {
                (rnd.choice(KEYS) if rnd.random() < 0.02 else key): self._mutated(inner, depth + 1)
                for key, inner in pairs
            }
        if isinstance(value, list):
            return [
                self._mutated(inner, depth + 1)
                for inner in value
                for _ in range(2 if rnd.random() < 0.02 else 1)
            ]
        return value

    # --- the bytes ----------------------------------------------------------------------------------------------

    def _json(self, value: Any) -> bytes:
        rnd = self.rnd
        text = json.dumps(
            self._mutated(value), ensure_ascii=rnd.random() < 0.5, indent=rnd.choice((None, None, None, 1))
        )
        if rnd.random() < 0.15:
            text = text.replace("/", "\\/")
        return text.encode("utf-8", "replace")

    def _bytes(self) -> bytes:
        rnd = self.rnd
        form = rnd.choice(("plain", "plain", "plain", "lines", "events", "events", "events", "page"))
        if form == "plain":
            body = self._json(self._document())
        elif form == "lines":
            body = b"\n".join(self._json(self._event()) for _ in range(rnd.randrange(1, 4)))
        elif form == "page":
            body = rnd.choice(
                (
                    b"",
                    b"<html><title>%s</title>" % TOKEN.encode(),
                    b"error code: 524",
                    b"OK",
                    b"null",
                    b"[" * 3000,
                )
            )
        else:
            body = self._stream()
        if rnd.random() < 0.1:
            body = rnd.choice((b"\xef\xbb\xbf", b"\n\n", b" \r\n", b": PING\n\n", b"{}", b",")) + body
        if rnd.random() < 0.1:
            body += rnd.choice((b"\n", b"}", b"{}", b"<!-- -->", body, b"\x00"))
        for _ in range(rnd.choice((0, 0, 0, 1, 2))):
            self.pristine = False
            at = rnd.randrange(len(body) + 1)
            until = at + rnd.choice((0, 1, 1, 4, 100))
            body = (
                body[:at]
                + rnd.choice((b"", b'"', b"\\", b"{", b"}", b"]", b"\n", b"\r", b"\xff", b"data: ", b":"))
                + body[until:]
            )
        if rnd.random() < 0.15:
            body = body[: rnd.randrange(len(body) + 1)]
        return body

    def _stream(self) -> bytes:
        rnd = self.rnd
        end = rnd.choice((b"\n", b"\n", b"\r\n", b"\r"))
        blank = rnd.choice((end, end, end, b""))
        out = []
        for _ in range(rnd.randrange(1, 5)):
            event = self._event()
            if rnd.random() < 0.3:
                out.append(
                    rnd.choice((b": PING", b"id: 7", b"retry: 5", b"event: error", b"event: x")) + end + blank
                )
            if rnd.random() < 0.6 and isinstance(event, dict):
                out.append(b"event: " + str(event.get("type", "")).encode() + end)
            line = self._json(event)
            prefix = rnd.choice((b"data: ", b"data: ", b"data:", b""))
            out.append(b"".join(prefix + part + end for part in line.split(b"\n")) + blank)
        if rnd.random() < 0.6:
            out.append(b"data: [DONE]" + end + end)
        return b"".join(out)


class _Links:
    """Replaces downloads: a link yields an image, an error or a page."""

    def __init__(self) -> None:
        self.case: Case | None = None

    def download(self, url: str, file: ImageFile, aborted: Any, secret: str = "") -> None:
        assert self.case is not None
        download_module._is_allowed(url, "http://127.0.0.1")
        match self.case.rnd.randrange(4):
            case 0:
                raise download_module.ReplyError("the linked image cannot be downloaded: HTTP 404")
            case 1:
                file.write(b"<html>")
            case _:
                file.write(self.case.rnd.choice(IMAGES))


class Fuzzer:
    """Runs cases in this process, in order."""

    def __init__(self) -> None:
        self.wire, self.links = Wire(), _Links()
        self.client = Client(TOKEN, "http://127.0.0.1", session=self.wire)  # type: ignore[arg-type]
        self.client._downloader.download = self.links.download  # type: ignore[method-assign]
        self.outcomes = {"images": 0, "errors": 0}

    def run(self, seed: int) -> None:
        """Run one case.

        :raises AssertionError: if a check fails
        """
        case = self.wire.case = self.links.case = Case(seed)
        self.wire.posts = 0
        self.client._takes_response_format = True
        started = time.monotonic()
        texts: list[str] = []
        safe = True
        request = ImageRequest("a fox", n=case.n, stream=case.stream, size="auto")
        try:
            generation = self.client.generate(request, lambda _: MemoryFile())
        except Img2Error as error:
            self.outcomes["errors"] += 1
            texts += [
                str(error),
                repr(error),
                error.detail,
                str(error.code),
                str(error.request_id),
                str(error.task_id),
            ]
            images, usage = error.salvaged, error.usage
            safe = error.billed == "no" or case.status < 300 or not error.is_safe_to_resend
        else:
            self.outcomes["images"] += 1
            images, usage = generation.images, generation.usage
            assert images
            texts += [*generation.warnings, str(generation.request_id), generation.model, generation.size]
        for image in images:
            _check_image(image, case.pristine)
            image.file.close()
        assert MemoryFile.open_files == 0, "a file was left open"
        assert self.wire.posts == 1 or safe
        json.dumps(usage, allow_nan=False)
        assert all(type(value) is int for value in _leaves(usage))
        assert self.wire.posts <= 2
        # A mutation may split a link; its signature is then an ordinary word.
        signature = (
            SIGNATURE.encode() if case.body.count(SIGNATURE.encode()) == case.body.count(SIGNED) else SIGNED
        )
        _check_texts(texts, signature.decode())
        assert time.monotonic() - started < SLOW, "it took long"


def _leaves(usage: Any) -> Iterator[Any]:
    for value in (usage or {}).values():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield value


def _check_image(image: Any, pristine: bool) -> None:
    image.file.file.seek(0)
    data = image.file.file.read()
    ends = {
        "image/png": (b"\x89PNG\r\n\x1a\n", b"IEND"),
        "image/jpeg": (b"\xff\xd8\xff", b"\xff\xd9"),
        "image/webp": (b"RIFF", b""),
    }
    start, end = ends[image.content_type]
    assert data.startswith(start), "not an image"
    assert end in data, "half an image"
    assert image.width > 0
    assert image.height > 0
    assert len(data) == image.file.size
    assert not pristine or data.removesuffix(b"more") in IMAGES, "another image than was sent"


def _check_texts(texts: list[str], signature: str) -> None:
    for text in texts:
        assert TOKEN[3:] not in text, "the token leaked"
        assert signature not in text, "a signature leaked"
        assert not LONG_BASE64.search(text), "base64 leaked"


def run(first: int, count: int) -> dict[str, int]:
    """Run ``count`` cases from seed ``first`` on, and return how they ended.

    :raises AssertionError: with the seed, if a check fails
    """
    logging.disable(logging.CRITICAL)
    try:
        fuzzer = Fuzzer()
        for seed in range(first, first + count):
            try:
                fuzzer.run(seed)
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    finally:
        logging.disable(logging.NOTSET)
    return fuzzer.outcomes


def _run_part(part: tuple[int, int]) -> dict[str, int]:
    return run(*part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument(
        "--seed", type=int, default=None, help="of the first case; the others follow (default: by chance)"
    )
    options = parser.parse_args()
    seed = secrets.randbelow(2**40) if options.seed is None else options.seed
    print(f"{options.count:,} cases from seed {seed} on", flush=True)
    part = 5_000
    parts = [(seed + at, min(part, options.count - at)) for at in range(0, options.count, part)]
    totals = {"images": 0, "errors": 0}
    started = time.monotonic()
    with multiprocessing.Pool(maxtasksperchild=20) as pool:
        for number, outcome in enumerate(pool.imap_unordered(_run_part, parts), 1):
            for name, count in outcome.items():
                totals[name] += count
            if number % 4 == 0:
                print(f"{sum(totals.values()):,} cases in {time.monotonic() - started:.0f} s", flush=True)
    print(f"{sum(totals.values()):,} cases, seed {seed}: {totals['images']:,} gave images, {totals['errors']:,} an error; "
          "no check failed")  # fmt: skip


if __name__ == "__main__":
    main()
