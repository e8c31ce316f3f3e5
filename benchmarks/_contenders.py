"""Four contenders that transfer images from the API to S3, each in a separate process.

A process imports and connects first. Then it reads commands as lines of JSON from standard input, and prints a line
of JSON for each:

* ``{"do": "run", "case": …, "prefix": …, "repeat": n}`` → ``{"cpu": [seconds, …]}``
* ``{"do": "memory", "case": …, "prefix": …}`` → ``{"grown": bytes}``
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

TOKEN = "sk-benchmark"
BUCKET = "images"
PROMPT = "a fox in the snow, poster"


class Contender(Protocol):
    """A contender."""

    def run(self, case: str, count: int, keys: list[str]) -> None:
        """Generate ``count`` images, and store them at ``keys``."""


class Floor:
    """The lower bound: receive the bytes of the response and send those of the images, with bare sockets.

    It doesn't decode or sign: it uploads bytes that were loaded from a file beforehand. Like this package, it opens a
    connection to the API per request and keeps its connection to S3.
    """

    def __init__(self, api: str, s3: str, folder: Path) -> None:
        self._api, self._s3 = urlsplit(api), urlsplit(s3)
        self._folder = folder
        self._images: dict[str, list[bytes]] = {}
        self._buffer = memoryview(bytearray(512 * 1024))
        self._upload: socket.socket | None = None
        self._context = ssl.create_default_context() if self._api.scheme == "https" else None

    def prepare(self, case: str, count: int) -> None:
        self._images[case] = [(self._folder / f"{case}-{index}.png").read_bytes() for index in range(count)]

    def run(self, case: str, count: int, keys: list[str]) -> None:
        body = json.dumps({"model": "gpt-image-2", "prompt": PROMPT, "n": count}).encode()
        with self._connect(self._api.netloc) as sock:
            self._generate(sock, case, body)
        if self._upload is None:
            self._upload = self._connect(self._s3.netloc)
        for key, image in zip(keys, self._images[case], strict=True):
            self._upload.sendall(
                f"PUT /{BUCKET}/{key} HTTP/1.1\r\nHost: {self._s3.netloc}\r\n"
                f"Content-Length: {len(image)}\r\n\r\n".encode()
            )
            self._upload.sendall(image)
            self._read_answer(self._upload)

    def _generate(self, sock: socket.socket, case: str, body: bytes) -> None:
        sock.sendall(
            f"POST /{case}/v1/images/generations HTTP/1.1\r\nHost: {self._api.netloc}\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        self._read_answer(sock)

    def _connect(self, address: str) -> socket.socket:
        host, _, port = address.partition(":")
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._context.wrap_socket(sock, server_hostname=host) if self._context else sock

    def _read_answer(self, sock: socket.socket) -> None:
        # The first bytes contain the head, because the servers send it together with the start of the body.
        got = sock.recv_into(self._buffer)
        head, _, _ = bytes(self._buffer[: min(got, 4096)]).partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        left = len(head) + 4 + length - got
        while left:
            got = sock.recv_into(self._buffer)
            if not got:
                raise ConnectionError("cut short")
            left -= got


class Requests:
    """The vendor's example with boto3: requests, ``.json()``, base64, ``put_object``."""

    def __init__(self, api: str, s3: str, folder: Path) -> None:
        import requests

        self._post = requests.post
        self._api = api
        self._s3 = s3_client(s3)

    def run(self, case: str, count: int, keys: list[str]) -> None:
        import base64

        answer = self._post(
            f"{self._api}/{case}/v1/images/generations",
            headers={"Authorization": f"Bearer {TOKEN}"},
            json={
                "model": "gpt-image-2",
                "prompt": PROMPT,
                "size": "1024x1024",
                "quality": "low",
                "n": count,
                "response_format": "b64_json",
            },
            timeout=120,
        )
        answer.raise_for_status()
        for key, made in zip(keys, answer.json()["data"], strict=True):
            content = base64.b64decode(made["b64_json"])
            self._s3.put_object(Bucket=BUCKET, Key=key, Body=content, ContentType="image/png")


