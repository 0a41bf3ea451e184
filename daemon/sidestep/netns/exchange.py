"""Sends netlink requests and reads the answers (netlink(7)): a dump gives many answers, a command one acknowledgement.

The socket is one that `Netns.netlink` made inside the namespace: whichever thread asks, the answers are about that
namespace. The kernel produces the answers to a dump while they are read, so no read waits: a socket without data is an
error. The pod decides how much there is to list; `MAX_ANSWERS` bounds it. A dump that is not read to its end
closes the socket, so that no later question gets the rest of its answers.

A change while a dump is read may hide an answer, and the kernel then marks what follows with NLM_F_DUMP_INTR (it does
for addresses, and not for sockets). Such a dump is repeated, `ATTEMPTS` times in all; its answers are yielded as well,
so that one may come twice, and none is lost that any attempt has found.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sidestep.model.errors import KernelError
from sidestep.netns.messages import NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Ending, NetlinkDecodeError, nlmsg
from sidestep.netns.namespace import Netns

MAX_ANSWERS: Final = 12_288
"""Answers to one dump, all attempts together; more are an error (E2BIG).

An address takes 64 microseconds, a connection 32 and a listener 28. The caller's event loop stands still meanwhile: for
less than a second, also where two dumps, one per family, make a question about sockets.
"""
ATTEMPTS: Final = 3
"""Dumps made for one question while changes interrupt them."""

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
    """Ask and yield every answer, decoded as `answer`; one may come twice. Raises KernelError (E2BIG: too many)."""
    answers = 0
    error_number = 0
    try:
        for _ in range(ATTEMPTS):
            sock, sequence = netns.netlink(protocol), next(_sequence) & 0xFFFFFFFF
            sock.send(_numbered(request, sequence), socket.MSG_DONTWAIT)
            ending = _Ending()
            for data, offset in _answers(sock, sequence, ending):
                answers += 1
                if answers > MAX_ANSWERS:
                    raise OSError(errno.E2BIG, "too many answers")
                yield _decoded(answer, data, offset)
            error_number = ending.error_number
            if error_number or not ending.interrupted:
                break
    except OSError as error:
        netns.forget(protocol)
        hint = f"there are more than {MAX_ANSWERS}" if error.errno == errno.E2BIG else ""
        raise KernelError("netlink", error.errno or 0, doing=doing, hint=hint) from error
    except BaseException:  # the caller reads no further
        netns.forget(protocol)
        raise
    if error_number:
        raise KernelError("netlink", error_number, doing=doing)


@dataclass(slots=True)
class _Ending:
    """How a dump ended: its error number, 0 for none, and whether changes interrupted it."""

    error_number: int = 0
    interrupted: bool = False


def _answers(sock: socket.socket, sequence: int, ending: _Ending) -> Iterator[tuple[bytes, int]]:
    """The answers of one dump: datagrams, and where each answer begins. Fills `ending`."""
    while True:
        data = _read(sock)
        for offset, number, flags in _messages(data, sequence):
            ending.interrupted |= bool(flags & NLM_F_DUMP_INTR)
            if number in _ENDS:
                ending.error_number = _error(data, offset)
                return
            yield data, offset


def command(netns: Netns, protocol: int, request: bytes, *, doing: str) -> None:
    """Ask for something to be done and read the acknowledgement. Raises KernelError with the kernel's answer."""
    sock, sequence = netns.netlink(protocol), next(_sequence) & 0xFFFFFFFF
    try:
        sock.send(_numbered(request, sequence), socket.MSG_DONTWAIT)
        data = _read(sock)
        errors = [_error(data, offset) for offset, number, _ in _messages(data, sequence) if number == NLMSG_ERROR]
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


def _messages(data: bytes, sequence: int) -> Iterator[tuple[int, int, int]]:
    """Where each answer to the question `sequence` begins, its type and flags."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, number, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size or offset + length > len(data):
            raise OSError(errno.EBADMSG, "an answer of an impossible length")
        if number == sequence:
            yield offset, kind, flags
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
