"""Writes to Airflow's database after payment, at the limits of its columns and types.

``test_on_postgresql.py`` runs this file on PostgreSQL: SQLite stores everything.
"""

from __future__ import annotations

import base64
import json
import os
import random
import string
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.airflow import Airflow, Run
from tests.support.patience import PATIENCE
from tests.support.postgres import find

pytestmark = pytest.mark.skipif(
    find("initdb") is not None and "TESTS_DATABASE" not in os.environ,
    reason="test_on_postgresql.py runs this file on PostgreSQL",
)

UNSTORABLE = "\0\ud800 \udfff"
"""PostgreSQL stores none of these characters, and UTF-8 has no bytes for two of them."""
_random = random.Random(7)  # incompressible text


def of(characters: str, length: int) -> str:
    return "".join(_random.choices(characters, k=length)) + ".png"


CHINESE = "".join(map(chr, range(0x4E00, 0x9FA5)))
KEYS = {
    "long": "posters/" + "x" * 300 + ".png",
    "longest": of(string.ascii_letters + string.digits, 945),
    "widest": of(CHINESE, 315),
    "asset": of(string.ascii_letters, 690) + of(",;=@!$&()", 240),  # the URI of its asset exceeds the index
    "odd": "a\u2028b\u202e'\".png",
}


class OddGateway:
    """A gateway whose responses contain characters that no database stores."""

    def __init__(self, png: bytes) -> None:
        self.png = png
        self.requests = 0
        self.failure: tuple[int, Any] | None = None

    def reply(self) -> tuple[int, Any]:
        if self.failure is not None:
            return self.failure
        image = {"b64_json": base64.b64encode(self.png).decode(), "revised_prompt": f"a fox {UNSTORABLE}"}
        usage = {
            "input_tokens": 10, "output_tokens": 200, "total_tokens": 210, "note": UNSTORABLE,
            "cost": float("nan"), "input_tokens_details": {"text_tokens": 1e308, UNSTORABLE: float("inf")},
        }  # fmt: skip
        return 200, {
            "created": 10**30, "model": f"gpt-image-2{UNSTORABLE}{'m' * 5000}", "quality": UNSTORABLE,
            "size": UNSTORABLE, "data": [image], "usage": usage, UNSTORABLE: UNSTORABLE,
        }  # fmt: skip

    def __enter__(self) -> OddGateway:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                gateway.requests += 1
                status, document = gateway.reply()
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Oneapi-Request-Id", "2026\x85\xff" + "r" * 3000)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.send_error(404)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def odd(png: bytes, store: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[OddGateway]:
    with OddGateway(png) as gateway:
        connection = {
            "conn_type": "jojokey",
            "host": gateway.url,
            "password": "sk-odd",
            "extra": {"max_resends": 0},
        }
        monkeypatch.setenv("AIRFLOW_CONN_JOJOKEY_DEFAULT", json.dumps(connection))
        yield gateway


def written(airflow: Airflow, dag_id: str, *tasks: str, retries: int = 1, **dag: Any) -> Path:
    """Write a Dag."""
    settings = "".join(f", {name}={value!r}" for name, value in dag.items())
    lines = "".join(f"    {task}\n" for task in tasks)
    return airflow.write(
        f"{dag_id}.py",
        "from datetime import timedelta\n"
        "from airflow.sdk import DAG, Asset, AssetAlias, task\n"
        "from airflow_provider_jojokey.operators.jojokey import GenerateImageBatchOperator, GenerateImageOperator\n"
        f"RETRY = {{'retries': {retries}, 'retry_delay': timedelta(0)}}\n"
        f"with DAG({dag_id!r}, schedule=None, default_args=RETRY{settings}):\n{lines}",
    )


def succeeded_at_once(run: Run) -> bool:
    return set(run.states.values()) == {"success"} and set(run.tries.values()) == {1}


TEMPLATES = {
    "long": "{{ task.s3_key * 3 }}",
    "failing": "{{ 1 // (0 if task.task_id else 1) }}",
    "number": "{{ 7 }}",
    "tuple": "{{ 7, 'a' }}",
    "nothing": "{{ none }}",
    "unprintable": '{{ "a\\x00b" }}',
}


@pytest.mark.parametrize("native", [False, True], ids=["text", "native"])
def test_label_never_fails_a_mapped_task(airflow: Airflow, gateway: Any, store: Any, native: bool) -> None:
    named = [*KEYS.values(), "20261111.png", "{1: 2}.png"]
    mapped = "GenerateImageOperator.partial(task_id={!r}, prompt='a fox', s3_bucket='posters'{}).expand(s3_key={!r})"
    tasks = [mapped.format("by_key", "", named)]
    tasks += [mapped.format("deferred", ", deferrable=True", [f"d{key[1:]}" for key in named])]
    for name, template in TEMPLATES.items():
        keys = [f"{name}/{key}" for key in (KEYS["long"], "20261111.png")]
        tasks.append(mapped.format(name, f", map_index_template={template!r}", keys))

    run = airflow.run_file("labels", written(airflow, "labels", *tasks, render_template_as_native_obj=native))

    assert succeeded_at_once(run), run.states
    assert len(gateway.charges) == len(run.states)
    assert all(len(label or "") <= 250 for label in run.labels.values())
    assert run.labels["by_key", 0].endswith("xxx.png")
    assert run.labels["number", 0] == "7"


