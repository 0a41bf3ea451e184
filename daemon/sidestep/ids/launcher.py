"""Becomes a Suricata: `python -m sidestep.ids.launcher CONTROL ORDER`, started by the node daemon as root.

ORDER is the number of a memfd with an `Order`, CONTROL that of a unix socket. What the process needs of the system is
looked for, the process locks itself in (`confinement`), sends the listening socket for EVE records on CONTROL, waits
there for a byte of the daemon, and executes Suricata, which reads packets from standard input. If a step fails, a line
on standard error says why and the exit status is FAILED.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import Final

import msgspec

from sidestep.ids import confinement
from sidestep.ids.suricata_config import EVE
from sidestep.model.errors import SidestepError

FAILED: Final = 78
"""EX_CONFIG of sysexits.h; Suricata's own failures have 1."""
WAIT: Final = 30.0
"""Seconds for the daemon to say that Suricata may be executed."""
FEED: Final = "/-"
"""An empty file. Suricata looks whether what it is to read exists; libpcap takes the name `-` for standard input."""


class Order(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What to become: files by path, Suricata's arguments, user id, bytes of private memory."""

    files: dict[str, bytes]
    arguments: tuple[str, ...]
    uid: int
    memory: int


def find_suricata() -> str | None:
    """The path of Suricata on this system, None if it is not installed."""
    return shutil.which("suricata", path="/usr/sbin:/usr/bin:/sbin:/bin")


def _programs(suricata: str) -> list[str]:
    """Suricata, its loader and the libraries that it is linked with, as the loader finds them. Raises OSError."""
    told = subprocess.run(["ldd", suricata], capture_output=True, check=False, timeout=10, text=True)
    if told.returncode:
        raise OSError(f"ldd: {told.stderr.strip()[:200]}")
    words = [word for line in told.stdout.splitlines() for word in line.split() if word.startswith("/")]
    return [suricata, *dict.fromkeys(words)]


def main(arguments: list[str]) -> int:
    """See the module."""
    control, order_fd = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with open(order_fd, "rb") as file:
            order = msgspec.msgpack.decode(file.read(), type=Order)
        suricata = find_suricata()
        if suricata is None:
            raise OSError("Suricata is not installed")
        programs = _programs(suricata)
        files = {**order.files, FEED: b""}
        listener = confinement.lock(files, programs, uid=order.uid, memory=order.memory, listen=EVE)
        socket.send_fds(control, [b"\0"], [listener.fileno()])
        listener.close()
        control.settimeout(WAIT)
        if not control.recv(1):
            return FAILED
        control.close()
        os.closerange(3, 1024)
        os.execve(suricata, ["suricata", *order.arguments], {"PATH": "/usr/bin", "LC_ALL": "C", "TZ": "UTC0"})  # noqa: S606 - that is what it is for
    except (OSError, ValueError, subprocess.SubprocessError, SidestepError, msgspec.MsgspecError) as error:
        sys.stderr.write(f"Suricata cannot be locked in: {error}\n")
    return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
