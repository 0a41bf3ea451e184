"""The shell's side of wiretaps: tap legs of a connection, apart from everything that serves its client.

    opening   an `Open` message is under way; `leg.out` is kept (its bound is the ledger's)
    live      what the engine writes is sent as the socket takes it, what the handler says is read for the engine
    awaiting  the engine ended the leg (AWAIT, FINISH) and all is written: the handler has ANSWER seconds to end
    closing   the engine closed it (CLOSE) and not all is written: the handler has ANSWER seconds to take it
    dead      closed

A tap leg's socket is written from its own events once it has been full, so that a handler that does not read costs the
app's events nothing but a glance. When the client's connection is over the legs go on by themselves: FAREWELL seconds
to be connected and flushed, then reset. The engine is told of every end, so that the ledger's books are right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from sidestep.engine.relay import CopyLeg, Ending, Relay
from sidestep.proxy.loop import HANG_UP, READ, WRITE, Loop, Timer
from sidestep.proxy.stream import PlainStream

ANSWER: Final = 10.0
"""Seconds for a handler to answer a request that was copied whole, or to end after the client did."""
HURRY: Final = 1.0
"""The same while more than CROWD of them are awaited: a handler that never answers is no reason to drop copies."""
CROWD: Final = 32
FAREWELL: Final = 10.0
"""Seconds for copies to be delivered after the end of the client's connection."""
READS: Final = 4
"""Reads of one handler's answer per event; then other connections get a turn."""
MERGE: Final = 64
"""Chunks joined into one write."""


class Surroundings(Protocol):
    """The conduit around it."""

    relay: Relay

    def ask_for_copy(self, leg: CopyLeg, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        """Ask for a connection to the handler of a tap leg; returns a function that cancels."""

    def tap_moved(self) -> None:
        """The engine was told something about a tap."""

    def copied(self) -> None:
        """Some of what was deferred is done; the connection goes on."""


class TapLeg:
    """One tap leg. It is among those of its connection (`kin`) and of all (`living`) until it is dead."""

    __slots__ = (
        "_around",
        "_blocked",
        "_cancel",
        "_ended",
        "_finished",
        "_kin",
        "_leg",
        "_living",
        "_loop",
        "_mask",
        "_relay",
        "_stream",
        "_timer",
    )

    def __init__(
        self, loop: Loop, leg: CopyLeg, around: Surroundings, *, kin: dict[TapLeg, None], living: set[TapLeg]
    ) -> None:
        self._loop = loop
        self._leg = leg
        self._around = around
        self._relay = leg.owner
        self._kin = kin
        self._living = living
        self._blocked = False
        self._ended = False
        self._finished = False
        self._mask = 0
        self._timer: Timer | None = None
        self._cancel: Callable[[], None] | None = None
        self._stream: PlainStream | None = None
        kin[self] = None
        living.add(self)

    def open(self) -> None:
        """Have the connection asked for, unless the copy is over already."""
        if self._leg.ending is Ending.ABORT:
            self._die(orderly=False)
        else:
            self._cancel = self._around.ask_for_copy(self._leg, self._opened)

    def _opened(self, stream: PlainStream | None) -> None:
        self._cancel = None
        if self not in self._living:
            if stream is not None:
                stream.reset()
        elif stream is None:
            self._lose()
            self._around.tap_moved()
        else:
            self._stream = stream
            self._leg.open = True
            self._mask = READ
            self._loop.add(stream.fd, self.ready, READ)
            self._relay.opened(self._leg)
            self.settle()
            self._around.tap_moved()

    def ready(self, mask: int) -> None:
        """Dispatch an event of the socket."""
        stream = self._stream
        if stream is None:
            return
        if mask & WRITE:
            self._blocked = False
        try:
            if mask & ~WRITE and not self._ended:
                self._read(stream, hung_up=bool(mask & HANG_UP))
            elif mask & HANG_UP and self._ended:
                self._lose()
        except OSError:
            self._lose()
        self.settle()
        self._around.tap_moved()

    def _read(self, stream: PlainStream, *, hung_up: bool) -> None:
        relay = self._relay
        for _ in range(READS):
            data = stream.read()
            if data is None:
                return
            if not data:
                break
            relay.receive(self._leg, data)
            if self._stream is None or not relay.reads(self._leg):
                return
        else:
            return
        self._ended = True
        if hung_up and not self._finished:
            self._lose()
        else:
            relay.receive_eof(self._leg)

    def settle(self) -> None:
        """Write what the socket takes, and carry out the ending."""
        leg = self._leg
        stream = self._stream
        if leg.ending is Ending.ABORT:
            self._die(orderly=False)
            return
        if stream is None:
            return
        try:
            if leg.out and not self._blocked and not self._write(stream):
                self._blocked = True
        except OSError:
            self._lose()
            return
        if not leg.out:
            if leg.ending is Ending.CLOSE:
                self._die(orderly=True)
                return
            if leg.ending:
                self._await(stream)
        elif leg.ending is Ending.CLOSE:
            self._arm()
        self._watch(stream)

    def _watch(self, stream: PlainStream) -> None:
        reads = not self._ended and self._relay.reads(self._leg)
        mask = (READ if reads else 0) | (WRITE if self._blocked else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.modify(stream.fd, mask)

    def _write(self, stream: PlainStream) -> bool:
        leg = self._leg
        out = leg.out
        while out:
            count = min(len(out), MERGE)
            data = out[0] if count == 1 else b"".join(out[:count])
            taken = stream.write(data)
            leg.queued -= taken
            if taken != len(data):
                out[:count] = [data[taken:]]
                return False
            del out[:count]
            if not out:
                self._relay.drained(leg)
        return True

    def _await(self, stream: PlainStream) -> None:
        if self._leg.ending is Ending.FINISH and not self._finished:
            self._finished = True
            stream.finish(notify=True)
        self._arm()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self._loop.later(HURRY if len(self._living) > CROWD else ANSWER, self.give_up)

    def farewell(self) -> None:
        """The client's connection is over."""
        self.settle()
        if self in self._living and self._timer is None:
            self._timer = self._loop.later(FAREWELL, self.give_up)

    def give_up(self) -> None:
        """Time is up: whatever is not delivered is lost."""
        if self in self._living:
            self._lose(orderly=self._stream is not None and not self._leg.out)
            self._around.tap_moved()

    def abandon(self) -> None:
        """A bug was met in a callback of this leg."""
        if self in self._living:
            self._lose()

    def _lose(self, *, orderly: bool = False) -> None:
        try:
            self._relay.lost(self._leg)  # which looks whether anything was left to be written
        finally:
            self._die(orderly=orderly)

    def _die(self, *, orderly: bool) -> None:
        self._kin.pop(self, None)
        self._living.discard(self)
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        leg = self._leg
        stream, self._stream = self._stream, None
        leg.open = False
        leg.out.clear()
        leg.queued = 0
        if stream is not None:
            self._loop.remove(stream.fd)
            if orderly:
                stream.close()
            else:
                stream.reset()
