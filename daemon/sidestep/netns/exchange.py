"""Sends netlink requests and reads the answers (netlink(7)): a dump gives many answers, a command one acknowledgement.

The socket is one that `Netns.netlink` made inside the namespace: whichever thread asks, the answers are about that
namespace. The kernel produces the answers to a dump while they are read, so no read waits: a socket without data is an
error. The pod decides how much there is to list; `MAX_ANSWERS` bounds it. A dump that is not read to its end
closes the socket, so that no later question gets the rest of its answers.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import sys
from collections.abc import Generator, Iterator
from typing import Any, Final

from sidestep.model.errors import KernelError
from sidestep.netns.messages import NLMSG_DONE, NLMSG_ERROR, Ending, NetlinkDecodeError, nlmsg
from sidestep.netns.namespace import Netns

MAX_ANSWERS: Final = 65_536
"""Answers to one dump. One takes 15 (a connection) to 40 microseconds (an address): three seconds at most."""

HEADER: Final = struct.Struct("=IHHII")
"""`struct nlmsghdr`: length, type, flags, sequence number, port."""
BUFFER: Final = 65536
"""Bytes; the kernel fills at most half of it with one read of a dump (`netlink_dump`, net/netlink/af_netlink.c)."""

_SEQUENCE_AT: Final = 8
_ENDS: Final = frozenset({NLMSG_DONE, NLMSG_ERROR})

_sequence = itertools.count(1)


def dump(
    netns: Netns, protocol: int, request: bytes, *, answer: type[nlmsg], doing: str
) -> Generator[dict[str, Any], None, None]:
    """Ask and yield every answer, decoded as `answer`. Raises KernelError."""
    sock, sequence = netns.netlink(protocol), next(_sequence) & 0xFFFFFFFF
    answers = 0
    error_number: int | None = None
    try:
        sock.send(_numbered(request, sequence), socket.MSG_DONTWAIT)
        while error_number is None:
            data = _read(sock)
            for offset, number in _messages(data, sequence):
                if number in _ENDS:
                    error_number = _error(data, offset)
                    break
                answers += 1
                if answers > MAX_ANSWERS:
                    raise OSError(errno.E2BIG, "too many answers")
                yield _decoded(answer, data, offset)
    except OSError as error:
        netns.forget(protocol)
        raise KernelError("netlink", error.errno or 0, doing=doing) from error
    except BaseException:  # the caller reads no further
        netns.forget(protocol)
        raise
    if error_number:
        raise KernelError("netlink", error_number, doing=doing)


def command(netns: Netns, protocol: int, request: bytes, *, doing: str) -> None:
    """Ask for something to be done and read the acknowledgement. Raises KernelError with the kernel's answer."""
    sock, sequence = netns.netlink(protocol), next(_sequence) & 0xFFFFFFFF
    try:
        sock.send(_numbered(request, sequence), socket.MSG_DONTWAIT)
        data = _read(sock)
        errors = [_error(data, offset) for offset, number in _messages(data, sequence) if number == NLMSG_ERROR]
        if not errors:
            raise OSError(errno.EBADMSG, "no acknowledgement")
    except OSError as error:
        netns.forget(protocol)
        raise KernelError("netlink", error.errno or 0, doing=doing) from error
    if errors[0]:
        raise KernelError("netlink", errors[0], doing=doing)


def _numbered(request: bytes, sequence: int) -> bytes:
    return request[:_SEQUENCE_AT] + sequence.to_bytes(4, sys.byteorder) + request[_SEQUENCE_AT + 4 :]


def _read(sock: socket.socket) -> bytes:
    data, _, flags, _ = sock.recvmsg(BUFFER, 0, socket.MSG_DONTWAIT)
    if flags & socket.MSG_TRUNC or not data:
        raise OSError(errno.EMSGSIZE, "a truncated answer")
    return data


def _messages(data: bytes, sequence: int) -> Iterator[tuple[int, int]]:
    """Where each answer to the question `sequence` begins, and its type."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, _, number, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            raise OSError(errno.EBADMSG, "an answer of an impossible length")
        if number == sequence:
            yield offset, kind
        offset += (length + 3) & ~3


def _decoded(kind: type[nlmsg], data: bytes, offset: int) -> Any:
    message = kind(data, offset=offset)
    try:
        message.decode()
    except (struct.error, NetlinkDecodeError) as error:
        raise OSError(errno.EBADMSG, "an answer that cannot be decoded") from error
    return message


def _error(data: bytes, offset: int) -> int:
    """The error number of an NLMSG_ERROR, or of the NLMSG_DONE that ends a dump; 0 for none."""
    return abs(int(_decoded(Ending, data, offset)["error"]))
