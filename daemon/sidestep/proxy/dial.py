"""Dialling the app: the address the client used, from that same address.

sk_lookup sees the proxy's own dial too. The program lets it pass when the source is loopback or equals the destination,
so the socket is bound to the destination address before it connects - never to a loopback address, which apps trust.
IP_BIND_ADDRESS_NO_PORT leaves the choice of the port to connect(), where only the four-tuple must be unique (ip(7)).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final

from sidestep.proxy.loop import BROKEN, WRITE, Loop

IP_BIND_ADDRESS_NO_PORT: Final = 24
MAPPED: Final = "::ffff:"


def plain_address(host: str) -> str:
    """An IPv4-mapped IPv6 address as IPv4; any other as it is, without a zone."""
    if host.startswith(MAPPED) and "." in host:
        return host[len(MAPPED) :]
    return host


class Dial:
    """One connection attempt. Calls `done(sock, None)` or `done(None, error)` once, unless cancelled before."""

    __slots__ = ("_done", "_loop", "_sock")

    def __init__(
        self, loop: Loop, host: str, port: int, done: Callable[[socket.socket | None, OSError | None], None]
    ) -> None:
        """Begin. `host` is the (unmapped) address the client used. An error at once is reported on the next turn."""
        self._loop = loop
        self._done = done
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((host, 0))
            result = sock.connect_ex((host, port))
        except OSError as error:
            self._fail(error)
            return
        if result in (0, errno.EINPROGRESS):
            loop.add(sock.fileno(), self._ready, WRITE)
        else:
            self._fail(OSError(result, "connect"))

    def _fail(self, error: OSError) -> None:
        sock = self._sock

        def report() -> None:
            sock.close()
            self._done(None, error)

        self._loop.later(0.0, report)

    def _ready(self, mask: int) -> None:
        sock = self._sock
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and not mask & (WRITE | BROKEN):
            return
        self._loop.remove(sock.fileno())
        if code:
            sock.close()
            self._done(None, OSError(code, "connect"))
        else:
            self._done(sock, None)

    def cancel(self) -> None:
        """Give up; `done` is not called any more."""
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        self._done = _ignore


def _ignore(sock: socket.socket | None, error: OSError | None) -> None:
    del error
    if sock is not None:
        sock.close()
