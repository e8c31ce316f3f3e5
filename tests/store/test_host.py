"""The identity of a host differs between machines, boots and containers."""

from __future__ import annotations

import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_jojokey.store import host
from tests.support.patience import PATIENCE


class Machine:
    """The files that identify a host."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        for name, path in {"BOOT_ID": "boot", "PID_NAMESPACE": "pid"}.items():
            monkeypatch.setattr(host, name, folder / path)
        monkeypatch.setattr(host, "MACHINE_IDS", (folder / "machine", folder / "dbus"))
        monkeypatch.setattr(socket, "gethostname", lambda: self.name)
        self.set("worker", "b1", "m1", "pid:[1]")

    def set(self, name: str, boot: str | None, machine: str | None, pid: str | None) -> Machine:
        self.name = name
        for path, text in (("boot", boot), ("machine", machine)):
            (self.folder / path).unlink(missing_ok=True)
            if text is not None:
                (self.folder / path).write_text(f"{text}\n")
        (self.folder / "pid").unlink(missing_ok=True)
        if pid is not None:
            (self.folder / "pid").symlink_to(pid)
        forget()
        return self


def forget() -> None:
    for function in (host.boot_id, host.machine_id, host.host_identity):
        function.cache_clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(tmp_path, monkeypatch)
    forget()


HOSTS: dict[str, Any] = {
    "this": ("worker", "b1", "m1", "pid:[1]"),
    "another boot": ("worker", "b2", "m1", "pid:[1]"),
    "another machine of the same name": ("worker", "b3", "m2", "pid:[1]"),
    "a clone with the same machine ID": ("worker", "b4", "m1", "pid:[1]"),
    "another container": ("worker", "b1", "m1", "pid:[2]"),
    "another name": ("worker-2", "b1", "m1", "pid:[1]"),
    "a container without a machine ID": ("worker", "b1", None, "pid:[1]"),
    "a host without namespaces": ("worker", "b1", "m1", None),
}


def test_identity_differs_between_hosts(machine: Machine) -> None:
    identities = {}
    for name, facts in HOSTS.items():
        machine.set(*facts)
        identities[host.host_identity()] = name
    assert sorted(identities.values()) == sorted(HOSTS)


def test_identity_is_stable(machine: Machine) -> None:
    first = host.host_identity()
    forget()
    assert host.host_identity() == first
    (machine.folder / "boot").write_text("changed")  # it stays for the life of a process
    assert host.host_identity() == first


def test_identity_without_a_boot_id_uses_the_network_card(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = set()
    for node in (1, 2):
        monkeypatch.setattr(uuid, "getnode", lambda node=node: node)
        machine.set("worker", None, None, None)
        assert (host.boot_id(), host.machine_id()) == ("", "")
        identities.add(host.host_identity())
    assert len(identities) == 2


def test_machine_id_is_hashed(machine: Machine) -> None:
    machine.set("worker", "b1", "0123456789abcdef0123456789abcdef", None)
    assert len(host.machine_id()) == 32
    assert "0123456789abcdef" not in host.machine_id()
    assert "0123456789abcdef" not in host.host_identity()


def test_machine_id_of_dbus_is_the_fallback(machine: Machine) -> None:
    machine.set("worker", "b1", "m1", None)
    known = host.machine_id()
    (machine.folder / "machine").rename(machine.folder / "dbus")
    forget()
    assert host.machine_id() == known


@pytest.mark.parametrize("text", [b"", b"\n", b"uninitialized\n", b"\xff\xfe"])
def test_unset_machine_id_is_unknown(machine: Machine, text: bytes) -> None:
    (machine.folder / "machine").write_bytes(text)
    forget()
    assert host.machine_id() == ""


def test_processes_of_one_host_agree() -> None:
    code = "from airflow_provider_jojokey.store import host; print(host.host_identity(), host.boot_id())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.split() == [host.host_identity(), *host.boot_id().split()]


def test_worker_name_is_the_host_name() -> None:
    assert host.host_name() == socket.gethostname()
