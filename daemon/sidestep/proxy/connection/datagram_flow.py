"""One flow of datagrams: from one client address and port, through a stream, to a handler and back.

States

    opening   the daemon was asked for a stream; datagrams wait, at most HELD bytes
    live      each datagram is a capsule on the stream (`protocols.capsules`), each capsule a datagram back
    ended     refused, broken, idle, or the oldest of too many

    opening --stream--> live --(break, end, idle)--> ended; opening --(refusal, idle)--> ended

Invariants

  * Datagrams that find no room are dropped and counted, as a network would.
  * The owner's `held` and `opening` include this flow until it is ended; `ended` is called then. Ending twice is
    allowed.
  * A flow of copies (`answers` false) tells the mirror once what came of it. Its answers are discarded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from sidestep.engine.memory_budget import DATAGRAMS
from sidestep.model.errors import PeerError
from sidestep.protocols import capsules
from sidestep.proxy.io.loop import READ, WRITE, Loop
from sidestep.proxy.io.stream import PlainStream
from sidestep.proxy.mirror.copy_connection import OPENED, WRITTEN
from sidestep.proxy.mirror.scheduler import MirrorScheduler

HELD: Final = 256 * 1024
"""Bytes that may wait for the stream of one flow."""
HELD_TOGETHER: Final = DATAGRAMS
"""Bytes that may wait in all flows (`engine.memory_budget`): anybody can send from many addresses."""

Key = tuple[str, int, str, int, str]
"""(rule uid, port, client address, client port, local address)."""
Ask = Callable[[Key, Callable[[PlainStream | None], None]], Callable[[], None]]
"""Ask the daemon for a stream; returns a function that cancels."""


class FlowOwner(Protocol):
    """What all flows share."""

    loop: Loop
    mirror_scheduler: MirrorScheduler
    counters: Counter[str]
    held: int
    """Bytes that wait in all flows."""
    opening: int
    """Flows that have no stream yet."""

    def answer(self, key: Key, payload: bytes) -> None:
        """Send a handler's datagram to the client."""

    def ended(self, flow: Flow) -> None:
        """Note that a flow has ended."""


class Flow:
    """See the module. `seen` is when a datagram last went in either direction (monotonic seconds)."""

    __slots__ = (
        "_answers",
        "_cancel",
        "_decoder",
        "_loop",
        "_mask",
        "_out",
        "_owner",
        "_queued",
        "_reported",
        "_stream",
        "key",
        "seen",
    )

    def __init__(self, owner: FlowOwner, key: Key, *, answers: bool) -> None:
        self._owner = owner
        self._loop = owner.loop
        self.key = key
        self.seen = self._loop.now
        self._answers = answers
        self._reported = False
        """Of copies: the mirror was told whether they succeed."""
        self._decoder = capsules.Decoder()
        self._out: list[bytes] = []
        self._queued = 0
        self._stream: PlainStream | None = None
        self._mask = READ
        self._cancel: Callable[[], None] | None = None

    def begin(self, ask: Ask) -> None:
        """Ask for the stream."""
        self._owner.opening += 1
        if not self._answers:
            self._owner.mirror_scheduler.spend(OPENED)
        self._cancel = ask(self.key, self._opened)

    def _opened(self, stream: PlainStream | None) -> None:
        self._cancel = None
        self._owner.opening -= 1
        if stream is None:
            self._owner.counters["datagrams_refused"] += 1
            self._broken()
            return
        if not self._answers:
            self._owner.mirror_scheduler.opened(self.key[0])
        self._stream = stream
        self._loop.add(stream.fd, self._ready, READ)
        self._flush()

    def send(self, payload: bytes) -> None:
        """Carry a datagram to the handler, or drop it."""
        self.seen = self._loop.now
        if self._queued > HELD or self._owner.held > HELD_TOGETHER:
            self._owner.counters["datagrams_dropped"] += 1
            return
        capsule = capsules.encode(payload)
        self._out.append(capsule)
        self._queued += len(capsule)
        self._owner.held += len(capsule)
        if self._stream is not None and len(self._out) == 1:
            self._flush()

    def _flush(self) -> None:
        stream = self._stream
        if stream is None:
            return
        try:
            if self._out:
                if not self._answers:
                    self._owner.mirror_scheduler.spend(WRITTEN)
                data = b"".join(self._out)
                taken = stream.write(data)
                self._queued -= taken
                self._owner.held -= taken
                self._out = [data[taken:]] if taken < len(data) else []
        except OSError:
            self._broken()
            return
        mask = READ | (WRITE if self._out else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(stream.fd, mask)

    def _ready(self, mask: int) -> None:
        stream = self._stream
        if stream is None:
            return
        if mask & ~WRITE:
            try:
                data = stream.read()
                payloads = self._decoder.feed(data) if data else []
            except (OSError, PeerError):
                self._broken()
                return
            if data == b"":
                self._broken()
                return
            if payloads:
                self._answered(payloads)
        if mask & WRITE:
            self._flush()

    def _answered(self, payloads: list[bytes]) -> None:
        if self._answers:
            self.seen = self._loop.now
            for payload in payloads:
                self._owner.answer(self.key, payload)
        elif not self._reported:
            self._reported = True
            self._owner.mirror_scheduler.succeeded(self.key[0])

    def _broken(self) -> None:
        """The handler refused the flow, or has left it."""
        if not self._answers and not self._reported:
            self._reported = True
            self._owner.mirror_scheduler.failed(self.key[0])
        self.end()

    def end(self) -> None:
        """Close the stream, drop what waits, and tell the owner."""
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            self._owner.opening -= 1
            cancel()
        self._owner.held -= self._queued
        self._queued = 0
        self._out.clear()
        stream, self._stream = self._stream, None
        if stream is not None:
            self._loop.remove(stream.fd)
            stream.close()
        self._owner.ended(self)

    def abandon(self) -> None:
        """End the flow: a callback of it raised."""
        self.end()
