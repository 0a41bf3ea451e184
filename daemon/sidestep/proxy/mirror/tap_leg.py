"""The shell's side of wiretaps: tap legs of a connection, apart from everything that serves its client.

    queued    many others of its wiretap are being opened (`Keeper.ask`); `leg.out` is kept (its bound is the ledger's)
    opening   an `Open` message is under way; likewise
    live      what the engine writes is sent as the socket takes it, what the handler says is read for the engine
    awaiting  the engine ended the leg (AWAIT, FINISH) and all is written: the handler has ANSWER seconds to end
    closing   the engine closed it (CLOSE) and not all is written: the handler has ANSWER seconds to take it
    dead      closed

A tap leg's socket is written from its own events once it has been full, so that a handler that does not read costs the
app's events nothing but a glance. When the client's connection is over the legs go on by themselves: FAREWELL seconds
to be connected and flushed, then reset. The engine is told of every end, so that the ledger's books are right.

Each leg says once what came of it (`Keeper`): it failed when the handler refused, broke it off or did not answer as its
protocol demands; an answer is a success, and so is an orderly end. An end that the client or we caused says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time
from typing import Final, Protocol

from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.relay import Ending, Relay
from sidestep.proxy.io.leg_io import MERGE, LegIO
from sidestep.proxy.io.loop import HANG_UP, READ, WRITE, Loop, Timer
from sidestep.proxy.io.stream import PlainStream, Stream

ANSWER: Final = 10.0
"""Seconds for a handler to answer a request that was copied whole, or to end after the client did."""
HURRY: Final = 1.0
"""The same while more than CROWD of them are awaited: a handler that never answers is no reason to drop copies."""
CROWD: Final = 32
FAREWELL: Final = 10.0
"""Seconds for copies to be delivered after the end of the client's connection."""
READS: Final = 4
"""Reads of one handler's answer per event; then other connections get a turn."""
OPENED: Final = 0.0015
"""Processor seconds that the node daemon and the session spend on a connection to a handler, about ..."""
WRITTEN: Final = 0.0001
"""... and on carrying one write to it. They count as time taken by copying."""


class Keeper(Protocol):
    """Keeps account of the copies of all connections."""

    living: set[TapLeg]
    """Tap legs that are not dead."""

    def ask(self, leg: TapLeg, uid: str) -> None:
        """Have `leg.ask` called, now or when fewer of its wiretap are being opened, or `leg.refuse`."""

    def answered(self, uid: str) -> None:
        """A leg that had asked is opened, refused or over."""

    def opened(self, uid: str) -> None:
        """A handler has taken the connection of a copy for this wiretap."""

    def failed(self, uid: str) -> None:
        """A copy has failed."""

    def succeeded(self, uid: str) -> None:
        """A copy has succeeded."""

    def spend(self, seconds: float) -> None:
        """Processor time has been spent on copies."""


