"""Whose a client on this machine is: whether it needs the password, and who may send datagrams for it.

A port on 127.0.0.1 can be reached by every user of the machine, and what this proxy leads to is as good as a shell in a
pod. Linux tells the user of a socket: by one question about a connection (sock_diag(7)), or where that cannot be asked
by the tables of all (proc_net(5)), which takes 9 ms of CPU, and more with every socket. Elsewhere clients show the
password, which is in the variables of the command behind `--`.

A socket that its process has closed is in the tables as root's, with inode 0: it is nobody's here. A program may reach
127.0.0.1 by a socket of IPv6, which is in the tables of IPv6 with a mapped address.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

_NET: Final = Path("/proc/net")
_TCP, _UDP = ("tcp", "tcp6"), ("udp", "udp6")
_LOCAL, _REMOTE, _UID, _INODE = 1, 2, 7, 9
"""Columns."""
_SOCK_DIAG, _BY_FAMILY, _REQUEST = 4, 20, 1
"""NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST (linux/netlink.h, linux/sock_diag.h)."""
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKED: Final = struct.Struct("=BBBBI")  # struct inet_diag_req_v2, before the connection
_ENDS: Final = struct.Struct("=2s2s4s12x4s12xIII")  # struct inet_diag_sockid: ports, addresses, interface, cookie
_ANSWER: Final = struct.Struct("=4x48x12xII")  # struct inet_diag_msg: uid and inode, its last fields
_ALL: Final = 0xFFFFFFFF
PATIENCE: Final = 1.0
"""Seconds for the kernel, which answers at once."""
_MAPPED: Final = bytes(10) + b"\xff\xff"

End = tuple[str, int]


TELLS_USERS: Final = sys.platform == "linux"
"""Whether this system tells whose a socket is."""


def is_ours(sock: socket.socket) -> bool:
    """Whether the peer of a TCP connection over IPv4 within this machine is this user's, or of who called sudo."""
    user = _user_of(sock)
    return user is not None and user in _users()


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
        client, server = sock.getpeername(), sock.getsockname()
    except OSError:
        return None
    try:
        return _asked(client, server)
    except OSError:
        return tcp_user(map(_table, _TCP), client, server)


def _asked(client: End, server: End) -> str | None:
    """Return the user id of the client of a connection, as the kernel answers; None: it has none. Raises OSError."""
    ports = (client[1].to_bytes(2, "big"), server[1].to_bytes(2, "big"))
    ends = _ENDS.pack(*ports, socket.inet_aton(client[0]), socket.inet_aton(server[0]), 0, _ALL, _ALL)
    asked = _ASKED.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ALL) + ends
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(PATIENCE)
        kernel.send(_HEADER.pack(_HEADER.size + len(asked), _BY_FAMILY, _REQUEST, 1, 0) + asked)
        answer = kernel.recv(4096)
    kind = _HEADER.unpack_from(answer)[1]
    if kind != _BY_FAMILY or len(answer) < _HEADER.size + _ANSWER.size:
        raise OSError("the kernel does not tell")
    user, inode = _ANSWER.unpack_from(answer, _HEADER.size)
    return str(user) if inode else None


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
