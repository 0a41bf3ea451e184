"""Whether the client of a connection on this machine is a process of this user.

A port on 127.0.0.1 can be reached by every user of the machine, and what this proxy leads to is as good as a shell in a
pod. Linux tells the user of a socket (proc_net(5)); elsewhere clients show the password, which is in the variables of
the command behind `--`.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Final

_TABLE: Final = Path("/proc/net/tcp")
_LOCAL, _REMOTE, _UID = 1, 2, 7
"""Columns."""


def is_ours(sock: socket.socket) -> bool:
    """Whether the peer of a TCP connection over IPv4 within this machine is this user's, or of who called sudo."""
    if sys.platform != "linux":
        return False
    try:
        ours, theirs = sock.getsockname(), sock.getpeername()
        rows = _TABLE.read_text("ascii", "replace").splitlines()
    except OSError:
        return False
    ends = (_shown(theirs), _shown(ours))
    return any(
        (fields[_LOCAL], fields[_REMOTE]) == ends and fields[_UID] in _users() for fields in map(str.split, rows)
    )


def _users() -> frozenset[str]:
    users = {str(os.geteuid())}
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        users.add(os.environ["SUDO_UID"])
    return frozenset(users)


def _shown(end: tuple[str, int]) -> str:
    """Return an address as the table has it: in the byte order of the machine."""
    return f"{int.from_bytes(socket.inet_aton(end[0]), sys.byteorder):08X}:{end[1]:04X}"
