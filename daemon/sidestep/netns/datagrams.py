"""UDP sockets inside a pod's namespace: for steered datagrams, for answers, and for copies.

`udp_listener` is bound to loopback like a TCP listener and reports where a datagram was sent to (IPV6_PKTINFO, also for
IPv4, as a mapped address). It cannot answer from the app's own address and port, which the app holds. `udp_sender` can:
a raw socket that sends whole UDP packets (raw(7)). A raw socket also receives a copy of every UDP packet; `udp_tap`
uses that to copy one port's datagrams, which still reach the app.

Raw sockets are given to an unprivileged proxy, so this module fixes what they receive: a filter that drops everything
(for a sender) or everything but one port (for a tap), locked with SO_LOCK_FILTER (socket(7)).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from typing import Final

from sidestep.model.errors import KernelError
from sidestep.model.pod import Family
from sidestep.netns.namespace import Netns

RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Bytes asked for; the kernel limits it to net.core.rmem_max."""

_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})
_IP_PKTINFO: Final = 8
_SO_ATTACH_FILTER: Final = 26
_SO_LOCK_FILTER: Final = 44
_IPV6_CHECKSUM: Final = 7
_CHECKSUM_OFFSET: Final = 6
_INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
_LOAD_HALF_ABSOLUTE, _LOAD_HALF_INDEXED, _LOAD_HEADER_LENGTH = 0x28, 0x48, 0xB1
_JUMP_EQUAL, _RETURN = 0x15, 0x06
_ALL: Final = 0xFFFF_FFFF
_MAX_QUEUED: Final = 65536
"""Packets that a receive buffer cannot hold more of."""


def udp_listener(netns: Netns) -> socket.socket:
    """A socket for steered datagrams of one port, both families if the pod has both. Raises KernelError."""
    return netns.run(_listener)


def udp_sender(netns: Netns, family: Family) -> socket.socket | None:
    """A raw socket that only sends UDP packets; None where the namespace has no such family. Raises KernelError."""
    return netns.run(lambda: _raw(family, _program((_RETURN, 0, 0, 0))))


def udp_tap(netns: Netns, family: Family, port: int) -> socket.socket | None:
    """A raw socket that receives copies of the datagrams to `port`, and nothing else. Raises KernelError."""
    look: tuple[tuple[int, int, int, int], ...]
    if family is Family.IPV4:
        look = ((_LOAD_HEADER_LENGTH, 0, 0, 0), (_LOAD_HALF_INDEXED, 0, 0, 2))
    else:
        look = ((_LOAD_HALF_ABSOLUTE, 0, 0, 2),)  # an IPv6 raw socket sees the UDP header first
    program = _program(*look, (_JUMP_EQUAL, 0, 1, port), (_RETURN, 0, 0, _ALL), (_RETURN, 0, 0, 0))
    return netns.run(lambda: _raw(family, program, tap=True))


def is_bound(sock: socket.socket) -> bool:
    """Whether datagrams can still reach a socket made by `udp_listener`.

    Whoever has CAP_NET_ADMIN in the pod can end it (SOCK_DESTROY, `ss -K`): it loses its port and receives nothing any
    more. (Raw sockets stay as they are.)
    """
    try:
        return bool(sock.getsockname()[1])
    except OSError:
        return False


def _listener() -> socket.socket:
    try:
        return _bound(socket.AF_INET6, "::ffff:127.0.0.1")
    except KernelError as error:
        if error.errno not in _NO_IPV6:
            raise
    return _bound(socket.AF_INET, "127.0.0.1")


def _bound(family: socket.AddressFamily, address: str) -> socket.socket:
    call = "socket"
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            call = "setsockopt"
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            call = "bind"
            sock.bind((address, 0))
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise KernelError(call, error.errno or 0, doing=f"creating a UDP socket on {address}") from error
    return sock


def _program(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(_INSTRUCTION.pack(*each) for each in instructions)


def _raw(family: Family, program: bytes, *, tap: bool = False) -> socket.socket | None:
    call = "socket"
    try:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        sock = socket.socket(socket.AddressFamily(family), kind, socket.IPPROTO_UDP)
        try:
            call = "setsockopt"
            _attach(sock, program)
            sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
            _drop_queued(sock)
            if family is Family.IPV6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _CHECKSUM_OFFSET)
            if tap:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                if family is Family.IPV6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        if family is Family.IPV6 and error.errno in _NO_IPV6:
            return None
        raise KernelError(call, error.errno or 0, doing="creating a raw UDP socket") from error
    return sock


def _drop_queued(sock: socket.socket) -> None:
    """Drop what arrived before the filter did."""
    for _ in range(_MAX_QUEUED):
        try:
            sock.recv(1, socket.MSG_TRUNC)
        except BlockingIOError:
            return


def _attach(sock: socket.socket, program: bytes) -> None:
    """SO_ATTACH_FILTER with a struct sock_fprog."""
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
