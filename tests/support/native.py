"""Run docker-compose.yaml without containers: commands, settings and health checks for this machine.

Only this module knows how host names, ports and files of containers map to one machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

LOOPBACK = "127.0.0.1"
PORTS = {
    "postgres": 5432,
    "redis": 6379,
    "s3": 9000,
    "api-server": 8080,
    "scheduler": 8974,
    "sandbox": 4870,
    "statsd-exporter": 9125,
}
"""The port of each service in its container."""
IMAGE = "/opt/jojokey"
"""The folder of this repository in the image of compose/Dockerfile."""
LOGS = "/opt/airflow/logs"

_SERVICE_AT = {str(port): service for service, port in PORTS.items()}
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(?::([-?])([^}]*))?\}")
_ADDRESS = re.compile(rf"(?<![\w.-])(localhost|{'|'.join(PORTS)}):(\d+)")
_PATH = re.compile(r"(?<![\w:.])/(?:opt|var)/[\w./-]+")


def make_env() -> dict[str, str]:
    """Return the variables that compose/make_env.py generates."""
    done = subprocess.run(
        [sys.executable, ROOT / "compose" / "make_env.py"], capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if not line.startswith("#"))


def filled(text: str, environment: Mapping[str, str]) -> str:
    """Replace ``${VARIABLES}`` like compose.

    :raises LookupError: if a required variable is missing
    """

    def fill(found: re.Match[str]) -> str:
        name, sign, rest = found.groups()
        if name is None:
            return "$"
        if sign == "?" and not environment.get(name):
            raise LookupError(f"{name}: {rest}")
        return environment.get(name) or rest or ""

    return _VARIABLE.sub(fill, text)


def is_ours(service: str) -> bool:
    """Return whether a service uses the image of compose/Dockerfile."""
    return "build" in SERVICES[service]


@dataclass(frozen=True)
class Container:
    """The content of a container as processes of this machine.

    :param check: the command of its health check; empty if it has none
    """

    command: list[str]
    environment: dict[str, str]
    check: list[str]


class Native:
    """docker-compose.yaml with this run's secrets, ports and folders.

    :param folder: for volumes and homes
    :param ports: ports of services that the caller runs
    :param mounts: replacements for mounted folders of this repository, such as ``./dags``
    :param settings: Airflow's settings that add to the file or override it
    """

    def __init__(
        self,
        folder: Path,
        *,
        ports: Mapping[str, int],
        mounts: Mapping[str, Path],
        settings: Mapping[str, str],
    ) -> None:
        self.folder = folder
        self.secrets = make_env()
        self.ports = {**_free_ports(), **ports}
        self._mounts, self._settings = mounts, settings

    def url(self, service: str) -> str:
        return f"http://{LOOPBACK}:{self.ports[service]}"

    def environment(self, service: str) -> dict[str, str]:
        """Return a value of the file with the addresses and folders of this machine."""
        definition = SERVICES[service].get("environment", {})
        # A host without a port is replaced only as a whole value: in a command it could be another word.
        return {
            name: LOOPBACK if value in PORTS else self._translated(service, value)
            for name, value in definition.items()
        }

    def container(self, service: str, name: str) -> Container:
        """Return a new container of a service, with a host name that starts with ``name``."""
        hostname = f"{name}-{secrets.token_hex(3)}"  # each new container has a new one
        home = self.folder / "containers" / hostname
        home.mkdir(parents=True)
        environment = {
            "HOME": str(home),
            "HOSTNAME": hostname,
            "LANG": "C.UTF-8",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **self.environment(service),
        }
        command = [self._translated(service, word) for word in SERVICES[service].get("command", ())]
        if is_ours(service):
            environment |= self._image(service, home) | self._settings
            if command[0] not in ("airflow", "bash", "python"):
                command.insert(0, "airflow")  # like the image's entrypoint
        arguments, more = self._on_loopback(service, hostname)
        if command[:2] == ["sh", "-c"]:
            command[2] = f"{command[2]} {shlex.join(arguments)}"
        else:
            command += arguments
        return Container(command, environment | more, self._check(service))

    def _on_loopback(self, service: str, hostname: str) -> tuple[list[str], dict[str, str]]:
        """Return arguments and settings that differ between services on the same machine.

        A container's network is its own: there, a server may listen on all of it, at its usual port.
        """
        port = str(self.ports.get(service))
        match service:
            case "postgres":
                return [], {"PGHOST": LOOPBACK, "PGPORT": port}  # for its health check
            case "redis":
                return ["--bind", LOOPBACK, "--port", port], {}
            case "api-server":
                return ["--host", LOOPBACK], {}
            case "scheduler":
                server = "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER"
                return [], {f"{server}_HOST": LOOPBACK, f"{server}_PORT": port}
            case "worker":  # its log server would listen on all networks
                return ["--skip-serve-logs", "--celery-hostname", f"celery@{hostname}"], {}
            case "triggerer":
                return ["--skip-serve-logs"], {}
            case "sandbox":
                return [], {"LISTEN": LOOPBACK, "PORT": port}
        return [], {}

    def _image(self, service: str, home: Path) -> dict[str, str]:
        """Return the default environment of the image."""
        logs = self._place(service, LOGS)
        return {
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "container.hostname",
            "PYTHONPATH": str(Path(__file__).with_name("inside")),
            "PYTHONWARNINGS": "ignore",
            **({"AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(logs)} if logs else {}),
        }

    def _check(self, service: str) -> list[str]:
        kind, *words = SERVICES[service].get("healthcheck", {}).get("test", ["NONE"])
        words = [self._translated(service, word) for word in words]
        return ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words

    def _translated(self, service: str, text: str) -> str:
        if text in _SERVICE_AT:  # a port is replaced only as a whole value: in a text it could be any number
            return str(self.ports[_SERVICE_AT[text]])
        text = _ADDRESS.sub(lambda match: self._address(match[1], match[2]), text)
        text = _PATH.sub(lambda match: self._known_place(service, match[0]), text)
        return filled(text, self.secrets)

    def _address(self, host: str, port: str) -> str:
        service = _SERVICE_AT.get(port)
        if service is None or host not in (service, "localhost"):
            raise LookupError(f"{host} does not listen on port {port}")
        return f"{LOOPBACK}:{self.ports[service]}"

    def _known_place(self, service: str, path: str) -> str:
        place = self._place(service, path)
        if place is None:
            raise LookupError(f"{service} has no volume at {path}")
        return str(place)

    def _place(self, service: str, path: str) -> Path | None:
        """Return the path on this machine of a file in a volume or in the image."""
        volumes = [mount.split(":")[:2] for mount in SERVICES[service].get("volumes", ())]
        for source, inside in [*volumes, ["./", IMAGE]]:
            if path == inside or path.startswith(f"{inside}/"):
                return self._source(source) / path[len(inside) :].lstrip("/")
        return None

    def _source(self, name: str) -> Path:
        if name.startswith("./"):
            return self._mounts.get(name, ROOT / name)
        volume = self.folder / "volumes" / name
        volume.mkdir(parents=True, exist_ok=True)
        return volume


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:  # keep all open, so that no two are the same
        probes = {name: stack.enter_context(socket.socket()) for name in PORTS}
        for probe in probes.values():
            probe.bind((LOOPBACK, 0))
        return {name: int(probe.getsockname()[1]) for name, probe in probes.items()}