OUTLETS = "outlets=[Asset('foxes'), AssetAlias('each_fox')]"


def kinds(prefix: str, key: str) -> dict[str, str]:
    """Return one task of each kind."""
    s3_keys = {
        kind: f"{kind[0]}{key}" for kind in ("single", "mapped", "deferred", "batch", "labeled", "own")
    }
    common = f"s3_bucket='posters', {OUTLETS}"
    return {
        f"{prefix}_single": (
            f"GenerateImageOperator(task_id='{prefix}_single', prompt='a fox', s3_key={s3_keys['single']!r}, {common})"
        ),
        f"{prefix}_mapped": (
            f"GenerateImageOperator.partial(task_id='{prefix}_mapped', prompt='a fox', {common})"
            f".expand(s3_key=[{s3_keys['mapped']!r}])"
        ),
        f"{prefix}_labeled": (
            f"GenerateImageOperator.partial(task_id='{prefix}_labeled', prompt='a fox', {common}, "
            f"map_index_template={TEMPLATES['failing']!r}).expand(s3_key=[{s3_keys['labeled']!r}])"
        ),
        f"{prefix}_deferred": (
            f"GenerateImageOperator(task_id='{prefix}_deferred', prompt='a fox', deferrable=True, "
            f"s3_key={s3_keys['deferred']!r}, {common})"
        ),
        f"{prefix}_batch": (
            f"GenerateImageBatchOperator(task_id='{prefix}_batch', "
            f"requests=[{{'prompt': 'a fox', 's3_key': {s3_keys['batch']!r}}}], {common})"
        ),
        f"{prefix}_own": (
            f"task.jojokey_image(task_id='{prefix}_own', s3_key={s3_keys['own']!r}, multiple_outputs=True, {common})"
            "(lambda: 'a fox')()"
        ),
    }


def test_odd_response_with_an_odd_key_succeeds_first_time(airflow: Airflow, odd: OddGateway) -> None:
    tasks = kinds("asset", KEYS["asset"]) | kinds("odd", KEYS["odd"])

    run = airflow.run_file("odd", written(airflow, "odd", *tasks.values()))

    assert succeeded_at_once(run), (run.states, run.tries)
    assert odd.requests == len(tasks)
    for task_id, map_index in run.states:
        assert run.xcom("usage", task_id, map_index)["total_tokens"] == 210
        assert run.xcom("jojokey_images", task_id, map_index)["images"]
        assert run.xcom("keys", task_id, map_index)
        assert run.xcom("return_value", task_id, map_index)


FAILURES: dict[str, tuple[int, Any]] = {
    "refused": (
        400,
        {"error": {"message": UNSTORABLE + "m" * 100_000, "code": UNSTORABLE, "type": UNSTORABLE}},
    ),
    "overloaded": (503, {"error": {"message": UNSTORABLE, "code": UNSTORABLE + "c" * 100_000}}),
    "no image": (
        200,
        {"created": 1, "data": [], "error": UNSTORABLE, "usage": {"total_tokens": float("nan")}},
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_odd_error_is_reported_as_any_other(airflow: Airflow, odd: OddGateway, failure: str) -> None:
    odd.failure = FAILURES[failure]
    tasks = kinds("odd", "fox.png")

    retries = 0 if failure == "no image" else 1  # a retry waits until the gateway log is complete

    run = airflow.run_file("odd_error", written(airflow, "odd_error", *tasks.values(), retries=retries))

    assert set(run.states.values()) == {"failed"}
    tries = 2 if failure == "overloaded" else 1
    assert set(run.tries.values()) == {tries}, run.tries
    for task_id, map_index in run.states:
        assert run.xcom("usage", task_id, map_index) is not None
        result = run.xcom("jojokey_images", task_id, map_index)
        assert (result["state"], result["error"][:7]) == ("failed", "JojoKey")


@pytest.mark.parametrize("failure", [None, "no image"])
def test_worker_process_reports_an_odd_response(
    airflow: Airflow, odd: OddGateway, failure: str | None, tmp_path: Path
) -> None:
    odd.failure = FAILURES[failure] if failure else None
    tasks = {
        name: body for name, body in kinds("odd", KEYS["odd"]).items() if name in ("odd_mapped", "odd_batch")
    }
    path = written(airflow, "odd_worker", *tasks.values(), retries=0 if failure else 1)

    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("supervised.py")),
            "odd_worker",
            str(path),
            str(tmp_path / "end"),
        ],
        env={**os.environ, "AIRFLOW__CORE__DAGS_FOLDER": str(airflow.folder)},
        capture_output=True,
        timeout=PATIENCE,
    )

    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    end = json.loads((tmp_path / "end").read_text())
    assert end["states"] == dict.fromkeys(tasks, "failed" if failure else "success")
    assert odd.requests == len(tasks)
