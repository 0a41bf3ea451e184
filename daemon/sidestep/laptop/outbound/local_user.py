"""Whose a client on this machine is: whether it needs the password, and who may send datagrams for it.

A port on 127.0.0.1 can be reached by every user of the machine, and what this proxy leads to is as good as a shell in a
pod. Linux tells the user of a socket (proc_net(5)); elsewhere clients show the password, which is in the variables of
the command behind `--`.

A socket that its process has closed is in the tables as root's, with inode 0: it is nobody's here. A program may reach
127.0.0.1 by a socket of IPv6, which is in the tables of IPv6 with a mapped address.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

_NET: Final = Path("/proc/net")
_TCP, _UDP = ("tcp", "tcp6"), ("udp", "udp6")
_LOCAL, _REMOTE, _UID, _INODE = 1, 2, 7, 9
"""Columns."""
_MAPPED: Final = bytes(10) + b"\xff\xff"

End = tuple[str, int]


def is_ours(sock: socket.socket) -> bool:
    """Whether the peer of a TCP connection over IPv4 within this machine is this user's, or of who called sudo."""
    return _user_of(sock) in _users()


def sends_for(sock: socket.socket, sender: End) -> bool:
    """Whether datagrams of a sender are of the user who has the peer of a TCP connection. Elsewhere than on Linux every
    sender counts."""
    if sys.platform != "linux":
        return True
    user = _user_of(sock)
    return user is not None and udp_users(map(_table, _UDP), sender) == {user}


def tcp_user(tables: Iterable[str], client: End, server: End) -> str | None:
    """Return the user id of the client of a connection, as tables like /proc/net/tcp tell it; None: they do not."""
    ends = {(near, far) for near in _shown(client) for far in _shown(server)}
    found = _users_of(tables, lambda local, remote: (local, remote) in ends)
    return next(found, None)


def udp_users(tables: Iterable[str], sender: End) -> set[str]:
    """Return the user ids of the sockets that may have sent from an address and port, as tables like /proc/net/udp tell
    them."""
    ends = {*_shown(sender), *_shown(("0.0.0.0", sender[1])), f"{0:032X}:{sender[1]:04X}"}
    return set(_users_of(tables, lambda local, _: local in ends))


def _user_of(sock: socket.socket) -> str | None:
    if sys.platform != "linux":
        return None
    try:
        return tcp_user(map(_table, _TCP), sock.getpeername(), sock.getsockname())
    except OSError:
        return None


def _users_of(tables: Iterable[str], matches: Callable[[str, str], bool]) -> Iterator[str]:
    for table in tables:
        for row in table.splitlines()[1:]:
            fields = row.split()
            if matches(fields[_LOCAL], fields[_REMOTE]) and fields[_INODE] != "0":
                yield fields[_UID]


def _table(name: str) -> str:
    try:
        return (_NET / name).read_text("ascii", "replace")
    except OSError:
        return ""  # there may be no IPv6


def _users() -> frozenset[str]:
    users = {str(os.geteuid())}
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        users.add(os.environ["SUDO_UID"])
    return frozenset(users)


def _shown(end: End) -> tuple[str, str]:
    """Return an address as the tables have it, of IPv4 and mapped: words in the byte order of the machine."""
    address, port = socket.inet_aton(end[0]), f":{end[1]:04X}"
    return _words(address) + port, _words(_MAPPED + address) + port


def _words(address: bytes) -> str:
    return "".join(f"{int.from_bytes(address[at : at + 4], sys.byteorder):08X}" for at in range(0, len(address), 4))