class OpenAISDK:
    """The official SDK, base64, ``put_object``."""

    def __init__(self, api: str, s3: str, folder: Path) -> None:
        import openai

        self._openai = openai
        self._api = api
        self._clients: dict[str, Any] = {}
        self._s3 = s3_client(s3)

    def prepare(self, case: str, count: int) -> None:
        self._clients[case] = self._openai.OpenAI(
            api_key=TOKEN, base_url=f"{self._api}/{case}/v1", max_retries=0
        )

    def run(self, case: str, count: int, keys: list[str]) -> None:
        import base64

        answer = self._clients[case].images.generate(
            model="gpt-image-2", prompt=PROMPT, size="1024x1024", quality="low", n=count
        )
        for key, made in zip(keys, answer.data, strict=True):
            content = base64.b64decode(made.b64_json)
            self._s3.put_object(Bucket=BUCKET, Key=key, Body=content, ContentType="image/png")


class Ours:
    """This package: ``Client.generate`` and ``ImageStore.put_image``, with the same boto3 client."""

    def __init__(self, api: str, s3: str, folder: Path) -> None:
        from airflow_provider_jojokey.img2 import ImageRequest
        from airflow_provider_jojokey.img2.client import Client
        from airflow_provider_jojokey.store.s3 import ImageStore

        self._client_class, self._request = Client, ImageRequest
        self._api = api
        self._clients: dict[str, Client] = {}
        self._store = ImageStore(aws_conn_id=None)
        from airflow_provider_jojokey.store.signing import use_known_digest

        self._store.client = s3_client(s3)  # instead of asking Airflow for the connection
        use_known_digest(self._store.client)

    def prepare(self, case: str, count: int) -> None:
        verify = os.environ.get("SSL_CERT_FILE") or True
        self._clients[case] = self._client_class(TOKEN, f"{self._api}/{case}", verify=verify)

    def run(self, case: str, count: int, keys: list[str]) -> None:
        request = self._request(PROMPT, size="1024x1024", quality="low", n=count)
        generation = self._clients[case].generate(request)
        labels = {
            "dag-id": "benchmark",
            "run-id": "manual__2026-01-01T00:00:00+00:00",
            "task-id": "hero",
            "model": generation.model,
            "size": generation.size,
            "request-id": generation.request_id or "",
        }
        try:
            for key, image in zip(keys, generation.images, strict=True):
                self._store.put_image(BUCKET, key, image, labels)
        finally:
            generation.close()


CONTENDERS = {"floor": Floor, "requests": Requests, "openai": OpenAISDK, "ours": Ours}


def s3_client(endpoint: str) -> Any:
    """Return the boto3 client of all contenders except the floor."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="benchmark",
        aws_secret_access_key="benchmark",
        config=Config(s3={"addressing_style": "path"}),
    )


def _peak(contender: Any, case: str, count: int, keys: list[str]) -> int:
    """Return the growth of the peak memory in bytes during one run."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    contender.run(case, count, keys)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def main() -> None:
    name, setup = sys.argv[1], json.loads(sys.argv[2])
    contender: Any = CONTENDERS[name](setup["api"], setup["s3"], Path(setup["folder"]))
    if hasattr(contender, "prepare"):
        for case in setup["cases"]:
            contender.prepare(case["name"], case["count"])
    counts = {case["name"]: case["count"] for case in setup["cases"]}
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        case = command["case"]
        count = counts[case]
        keys = [f"{command['prefix']}/{case}-{index}.png" for index in range(count)]
        if command["do"] == "memory":
            answer: dict[str, Any] = {"grown": _peak(contender, case, count, keys)}
        else:
            seconds = []
            for _ in range(command["repeat"]):
                started = time.process_time()
                contender.run(case, count, keys)
                seconds.append(time.process_time() - started)
            answer = {"cpu": seconds}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
