"""The listening sockets that steered connections arrive at, and how full their queues are.

One dual-stack socket bound to `::ffff:127.0.0.1`: sk_lookup hands it connections of both families to any address of
the pod, while by itself it is reachable from inside the pod only, over IPv4 loopback. (`::` would be reachable from
outside, `::1` would refuse IPv4.) Without IPv6 in the kernel it is an IPv4 socket on 127.0.0.1. The port is the
kernel's choice and means nothing; no SO_REUSEPORT, so that nobody in the pod can join it.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from sidestep.model.errors import KernelError
from sidestep.netns.namespace import Netns

_TCP_INFO: Final = struct.Struct("=8xIIIIII")  # struct tcp_info up to tcpi_sacked
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


def queue_length(listener: socket.socket) -> int:
    """Connections that wait to be accepted (tcp(7), TCP_INFO: tcpi_unacked of a listening socket)."""
    return _queue(listener)[0]


def queue_limit(listener: socket.socket) -> int:
    """Connections that the queue takes: the backlog after the kernel limited it (tcpi_sacked)."""
    return _queue(listener)[1]


def _queue(listener: socket.socket) -> tuple[int, int]:
    try:
        data = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError as error:
        raise KernelError("getsockopt", error.errno or 0, doing="asking for the accept queue") from error
    *_, length, limit = _TCP_INFO.unpack(data)
    return int(length), int(limit)
