"""Datagrams between the daemon's socket, where each is a capsule (`protocols.capsules`), and a connected UDP socket.

Datagrams that find no room in either direction are dropped, as a network would. An ICMP error is no end: the server may
answer the next datagram. The flow ends with the daemon's socket, or after IDLE seconds without a datagram in either
direction; both are closed then.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from sidestep.model.errors import PeerError
from sidestep.protocols import capsules
from sidestep.proxy.io.loop import READ, WRITE, Loop
from sidestep.proxy.io.stream import PlainStream

IDLE: Final = 120.0
"""Seconds; RFC 4787 section 4.3 asks two minutes of a NAT."""
HELD: Final = 256 * 1024
"""Bytes of capsules that may wait for the daemon."""
BATCH: Final = 32
"""Datagrams that are taken at once, before other connections have a turn."""


class DatagramRelay:
    """One flow. `stream` is watched by the loop already. Calls `done()` once it is over."""

    def __init__(self, loop: Loop, stream: PlainStream, sock: socket.socket, *, done: Callable[[], None]) -> None:
        self._loop = loop
        self._stream = stream
        self._sock = sock
        self._done = done
        self._decoder = capsules.Decoder()
        self._out = b""
        self._seen = loop.now
        self._open = True
        loop.add(sock.fileno(), self._answered, READ)
        loop.rebind(stream.fd, self._ready, READ)
        self._timer = loop.later(IDLE, self._look)

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if not (self._open and mask & ~WRITE):
            return
        try:
            data = self._stream.read()
            payloads = self._decoder.feed(data) if data else []
        except (OSError, PeerError):
            self.abandon()
            return
        if data == b"":
            self.abandon()
            return
        for payload in payloads:
            self._seen = self._loop.now
            try:
                self._sock.send(payload)
            except OSError:
                pass  # no room, too long for the network, or an earlier one met no listener

    def _answered(self, mask: int) -> None:
        del mask
        for _ in range(BATCH):
            try:
                payload = self._sock.recv(capsules.MAX_PAYLOAD)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error, which the call has taken
            self._seen = self._loop.now
            if len(self._out) < HELD:
                self._out += capsules.encode(payload)
        self._flush()

    def _flush(self) -> None:
        try:
            if self._out:
                self._out = self._out[self._stream.write(self._out) :]
        except OSError:
            self.abandon()
            return
        self._loop.modify(self._stream.fd, READ | (WRITE if self._out else 0))

    def slow(self) -> None:
        """Take fewer datagrams at a time: a read has as many as 20,000 empty ones, and others wait for their turn."""
        self._stream.shrink()

    def _look(self) -> None:
        idle = self._loop.now - self._seen
        if idle >= IDLE:
            self.abandon()
        elif self._open:
            self._timer = self._loop.later(IDLE - idle, self._look)

    def abandon(self) -> None:
        """Close both."""
        if not self._open:
            return
        self._open = False
        self._timer.cancel()
        for fd in (self._sock.fileno(), self._stream.fd):
            self._loop.remove(fd)
        self._sock.close()
        self._stream.close()
        self._done()
