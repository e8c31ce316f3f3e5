"""docker-compose.yaml without containers: structure, commands and settings."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.buckets import Bucket, moto_bucket
from tests.support.native import COMPOSE, FILE, ROOT, SERVICES, Native, filled, is_ours, make_env
from tests.support.patience import PATIENCE

JOBS = {name for name, service in SERVICES.items() if service.get("restart") == "no"}
AIRFLOW = {name for name in SERVICES if is_ours(name)} - {"sandbox"}

each_service = pytest.mark.parametrize("name", SERVICES)
each_server = pytest.mark.parametrize("name", [name for name in SERVICES if name not in JOBS])


def variables(text: str) -> Iterator[tuple[str, str]]:
    """Yield each variable that compose replaces, with the text after its name."""
    yield from re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text)


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    """The output of compose/make_env.py."""
    return make_env()


def test_compose_file_follows_the_specification() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@each_service
def test_images_are_pinned_by_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+|:RELEASE\.\d{4}-", SERVICES[name]["image"])


def test_built_image_has_the_tested_airflow() -> None:
    pinned = re.search(r"^apache-airflow==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    dockerfile = (ROOT / "compose" / "Dockerfile").read_text()
    assert f"apache/airflow:{pinned[1]}-" in dockerfile
    assert f"]=={pinned[1]}" in dockerfile
    assert {SERVICES[name]["image"] for name in AIRFLOW} == {f"jojokey-airflow:{pinned[1]}"}


@each_service
def test_ports_are_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    assert SERVICES[name].get("network_mode") in (None, "none")


@each_server
def test_servers_have_health_checks(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert "disable" not in check


@each_service
def test_services_drop_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged")
    if name == "volume-owners":  # gives new volumes to their users, without a network
        assert service["cap_add"] == ["CHOWN"]
        assert service["network_mode"] == "none"
    else:
        assert str(service["user"]).split(":")[0] not in ("root", "0")
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_dependencies_of_services_exist() -> None:
    for service in SERVICES.values():
        for required, dependency in service.get("depends_on", {}).items():
            completed = dependency["condition"] == "service_completed_successfully"
            assert completed == (required in JOBS)
            assert set(SERVICES[required].get("profiles", [])) <= set(service.get("profiles", []))


def test_volumes_are_named() -> None:
    used = {
        mount.split(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", ())
        if not mount.startswith("./")
    }
    assert used == set(COMPOSE["volumes"])
    for name in AIRFLOW:
        mounts = [mount.split(":")[1] for mount in SERVICES[name]["volumes"]]
        spool = SERVICES[name]["environment"]["AIRFLOW__JOJOKEY__SPOOL_DIRECTORY"]
        assert any(spool.startswith(mount) for mount in mounts)


@each_service
def test_mounted_files_exist(name: str) -> None:
    for mount in SERVICES[name].get("volumes", ()):
        if mount.startswith("./"):
            assert (ROOT / mount.split(":")[0]).exists(), mount
            assert mount.endswith(":ro")


def test_no_secret_has_a_default() -> None:
    found = dict(variables(FILE.read_text(encoding="utf-8")))
    for name, rest in found.items():
        if re.search("PASSWORD|SECRET|_KEY|TOKEN", name):
            assert rest == ":-" or rest.startswith(":?"), name  # it is empty, or it does not start


def test_required_secrets_are_random(secrets: dict[str, str]) -> None:
    required = {name for name, _ in variables(FILE.read_text(encoding="utf-8"))}

    assert set(secrets) == required
    values = [value for name, value in secrets.items() if len(value) > 30 and "://" not in value]
    assert len(set(values)) == len(values) == 10


@pytest.mark.parametrize("name", sorted(AIRFLOW))
def test_airflow_settings_exist(name: str) -> None:
    from airflow.configuration import conf

    for variable in SERVICES[name]["environment"]:
        if variable.startswith("AIRFLOW__"):
            _, section, option = variable.lower().split("__")
            # The test environment doesn't include Celery's provider.
            known = conf.configuration_description.get(section, {}).get("options", {})
            assert section == "celery" or option in known, variable


@pytest.mark.parametrize("name", sorted(AIRFLOW))
def test_airflow_commands_exist(name: str) -> None:
    from airflow.cli.cli_parser import get_parser

    service = SERVICES[name]
    healthcheck = service.get("healthcheck", {}).get("test", ["CMD"])
    texts = [shlex.join(service["command"]), shlex.join(healthcheck[1:])]
    if service["command"][0] == "bash":
        texts = service["command"][-1].split(" && ")
    commands = [shlex.split(text.replace("$$", "")) for text in texts]
    if healthcheck[0] == "CMD-SHELL":
        commands[1] = shlex.split(healthcheck[1].replace("$$", ""))
    parsed = 0
    for words in commands:
        if words[:1] == ["airflow"] or words == commands[0]:
            words = words[1:] if words[0] == "airflow" else words  # the image's entrypoint adds it
            if words[0] == "celery":
                continue  # the test environment lacks its provider; `make test-cluster` runs it
            get_parser().parse_args(words)
            parsed += 1
    assert parsed or name.startswith("worker")


@pytest.mark.parametrize("name", sorted(AIRFLOW))
def test_connections_are_valid(name: str, secrets: dict[str, str]) -> None:
    environment = SERVICES[name]["environment"]
    for variable in (name for name in environment if name.startswith("AIRFLOW_CONN_")):
        connection = json.loads(filled(environment[variable], secrets))
        assert connection["conn_type"] in ("aws", "jojokey")
        assert "$" not in json.dumps(connection)
    if "worker" in name or "triggerer" in name:
        connection = json.loads(filled(environment["AIRFLOW_CONN_JOJOKEY_DEFAULT"], secrets))
        real = name.endswith("-real")
        assert connection["host"] == ("https://api.jojokey.com" if real else "http://sandbox:4870")


@pytest.mark.parametrize("name", sorted({*AIRFLOW, "sandbox", "postgres", "redis"}))
def test_hosts_ports_and_folders_exist(name: str, tmp_path: Path) -> None:
    native = Native(tmp_path, ports={}, mounts={}, settings={})
    container = native.container(name, name)  # raises LookupError if something is missing

    text = " ".join([*container.command, *container.environment.values(), *container.check])
    assert "${" not in text.replace("${HOSTNAME}", "")


@pytest.mark.parametrize("name", ["worker", "worker-real"])
def test_stopped_worker_has_time_for_its_requests(name: str) -> None:
    assert SERVICES[name]["stop_grace_period"] == "5m"
    assert SERVICES[name]["environment"]["DUMB_INIT_SETSID"] == "0"


def test_sandbox_and_real_api_exclude_each_other() -> None:
    for kind in ("worker", "triggerer"):
        assert SERVICES[kind]["profiles"] == ["sandbox"]
        assert SERVICES[f"{kind}-real"]["profiles"] == ["real"]
    assert SERVICES["sandbox"]["profiles"] == ["sandbox"]
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["monitoring"]} == {
        "statsd-exporter", "prometheus", "grafana",
    }  # fmt: skip


def test_files_of_the_image_are_not_ignored() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for needed in (
        "airflow_provider_jojokey",
        "constraints.txt",
        "hatch_build.py",
        "pyproject.toml",
        "README.md",
        "scripts/repository.py",
        "LICENSE",
    ):
        assert needed in let_in
    assert "compose/*.py" in let_in


# --- commands of the containers, run on this machine


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with moto_bucket() as made:
        yield made


def test_preparation_creates_bucket_and_password(bucket: Bucket, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords.json"
    environment = {
        **os.environ,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW_ADMIN_PASSWORD": "correct horse",
        "AIRFLOW_VAR_POSTERS_BUCKET": "made-by-compose",
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(bucket.connection),
    }
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / "compose" / "prepare.py"], env=environment, check=True)

    assert json.loads(passwords.read_text()) == {"admin": "correct horse"}
    assert passwords.stat().st_mode & 0o077 == 0
    names = [entry["Name"] for entry in bucket.client().list_buckets()["Buckets"]]
    assert names.count("made-by-compose") == 1


def test_sandbox_container_generates_and_keeps_its_charges(tmp_path: Path) -> None:
    from airflow_provider_jojokey.img2 import Client, ImageRequest

    environment = {
        **os.environ, "JOJOKEY_TOKEN": "sk-of-compose", "CHARGES": str(tmp_path / "charges.jsonl"),
        "LISTEN": "127.0.0.1", "PORT": "0",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, ROOT / "compose" / "gateway.py"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        port = re.search(r"port (\d+)", process.stdout.readline())
        assert port
        with Client("sk-of-compose", f"http://127.0.0.1:{port[1]}") as client:
            client.generate(ImageRequest("A red fox")).close()
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert "A red fox" in (tmp_path / "charges.jsonl").read_text()