class MirroredConnection(Protocol):
    """A connection, as its mirror sees it; the conductor implements it (`proxy.connection.mirrored`)."""

    @property
    def relay(self) -> Relay:
        """The relay that goes on with the connection."""

    def ask_for_copy(self, leg: CopyLeg, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        """Ask for a connection to the handler of a tap leg; returns a function that cancels."""

    def tap_moved(self) -> None:
        """A sink was told something about one of its legs."""

    def mirrored(self) -> None:
        """Some events were consumed; the connection goes on."""


class TapLeg(LegIO):
    """One tap leg. It is among those of its connection (`kin`) and of all (`living`) until it is dead."""

    __slots__ = (
        "_asking",
        "_connection",
        "_copy",
        "_keeper",
        "_kin",
        "_owner",
        "_said",
        "_timer",
    )

    def __init__(
        self, loop: Loop, leg: CopyLeg, connection: MirroredConnection, *, kin: dict[TapLeg, None], keeper: Keeper
    ) -> None:
        super().__init__(loop, leg)
        self._copy = leg
        self._connection = connection
        self._owner = leg.owner
        self._kin = kin
        self._keeper = keeper
        self._said = False
        """What came of it has been said."""
        self._asking = False
        self._timer: Timer | None = None
        kin[self] = None
        keeper.living.add(self)

    def open(self) -> None:
        """Have the connection asked for, unless the copy is over already."""
        if self.leg.ending is Ending.ABORT:
            self._die(orderly=False)
        else:
            self._keeper.spend(OPENED)  # now, not when it is spent: else many are begun before the first one counts
            self._keeper.ask(self, self._uid)

    def ask(self) -> None:
        """Ask for the connection."""
        self._asking = True
        self.cancel = self._connection.ask_for_copy(self._copy, self._opened)

    def refuse(self) -> None:
        """There is no point in asking: others of the same wiretap were refused meanwhile."""
        if self in self._keeper.living:
            self._lose()
            self._connection.tap_moved()

    def _has_asked(self) -> None:
        if self._asking:
            self._asking = False
            self._keeper.answered(self._uid)

    def _opened(self, stream: PlainStream | None) -> None:
        self.cancel = None
        began = thread_time()
        self._has_asked()
        if self not in self._keeper.living:
            if stream is not None:
                stream.reset()
        elif stream is None:
            self._lose()
            self._connection.tap_moved()
        else:
            self._keeper.opened(self._uid)
            self.attach(stream)
            self._owner.opened(self._copy)
            self.settle()
            self._connection.tap_moved()
        self._keeper.spend(thread_time() - began)

    @property
    def _uid(self) -> str:
        return self._copy.uid

    def _say(self, *, failed: bool) -> None:
        if not self._said:
            self._said = True
            if failed or self._copy.answered is False:
                self._keeper.failed(self._uid)
            else:
                self._keeper.succeeded(self._uid)

    def ready(self, mask: int) -> None:
        """Dispatch an event of the socket."""
        stream = self.stream
        if stream is None:
            return
        began = thread_time()
        if mask & WRITE:
            self.congested = False
        try:
            if mask & ~WRITE and not self.ended:
                self._read(stream, hung_up=bool(mask & HANG_UP))
            elif mask & HANG_UP and self.ended:
                self._lose()
        except OSError:
            self._lose()
        self.settle()
        self._connection.tap_moved()
        self._keeper.spend(thread_time() - began)

    def _read(self, stream: Stream, *, hung_up: bool) -> None:
        owner = self._owner
        for _ in range(READS):
            data = stream.read()
            if data is None:
                return
            if not data:
                break
            owner.receive(self._copy, data)
            if self._copy.answered is not None:
                self._say(failed=not self._copy.answered)
            if self.stream is None or not owner.reads(self._copy):
                return
        else:
            return
        self.ended = True
        if hung_up and not self.finished:
            self._lose()
        else:
            owner.receive_eof(self._copy)

    def settle(self) -> None:
        """Write what the socket takes, and carry out the ending."""
        leg = self.leg
        stream = self.stream
        if leg.ending is Ending.ABORT:
            self._die(orderly=False)
            return
        if stream is None:
            return
        try:
            if leg.out and not self.congested and not self._write_all(stream):
                self.congested = True
        except OSError:
            self._lose()
            return
        if not leg.out:
            if leg.ending is Ending.CLOSE:
                self._die(orderly=True)
                return
            if leg.ending:
                self._await()
        elif leg.ending is Ending.CLOSE:
            self._arm()
        self._watch()

    def _watch(self) -> None:
        reads = not self.ended and self._owner.reads(self._copy)
        self.watch((READ if reads else 0) | (WRITE if self.congested else 0))

    def _write_all(self, stream: Stream) -> bool:
        """Write what there is, and what the owner adds when it hears that all was taken; return whether that was so."""
        leg = self.leg
        while leg.out:
            self._keeper.spend(WRITTEN * -(-len(leg.out) // MERGE))
            if not self.write(stream):
                return False
            self._owner.drained(self._copy)
        return True

    def _await(self) -> None:
        if self.leg.ending is Ending.FINISH:
            self.finish(notify=True)
        self._arm()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.later(HURRY if len(self._keeper.living) > CROWD else ANSWER, self.give_up)

    def farewell(self) -> None:
        """The client's connection is over."""
        self.settle()
        if self in self._keeper.living and self._timer is None:
            self._timer = self.loop.later(FAREWELL, self.give_up)

    def give_up(self) -> None:
        """Time is up: whatever is not delivered is lost. A handler that took everything need not answer."""
        if self in self._keeper.living:
            delivered = self.stream is not None and not self.leg.out
            if delivered:
                self._say(failed=False)
            self._lose(orderly=delivered)
            self._connection.tap_moved()

    def abandon(self) -> None:
        """A bug was met in a callback of this leg."""
        if self in self._keeper.living:
            self._said = True
            self._lose()

    def _lose(self, *, orderly: bool = False) -> None:
        self._say(failed=True)
        try:
            self._owner.lost(self._copy)  # which looks whether anything was left to be written
        finally:
            self._die(orderly=orderly)

    def _die(self, *, orderly: bool) -> None:
        self._kin.pop(self, None)
        self._keeper.living.discard(self)
        if orderly:
            self._say(failed=False)
        if self.cancel is not None:
            self.give_up_waiting()
            self._has_asked()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.close(orderly=orderly)
        self.leg.out.clear()
        self.leg.queued = 0
