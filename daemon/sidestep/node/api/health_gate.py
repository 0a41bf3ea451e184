"""Who gets in at the health port: one gate for the node itself, where the kubelet is, and one for everybody else.

A gate owns a listener and the connections that came through it. Every number is bounded, and what is beyond a bound
costs an accept and a close:

    accepts       `accept_rate` a second, in batches, so that no turn of the event loop is long; what comes faster waits
                  in the kernel's queue, which is bounded too, or is dropped there
    served        `serve_rate` a second in all and `source_rate` for each source; more are reset at once
    open          `connections`; when there are more, the oldest goes

Connections never cross gates: whatever strangers do, none of the node's is closed for them. (The oldest of the node's
own goes only when the node itself has that many open, which are then connections on which nothing was asked.)
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from sidestep.aio.allowance import Allowance, Allowances

BATCH = 16
"""Connections accepted in one turn of the event loop."""
SOURCES = 1024
"""Sources that are told apart."""
BREATH = 0.5
"""Seconds without accepting after the kernel refused to (no descriptors)."""
MAX_HEAD = 8192
"""Bytes of a request's head."""
TIMEOUT = 5.0
"""Seconds for a request and its answer."""

_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class GateLimits:
    """The numbers of one gate; rates are a second."""

    accept_rate: float
    serve_rate: float
    source_rate: float
    connections: int
    backlog: int
    """Connections that wait in the kernel."""


NODE = GateLimits(accept_rate=1000, serve_rate=300, source_rate=300, connections=128, backlog=256)
"""The kubelet asks once in two seconds; every process in the node's network comes from the same addresses."""
OTHERS = GateLimits(accept_rate=400, serve_rate=50, source_rate=10, connections=32, backlog=64)
"""Prometheus asks once in 15 seconds."""

Answer = Callable[[str], bytes]
"""The whole answer to a GET of this target."""


class HealthGate:
    """Serves a listener from `open` to `close`. The listener is the gate's."""

    def __init__(self, listener: socket.socket, limits: GateLimits, *, answer: Answer) -> None:
        self._listener = listener
        self._limits = limits
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._accepts = Allowance(rate=limits.accept_rate, burst=limits.accept_rate / 10, now=now)
        self._served = Allowance(rate=limits.serve_rate, burst=2 * limits.serve_rate, now=now)
        self._sources = Allowances(rate=limits.source_rate, burst=4 * limits.source_rate, size=SOURCES)
        self._connections: dict[_HealthConnection, None] = {}
        """Oldest first."""
        self._resuming: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Start accepting."""
        self._resuming = None
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop accepting and close all open connections."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for visitor in tuple(self._connections):
            visitor.close()

    def _accept(self) -> None:
        for _ in range(BATCH):
            now = self._loop.time()
            if not self._accepts.take(now):
                self._pause(self._accepts.wait() + BATCH / self._limits.accept_rate)
                return
            try:
                sock, source = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._pause(BREATH)
                return
            if self._sources.take(source[0], now) and self._served.take(now):
                self._serve(sock)
            else:
                _reset(sock)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(seconds, self.open)

    def _serve(self, sock: socket.socket) -> None:
        if len(self._connections) >= self._limits.connections:
            next(iter(self._connections)).close()
        visitor = _HealthConnection(sock, self._answer, self._gone)
        self._connections[visitor] = None
        visitor.begin()

    def _gone(self, visitor: _HealthConnection) -> None:
        self._connections.pop(visitor, None)


class _HealthConnection:
    """One connection: reads a request head, writes an answer, closes. Uses callbacks, which cost less than a task."""

    __slots__ = ("_answer", "_deadline", "_head", "_loop", "_on_end", "_rest", "_sock")

    def __init__(self, sock: socket.socket, answer: Answer, on_end: Callable[[_HealthConnection], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._answer = answer
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._rest = memoryview(b"")
        self._deadline = self._loop.call_later(TIMEOUT, self.close)

    def begin(self) -> None:
        """Read what is there, and wait for what is not."""
        self._loop.add_reader(self._sock, self._read)
        self._read()

    def close(self) -> None:
        """End it; with an answer in flight or none, the peer sees a reset."""
        if self._sock.fileno() < 0:
            return
        self._deadline.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._rest or not self._head:
            _reset(self._sock)
        else:
            self._sock.close()
        self._on_end(self)

    def _read(self) -> None:
        try:
            data = self._sock.recv(MAX_HEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._head += data
        if not data or len(self._head) > MAX_HEAD:
            self.close()
        elif b"\r\n\r\n" in self._head:
            self._loop.remove_reader(self._sock)
            target = [*self._head.split(b" ", 2), b"", b""][1].partition(b"?")[0]
            self._rest = memoryview(self._answer(target.decode("latin-1")))
            self._write()

    def _write(self) -> None:
        try:
            self._rest = self._rest[self._sock.send(self._rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._rest:
            self._loop.add_writer(self._sock, self._write)
        else:
            self.close()


def _reset(sock: socket.socket) -> None:
    """Close with a reset, so that the kernel keeps no TIME_WAIT entry."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # the peer was first
    sock.close()
