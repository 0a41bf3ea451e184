"""Have the listening sockets of a namespace changed? Asked twice a second for every target pod, so it must cost little.

One question of the older kind (inet_diag_req, TCPDIAG_GETSOCK) is for both families, and the answer is compared as it
is, without being understood: half the cost of asking twice, most of which is the kernel's. Equal fingerprints mean
equal tables. The reverse does not hold: the answer also tells how long each accept queue is.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from sidestep.netns.listening import NETLINK_SOCK_DIAG
from sidestep.netns.namespace import Netns

_HEADER: Final = struct.Struct("=IHHII")
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_BUFFER: Final = 65536
_MAX_PARTS: Final = 4096


_QUESTION: Final = struct.pack("=BBBB48xII", 0, 0, 0, 0, 1 << 10, 0)  # struct inet_diag_req: TCP_LISTEN, any family
_TCPDIAG_GETSOCK: Final = 18
# A constant sequence number: answers would otherwise always differ.
_REQUEST: Final = _HEADER.pack(_HEADER.size + len(_QUESTION), _TCPDIAG_GETSOCK, 0x301, 0x51DE, 0) + _QUESTION


def fingerprint(netns: Netns) -> bytes:
    """What the kernel answers now; empty when it does not, which says nothing. Raises KernelError (entering failed)."""
    diag = netns.netlink(NETLINK_SOCK_DIAG)
    parts: list[bytes] = []
    try:
        diag.send(_REQUEST, socket.MSG_DONTWAIT)
        while not _ends(parts):
            parts.append(diag.recv(_BUFFER, socket.MSG_DONTWAIT))
    except (OSError, ValueError):
        netns.forget(NETLINK_SOCK_DIAG)
        return b""
    return b"".join(parts)


def _ends(parts: list[bytes]) -> bool:
    """Whether the last part read ends the answer. Raises ValueError for an error, or an answer without end."""
    part = parts[-1] if parts else b""
    if len(parts) > _MAX_PARTS:
        raise ValueError("too many listening sockets")
    offset = 0
    while offset + _HEADER.size <= len(part):
        length, kind, *_ = _HEADER.unpack_from(part, offset)
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR or length < _HEADER.size:
            raise ValueError("the kernel refused the question")
        offset += (length + 3) & ~3
    return False
