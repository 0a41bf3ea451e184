"""Admission to the health port: one gate for the node itself, with the kubelet, and one for all others.

A gate owns a listener and the connections accepted from it. Every number is bounded; a connection beyond a bound costs
an accept and a close:

    accepts       `accept_rate` a second, in batches, which keeps turns of the event loop short; other connections wait
                  in the kernel's queue, which is bounded as well, or are dropped there
    served        `serve_rate` a second in total and `source_rate` per source; further connections are reset at once
    open          `connections`; beyond that the oldest is closed

Gates share nothing: no connection of the node is closed because of others. (The oldest connection of the node is closed
only when the node itself has that many open, on which nothing was requested.)
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import msgspec

from sidestep.aio.token_bucket import TokenBucket, TokenBuckets

BATCH = 16
"""Connections accepted in one turn of the event loop."""
SOURCES = 1024
"""Sources that are counted separately."""
BREATH = 0.5
"""Seconds without accepting after the kernel refused to (no descriptors)."""
MAX_HEAD = 8192
"""Bytes of a request head."""
TIMEOUT = 5.0
"""Seconds for a request and its answer."""

_RESET = struct.pack("ii", 1, 0)


class GateLimits(msgspec.Struct, frozen=True):
    """Limits of one gate; rates are per second."""

    accept_rate: float
    serve_rate: float
    source_rate: float
    connections: int
    backlog: int
    """Connections that wait in the kernel."""


NODE = GateLimits(accept_rate=1000, serve_rate=300, source_rate=300, connections=128, backlog=256)
"""The kubelet probes once in two seconds. All processes in the node's network have the same addresses."""
OTHERS = GateLimits(accept_rate=400, serve_rate=50, source_rate=10, connections=32, backlog=64)
"""Prometheus scrapes about every 15 s."""

Answer = Callable[[str], bytes]
"""Returns the complete answer to a GET of this target."""


class HealthGate:
    """Serves the connections of a listener from `open` to `close`. Owns the listener."""

    def __init__(self, listener: socket.socket, limits: GateLimits, *, answer: Answer) -> None:
        self._listener = listener
        self._limits = limits
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._accepts = TokenBucket(rate=limits.accept_rate, burst=limits.accept_rate / 10, now=now)
        self._served = TokenBucket(rate=limits.serve_rate, burst=2 * limits.serve_rate, now=now)
        self._sources = TokenBuckets(rate=limits.source_rate, burst=4 * limits.source_rate, size=SOURCES)
        self._connections: dict[_HealthConnection, None] = {}
        """Open connections, oldest first."""
        self._resuming: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Start accepting."""
        self._resuming = None
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Stop accepting and close all connections."""
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
    """One connection: reads a request head, writes an answer, closes. Uses callbacks, which are cheaper than a task."""

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
        """Read the available bytes, and wait for the rest."""
        self._loop.add_reader(self._sock, self._read)
        self._read()

    def close(self) -> None:
        """Close the connection; unless the answer is complete the peer sees a reset."""
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
    """Close with a reset, which leaves no TIME_WAIT entry in the kernel."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # the peer has closed first
    sock.close()
