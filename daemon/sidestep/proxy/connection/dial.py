"""One connection attempt to the app, at the address that the client used.

The lookup program sees the proxy's own dial, too; it lets a dial pass whose source is loopback or equals the
destination.

Without `naming` the socket is bound to the destination address before it connects, never to a loopback address, which
apps trust. IP_BIND_ADDRESS_NO_PORT leaves the choice of the port to connect(2), where only the four-tuple must be
unique (ip(7)).

With `naming` the app sees the client's address for this connection, so the source must be known before it connects:
bind, have it named, connect. IPv4 sources are random addresses of a loopback network, because the ports of a single one
run out at a few hundred connections a second; the app sees none of them, named or not (see `steering.client_names`).
IPv6 has one loopback address, so there the pod's own address serves. A dial that cannot be named goes on without.

A dial has no deadline of its own. Its owner cancels it (`app_dials`, `protocol_probe`).
"""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Final

import msgspec

from sidestep.proxy.io.loop import BROKEN, WRITE, Loop

IP_BIND_ADDRESS_NO_PORT: Final = 24
MAPPED: Final = "::ffff:"
ESTABLISHED: Final = 1
"""tcpi_state of a connection that is open on both sides."""
RETRANSMITTED: Final = 2
"""Retransmissions after which a connection inside one pod counts as cut off: 0.6 s, at a timeout of 0.2 s, doubling."""

Done = Callable[[socket.socket | None, OSError | None], None]
Namer = Callable[[str, int, Callable[[bool], None]], Callable[[], None]]
"""(source address, source port, ready) -> cancel: calls `ready(True)` once the connection from there is named."""


class Naming(msgspec.Struct, frozen=True):
    """How connections are named, and the network from which they come over IPv4."""

    namer: Namer
    sources: IPv4Network


def plain_address(host: str) -> str:
    """Return an IPv4-mapped IPv6 address as IPv4, and any other as it is."""
    if host.startswith(MAPPED) and "." in host:
        return host[len(MAPPED) :]
    return host


def random_source(sources: IPv4Network) -> str:
    """Return one of the addresses, neither the first nor the last."""
    return str(sources[random.randrange(1, sources.num_addresses - 1)])  # noqa: S311 - no secret


def is_unacknowledged(sock: socket.socket) -> bool:
    """Whether the kernel has retransmitted on a TCP connection, RETRANSMITTED times or more, without an answer.

    A peer that is slow, or whose process is stopped, acknowledges all the same; a window of 0 is probed instead.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
    except OSError:
        return False
    # the first byte is tcpi_state, the third tcpi_retransmits; see tcp(7)
    return len(info) == 8 and info[0] == ESTABLISHED and info[2] >= RETRANSMITTED


class Dial:
    """One connection attempt. Calls `done(sock, None)` or `done(None, error)` once, unless cancelled before."""

    __slots__ = ("_cancel_naming", "_done", "_host", "_loop", "_port", "_sock", "since")

    def __init__(self, loop: Loop, host: str, port: int, done: Done, *, naming: Naming | None = None) -> None:
        """Begin. `host` is the (unmapped) address that the client used. `done` is called on a later turn."""
        self._loop = loop
        self._done = done
        self._host = host
        self._port = port
        self._cancel_naming: Callable[[], None] | None = None
        self._sock: socket.socket | None = None
        self.since: float | None = None
        """When it began to connect (seconds on the loop's clock); None before."""
        if naming is None or not self._begin_named(naming):
            self._begin_unnamed()

    def _new_socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _begin_named(self, naming: Naming) -> bool:
        sock = None
        try:
            sock = self._new_socket()
            sock.bind((self._host if ":" in self._host else random_source(naming.sources), 0))
            source = sock.getsockname()
        except OSError:
            if sock is not None:
                sock.close()
            return False
        self._cancel_naming = naming.namer(source[0], source[1], self._named)
        return True

    def _named(self, ready: bool) -> None:
        self._cancel_naming = None
        if ready:
            self._connect()
        else:
            if self._sock is not None:
                self._sock.close()
            self._begin_unnamed()

    def _begin_unnamed(self) -> None:
        try:
            sock = self._new_socket()
            sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((self._host, 0))
        except OSError as error:
            self._fail(error)
        else:
            self._connect()

    def _connect(self) -> None:
        sock = self._sock
        if sock is None:
            return
        self.since = self._loop.now
        try:
            result = sock.connect_ex((self._host, self._port))
        except OSError as error:
            self._fail(error)
            return
        if result in (0, errno.EINPROGRESS):
            self._loop.add(sock.fileno(), self._ready, WRITE)
        else:
            self._fail(OSError(result, "connect"))

    def _fail(self, error: OSError) -> None:
        sock, self._sock = self._sock, None

        def report() -> None:
            if sock is not None:
                sock.close()
            self._done(None, error)

        self._loop.later(0.0, report)

    def _ready(self, mask: int) -> None:
        sock = self._sock
        if sock is None:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and not mask & (WRITE | BROKEN):
            return
        self._sock = None
        self._loop.remove(sock.fileno())
        if code:
            sock.close()
            self._done(None, OSError(code, "connect"))
        else:
            self._done(sock, None)

    def cancel(self) -> None:
        """Give up. `done` is not called afterwards."""
        if self._cancel_naming is not None:
            self._cancel_naming()
            self._cancel_naming = None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove(sock.fileno())
            sock.close()
        self._done = _ignore


def _ignore(sock: socket.socket | None, error: OSError | None) -> None:
    del error
    if sock is not None:
        sock.close()
