"""The gateway counts charges and refunds like the real gateway."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from airflow_provider_jojokey.sandbox import CASES, Gateway, read_charges
from tests.support.patience import PATIENCE
from tests.support.sandbox_client import Post, post_to


def test_image_is_billed_once(gateway: Gateway, post: Post) -> None:
    usage = post("a fox", quality="low", size="1024x1024").json()["usage"]

    (record,) = gateway.charges
    assert record.output_tokens == usage["output_tokens"] == 196
    assert record.total_tokens == usage["total_tokens"]
    assert record.cost_usd == pytest.approx(usage["input_tokens"] * 5e-6 + 196 * 30e-6, rel=1e-3)
    assert record.delivered
    assert gateway.spent_usd == record.cost_usd


def test_tokens_grow_with_the_area(gateway: Gateway, post: Post) -> None:
    small = post("a fox", quality="high", size="1024x1024").json()["usage"]["output_tokens"]
    large = post("a fox", quality="high", size="2048x2048").json()["usage"]["output_tokens"]

    assert large == 4 * small


@pytest.mark.parametrize("stream", [False, True])
def test_disconnected_client_is_billed(stream: bool, gateway: Gateway) -> None:
    address = urlsplit(gateway.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    body = {"model": "gpt-image-2", "prompt": "a fox [sandbox: delay=0.3]", "stream": stream}
    headers = {"Authorization": f"Bearer {gateway.token}"}
    connection.request("POST", "/v1/images/generations", json.dumps(body), headers)
    gateway.wait_for_request(1, timeout=PATIENCE)
    assert not gateway.charges  # the upstream is still at work
    connection.close()

    (record,) = gateway.wait_for_charges(1, timeout=PATIENCE)
    gateway.wait_until_idle(PATIENCE)
    assert not record.delivered
    assert not gateway.charges[0].delivered


def test_upstream_error_is_refunded(gateway: Gateway, post: Post) -> None:
    post("a fox [sandbox: upstream_unreachable]")

    (record,) = gateway.settlements
    assert record.refunded
    assert record.quota == 0
    assert gateway.spent_usd == 0


def test_moderation_fee_is_kept(gateway: Gateway, post: Post) -> None:
    assert post("a fox [sandbox: violation_fee]").json()["error"]["code"].startswith("violation_fee.")

    assert gateway.spent_usd == 0.05
    assert gateway.charges[0].total_tokens == 0


@pytest.mark.parametrize("billed", ["yes", "no"])
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("cloudflare_52", "nginx"))])
def test_lost_request_is_billed_as_configured(name: str, billed: str, gateway: Gateway, post: Post) -> None:
    post(f"a fox [sandbox: {name} billed={billed}]")

    assert bool(gateway.charges) == (billed == "yes")


def test_rejected_request_is_not_billed(gateway: Gateway, post: Post) -> None:
    assert post("a fox", n=11).status_code == 400
    assert requests.post(f"{gateway.url}/v1/images/generations", json={}, timeout=PATIENCE).status_code == 401

    assert gateway.settlements == ()
    assert len(gateway.requests) == 2


def test_charges_file_is_readable(tmp_path: Path, image: bytes) -> None:
    path = tmp_path / "deep" / "charges.jsonl"
    with Gateway(image=image, charges=path) as gateway:
        post_to(gateway, "一只狐狸")
        post_to(gateway, "a fox [sandbox: no_channel]")
        while_running = read_charges(path)
        assert while_running == gateway.charges
    assert len(read_charges(path, everything=True)) == 2
    assert read_charges(path)[0].prompt == "一只狐狸"

    with Gateway(image=image, charges=path) as again:
        assert len(again.charges) == 1  # carried on


def test_incomplete_charge_line_is_skipped(tmp_path: Path, image: bytes) -> None:
    path = tmp_path / "charges.jsonl"
    with Gateway(image=image, charges=path) as gateway:
        post_to(gateway)
    with path.open("a") as file:
        file.write('{"time": 1')

    assert len(read_charges(path)) == 1


def test_charges_survive_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "charges.jsonl"
    code = (
        "import sys; from airflow_provider_jojokey.sandbox import Gateway\n"
        f"with Gateway(image=b'x', charges={str(path)!r}) as g: print(g.url, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdin
    url = process.stdout.readline().strip()
    headers = {"Authorization": "Bearer sk-sandbox-not-a-secret"}
    body = {"model": "gpt-image-2", "prompt": "a fox"}
    requests.post(f"{url}/v1/images/generations", json=body, headers=headers, timeout=PATIENCE)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()

    assert [record.prompt for record in read_charges(path)] == ["a fox"]


def test_gateway_serves_200_concurrent_requests(image: bytes) -> None:
    with Gateway(image=image) as gateway, ThreadPoolExecutor(200) as pool:
        replies = [
            pool.submit(post_to, gateway, f"fox {number} [sandbox: hang]", timeout=PATIENCE)
            for number in range(200)
        ]
        billed = gateway.wait_for_charges(200, timeout=PATIENCE)

        assert gateway.in_flight == gateway.peak_in_flight == 200
        assert len({record.request_id for record in billed}) == 200
        gateway.reset()
        for reply in replies:
            with pytest.raises(requests.RequestException):
                reply.result()


def test_connections_are_kept_alive(gateway: Gateway) -> None:
    address = urlsplit(gateway.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.connect()
    same = connection.sock
    for prompt in (
        "one",
        "two [sandbox: chunked]",
        "three [sandbox: no_channel]",
        "four [sandbox: sse]",
        "five",
    ):
        body = json.dumps({"model": "gpt-image-2", "prompt": prompt})
        connection.request(
            "POST", "/v1/images/generations", body, {"Authorization": f"Bearer {gateway.token}"}
        )
        assert connection.getresponse().read()
        assert connection.sock is same
    connection.close()


def test_chunked_request_is_read(gateway: Gateway) -> None:
    body = json.dumps({"model": "gpt-image-2", "prompt": "a fox"}).encode()
    reply = requests.post(
        f"{gateway.url}/v1/images/generations",
        data=iter([body[:10], body[10:]]),
        headers={"Authorization": f"Bearer {gateway.token}"},
        timeout=PATIENCE,
    )

    assert reply.ok


def test_invalid_http_is_ignored(gateway: Gateway, post: Post) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as connection:
        connection.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        connection.recv(1000)

    assert post().ok
