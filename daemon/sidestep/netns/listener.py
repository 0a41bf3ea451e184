"""The listening sockets that receive steered connections: making them, their state and queues, resetting the queue.

One dual-stack socket bound to `::ffff:127.0.0.1`: sk_lookup hands it connections of both families to any address of
the pod, while by itself it is reachable from inside the pod only, over IPv4 loopback. (`::` would be reachable from
outside, `::1` would refuse IPv4.) Without IPv6 in the kernel it is an IPv4 socket on 127.0.0.1. The kernel chooses the
port. SO_REUSEPORT is not set, so no process of the pod can bind to the same port and share its connections.

A listener can stop listening while its descriptors stay open: a process with CAP_NET_ADMIN in the pod can end it
(SOCK_DESTROY, `ss -K`), and a process with a duplicate can shut it down. It cannot listen again. The socket map still
holds it, and the kernel then drops connections that are steered to it without an answer.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

import msgspec

from sidestep.model.errors import KernelError
from sidestep.netns.namespace import Netns

_TCP_INFO: Final = struct.Struct("=B7x16xII")  # struct tcp_info: tcpi_state, tcpi_unacked, tcpi_sacked
_TCP_LISTEN: Final = 10
_SO_COOKIE: Final = 57
_COOKIE: Final = struct.Struct("=Q")
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: close() sends a reset
_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EADDRNOTAVAIL})


def tcp_listener(netns: Netns, *, backlog: int) -> socket.socket:
    """A non-blocking, close-on-exec listener inside `netns`, for both families where the kernel has IPv6.

    `backlog` is connections, limited by the namespace's net.core.somaxconn. Raises KernelError.
    """
    return netns.run(lambda: _listen(backlog))


def _listen(backlog: int) -> socket.socket:
    try:
        return _bound(socket.AF_INET6, "::ffff:127.0.0.1", backlog)
    except KernelError as error:
        if error.errno not in _NO_IPV6:
            raise
    return _bound(socket.AF_INET, "127.0.0.1", backlog)


def _bound(family: socket.AddressFamily, address: str, backlog: int) -> socket.socket:
    call = "socket"
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if family == socket.AF_INET6:
                call = "setsockopt"
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            call = "setsockopt"
            # Accepted connections have the app's address and port and inherit this: without it an app that restarts
            # meanwhile could not bind its own port (EADDRINUSE, socket(7)).
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            call = "bind"
            listener.bind((address, 0))
            call = "listen"
            listener.listen(backlog)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise KernelError(call, error.errno or 0, doing=f"creating a listener on {address}") from error
    return listener


class Queue(msgspec.Struct, frozen=True):
    """A listener's accept queue: its length, and its limit (the backlog, which the kernel may lower)."""

    length: int
    limit: int


def accept_queue(listener: socket.socket) -> Queue | None:
    """The queue of a listener; None when it does not listen any more. Raises KernelError.

    TCP_INFO (tcp(7)) tells of a listening socket: tcpi_unacked is the length, tcpi_sacked the limit.
    """
    try:
        data = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError as error:
        raise KernelError("getsockopt", error.errno or 0, doing="asking for the accept queue") from error
    state, length, limit = _TCP_INFO.unpack(data)
    return Queue(int(length), int(limit)) if state == _TCP_LISTEN else None


def queue_length(listener: socket.socket) -> int:
    """Connections that wait to be accepted; 0 when it does not listen any more. Raises KernelError."""
    queue = accept_queue(listener)
    return queue.length if queue is not None else 0


def reset_waiting(listener: socket.socket, *, most: int) -> int:
    """Accept at most so many of the connections that wait and reset them; returns how many. Never waits or raises.

    Their clients get a reset at once and can connect again.
    """
    for count in range(most):
        try:
            waiting, _ = listener.accept()
        except OSError:
            return count
        with waiting:
            try:
                waiting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except OSError:
                pass  # an end without a reset is an end, too
    return most


def cookie(sock: socket.socket) -> int:
    """The kernel's number of a socket, never used twice (SO_COOKIE, socket(7)). Raises KernelError."""
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, _COOKIE.size)
    except OSError as error:
        raise KernelError("getsockopt", error.errno or 0, doing="asking for a socket's cookie") from error
    return int(_COOKIE.unpack(data)[0])
