"""Netlink requests (netlink(7)): a dump gives a bounded list of answers, a command an acknowledgement.

No library is used, because one costs every daemon 24 MiB and only sockets and addresses are listed here. The kernel
produces the answers to a dump while they are read, so reading never waits, and a socket without data is an error. The
pod decides how much there is to list; `MAX_ANSWERS` bounds it.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
from collections.abc import Iterator
from typing import Final

from sidestep.model.errors import KernelError

MAX_ANSWERS: Final = 262_144
"""Answers to one dump; a pod may listen on every port with several addresses, but not without end."""

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_ERROR: Final = struct.Struct("=i")
_REQUEST_DUMP: Final = 0x001 | 0x300
_REQUEST_ACK: Final = 0x001 | 0x004
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_TYPE_MASK: Final = 0x3FFF
_BUFFER: Final = 65536

_sequence = itertools.count(1)


def dump(sock: socket.socket, message_type: int, payload: bytes, *, doing: str) -> Iterator[bytes]:
    """Ask and yield the payload of every answer. Raises KernelError; the socket must then not be used again."""
    sequence = next(_sequence) & 0xFFFFFFFF
    header = _HEADER.pack(_HEADER.size + len(payload), message_type, _REQUEST_DUMP, sequence, 0)
    answers = 0
    try:
        sock.send(header + payload)
        while True:
            data, _, flags, _ = sock.recvmsg(_BUFFER, 0, socket.MSG_DONTWAIT)
            if flags & socket.MSG_TRUNC or not data:
                raise KernelError("netlink", errno.EMSGSIZE, doing=doing)
            for kind, number, body in _messages(data):
                if number != sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise KernelError("netlink", -_ERROR.unpack_from(body)[0], doing=doing)
                answers += 1
                if answers > MAX_ANSWERS:
                    raise KernelError("netlink", errno.E2BIG, doing=doing)
                yield body
    except OSError as error:
        raise KernelError("netlink", error.errno or 0, doing=doing) from error


def command(sock: socket.socket, message_type: int, payload: bytes, *, doing: str) -> None:
    """Ask for something to be done and wait for the acknowledgement. Raises KernelError with the kernel's answer."""
    sequence = next(_sequence) & 0xFFFFFFFF
    header = _HEADER.pack(_HEADER.size + len(payload), message_type, _REQUEST_ACK, sequence, 0)
    try:
        sock.send(header + payload)
        data, _, flags, _ = sock.recvmsg(_BUFFER, 0, socket.MSG_DONTWAIT)
    except OSError as error:
        raise KernelError("netlink", error.errno or 0, doing=doing) from error
    if flags & socket.MSG_TRUNC:
        raise KernelError("netlink", errno.EMSGSIZE, doing=doing)
    for kind, number, body in _messages(data):
        if number == sequence and kind == _NLMSG_ERROR:
            code = -_ERROR.unpack_from(body)[0]
            if code:
                raise KernelError("netlink", code, doing=doing)
            return
    raise KernelError("netlink", errno.EBADMSG, doing=doing)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """The attributes that follow the fixed part of a payload, which ends at `offset`."""
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found
