"""One connection as its pod's IDS gets it: the decrypted bytes of both sides as TCP packets, from the first byte on.

States

    open     what both sides say goes to the pipe, as packets with the right numbers
    over     the connection has ended, or the rest of it is not fed

Invariants

  * A connection is fed from its first byte on, or not at all: an IDS that has missed the beginning reads nothing of
    HTTP/2, and little of HTTP/1.
  * When packets find no room the connection is over for the IDS, which is told a reset. That is counted (`ids_cut`),
    and so is a connection that is not fed at all (`ids_unfed`).
  * A client waits until a packet is queued, not until it is written (`proxy.mirror.ids_feeds`), and writing never
    blocks.

Hot path: packets are made at once, because that takes less (1 µs) than to queue an event and to consume it later.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Protocol

from sidestep.protocols.tcp_synthesis import Conversation, Endpoint

SEGMENT: Final = 16 * 1024
"""Bytes of data in one packet: those of a TLS record."""


class PacketPipe(Protocol):
    """Where packets go."""

    def write(self, head: bytes, data: bytes | memoryview = b"", *, ends: bool = False) -> bool:
        """Queue a packet in two parts; False: there is no room. `ends`: it ends a connection, and finds room where
        others do not."""

    def enter(self, feed: object) -> None:
        """A connection is fed from now on."""

    def leave(self, feed: object) -> None:
        """A connection is fed no longer."""


def feed_ids(pipe: PacketPipe, client: Endpoint, server: Endpoint, counts: Counter[str]) -> IdsFeed | None:
    """Have a connection fed to the IDS, before its first byte; None where there is no room. `counts` are the port's."""
    feed = IdsFeed(pipe, client, server, counts)
    return feed if feed.is_open else None


class IdsFeed:
    """A `mirror.sink.ByteObserver`; see the module."""

    __slots__ = ("_conversation", "_counts", "_finished", "_pipe", "is_open")

    def __init__(self, pipe: PacketPipe, client: Endpoint, server: Endpoint, counts: Counter[str]) -> None:
        self._pipe = pipe
        self._counts = counts
        self._conversation = Conversation(client, server, segment_size=SEGMENT, acknowledges=False)
        self._finished: set[bool] = set()
        """Sides that have finished, by whether it is the client."""
        self.is_open = all(map(pipe.write, self._conversation.opening()))
        if self.is_open:
            pipe.enter(self)
        counts["ids_fed" if self.is_open else "ids_unfed"] += 1

    def said(self, data: bytes, *, from_client: bool) -> None:
        """One side has said something."""
        if not self.is_open or from_client in self._finished:
            return
        length = len(data)
        if length <= SEGMENT:
            if not self._pipe.write(self._conversation.headers(length, from_client=from_client), data):
                self._cut()
            return
        view = memoryview(data)
        for at in range(0, length, SEGMENT):
            part = view[at : at + SEGMENT]
            if not self._pipe.write(self._conversation.headers(len(part), from_client=from_client), part):
                self._cut()
                return

    def finished(self, *, from_client: bool) -> None:
        """One side has finished."""
        if self.is_open and from_client not in self._finished:
            self._finished.add(from_client)
            self._end(self._conversation.finish(from_client=from_client))

    def over(self) -> None:
        """The connection is over: a reset, unless both sides have finished."""
        if self.is_open:
            self.is_open = False
            self._end(self._conversation.reset(from_client=True))
            self._pipe.leave(self)

    def _cut(self) -> None:
        self._counts["ids_cut"] += 1
        self.over()

    def _end(self, packets: list[bytes]) -> None:
        for packet in packets:
            self._pipe.write(packet, ends=True)
