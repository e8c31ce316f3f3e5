"""The identity of the machine, the boot and the container that this process runs in.

Host names repeat: two machines of one name, or two containers of one machine, must never be mistaken for
each other. Otherwise an attempt that is still in flight on one of them looks dead on the other.
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
    """Return the ID that the kernel drew at boot, or ``""`` if it is unknown."""
    return _text(BOOT_ID)


@cache
def machine_id() -> str:
    """Return a hash of this machine's ID, or ``""`` if it is unknown.

    The ID itself is confidential, see ``man machine-id``.
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
    # Without a boot ID, the network card is the only thing left that two machines of one name don't share.
    # If there is none, getnode() draws a number: each process is a host of its own then, which is safe.
    machine = machine_id() if boot else f"{machine_id()} {uuid.getnode()}"
    return _hash("host", host_name(), machine, boot, _pid_namespace())


def host_name() -> str:
    """Return the host's name, for people."""
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
