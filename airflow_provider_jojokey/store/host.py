"""The identity of the machine, the boot and the container that this process runs in.

A host name does not identify a machine: two machines may have the same name, and two containers share a machine. If
one were taken for the other, an attempt that is still running on one would look dead to the other.
"""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from functools import cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
PID_NAMESPACE = Path("/proc/self/ns/pid")


@cache
def boot_id() -> str:
    """Return the kernel's boot ID, or ``""`` if it is unknown."""
    return _text(BOOT_ID)


@cache
def machine_id() -> str:
    """Return a hash of this machine's ID, or ``""`` if it is unknown.

    Hashed, because the ID itself is confidential, see ``man machine-id``.
    """
    for path in MACHINE_IDS:
        if known := _text(path):
            return _hash("machine", known)
    return ""


@cache
def host_identity() -> str:
    """Return a string that no other machine, boot or container shares.

    It is the same for all processes of one container, and changes when the machine boots.
    """
    boot = boot_id()
    # Without a boot ID, only the network card distinguishes two machines with one name. If there is none,
    # getnode() returns a random number: each process then counts as its own host, which is safe.
    machine = machine_id() if boot else f"{machine_id()} {uuid.getnode()}"
    return _hash("host", host_name(), machine, boot, _pid_namespace())


def host_name() -> str:
    """Return the host's name, for display only."""
    return socket.gethostname()


def _pid_namespace() -> str:
    try:
        return os.readlink(PID_NAMESPACE)
    except OSError:
        return ""


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return "" if text == "uninitialized" else text  # systemd writes that during the first boot


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(("jojokey", *parts)).encode()).hexdigest()[:32]
