"""The connections of copies: I/O of the `CopyLeg`s of sinks, apart from everything that serves the client.

States of a connection

    queued    OPENING others of its wiretap are being opened (`CopyHost.ask`); bytes stay in `leg.out`, which the
              `Ledger` bounds
    opening   the daemon was asked for a connection to the handler; bytes stay in `leg.out`
    live      what the sink writes is sent as the socket takes it; what the handler says goes to the sink (`leg.owner`)
    awaiting  the sink ended the leg (AWAIT, FINISH) and all is written: the handler has ANSWER seconds to end it
    closing   the sink closed the leg (CLOSE) and not all is written: the handler has ANSWER seconds to take it
    closed

Once a socket has been full it is written from its own events only, so a handler that does not read costs the client's
events no system call. When the client's connection is over, its copies go on alone: they have FAREWELL seconds to be
connected and written, and are reset after that. The sink is told of every end, because the `Ledger` counts by it.

Each connection reports one outcome (`CopyHost`). It has failed when the handler refused it, broke it off, or did not
answer as its protocol demands; it has succeeded with an answer, or an orderly end. An end that the client or Sidestep
caused is no outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time
from typing import Final, Protocol

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.relay import Relay
from sidestep.proxy.io.leg_io import MERGE, LegIO
from sidestep.proxy.io.loop import HANG_UP, READ, WRITE, Loop, Timer
from sidestep.proxy.io.stream import PlainStream, Stream

ANSWER: Final = 10.0
"""Seconds for a handler to answer a request that was copied whole, or to end after the client did."""
HURRY: Final = 1.0
"""The same while more than CROWD copies are open: handlers that never answer then take less room from new copies."""
CROWD: Final = 32
FAREWELL: Final = 10.0
"""Seconds for copies to be delivered after the end of the client's connection."""
READS: Final = 4
"""Reads of one handler's answer per event; then other connections get a turn."""
OPENED: Final = 0.0015
"""Processor seconds that the node daemon and the session spend on a connection to a handler, about ..."""
WRITTEN: Final = 0.0001
"""... and on carrying one write to it. They count as time taken by copying."""


class CopyHost(Protocol):
    """What the connections of copies need from the process around them; `MirrorScheduler` implements it."""

    living: set[CopyConnection]
    """Those that are not closed."""

    def ask(self, leg: CopyConnection, uid: str) -> None:
        """Call `leg.ask`, at once or when fewer of its wiretap are being opened, or `leg.refuse`."""

    def answered(self, uid: str) -> None:
        """A connection that had been asked for is opened, refused or not wanted any more."""

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
        """Ask for a connection to the handler of a copy; returns a function that cancels."""

    def sink_told(self) -> None:
        """A sink was told something about one of its legs."""

    def mirrored(self) -> None:
        """Some events were consumed; the connection goes on."""


class CopyConnection(LegIO):
    """One of them. Until it is closed it is in `kin`, with those of its client, and in `CopyHost.living`."""

    __slots__ = (
        "_asking",
        "_connection",
        "_copy",
        "_host",
        "_kin",
        "_owner",
        "_reported",
        "_timer",
    )

    def __init__(
        self,
        loop: Loop,
        leg: CopyLeg,
        connection: MirroredConnection,
        *,
        kin: dict[CopyConnection, None],
        host: CopyHost,
    ) -> None:
        super().__init__(loop, leg)
        self._copy = leg
        self._connection = connection
        self._owner = leg.owner
        self._kin = kin
        self._host = host
        self._reported = False
        """Its outcome has been reported."""
        self._asking = False
        self._timer: Timer | None = None
        kin[self] = None
        host.living.add(self)

    def open(self) -> None:
        """Have the connection asked for, unless the copy is over already."""
        if self.leg.ending is Ending.ABORT:
            self._die(orderly=False)
        else:
            self._host.spend(OPENED)  # before it is spent: otherwise many would be begun before the first one counts
            self._host.ask(self, self._uid)

    def ask(self) -> None:
        """Ask for the connection."""
        self._asking = True
        self.cancel = self._connection.ask_for_copy(self._copy, self._opened)

    def refuse(self) -> None:
        """Do not ask: the handler has refused others of the same wiretap meanwhile."""
        if self in self._host.living:
            self._lose()
            self._connection.sink_told()

    def _has_asked(self) -> None:
        if self._asking:
            self._asking = False
            self._host.answered(self._uid)

    def _opened(self, stream: PlainStream | None) -> None:
        try:
            self._join(stream)
        except Exception:
            self.abandon()  # the caller does not own this copy, and could not end it
            raise

    def _join(self, stream: PlainStream | None) -> None:
        self.cancel = None
        began = thread_time()
        self._has_asked()
        if self not in self._host.living:
            if stream is not None:
                stream.reset()
        elif stream is None:
            self._lose()
            self._connection.sink_told()
        else:
            self._host.opened(self._uid)
            self.attach(stream)
            self._owner.opened(self._copy)
            self.settle()
            self._connection.sink_told()
        self._host.spend(thread_time() - began)

    @property
    def _uid(self) -> str:
        return self._copy.uid

    def _report(self, *, failed: bool) -> None:
        if not self._reported:
            self._reported = True
            if failed or self._copy.answered is False:
                self._host.failed(self._uid)
            else:
                self._host.succeeded(self._uid)

    def ready(self, mask: int) -> None:
        """Handle an event of the socket."""
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
        self._connection.sink_told()
        self._host.spend(thread_time() - began)

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
                self._report(failed=not self._copy.answered)
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
        """Write what is queued, and what the sink adds once all of it was taken; return whether nothing is left."""
        leg = self.leg
        while leg.out:
            self._host.spend(WRITTEN * -(-len(leg.out) // MERGE))
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
            self._timer = self.loop.later(HURRY if len(self._host.living) > CROWD else ANSWER, self.give_up)

    def farewell(self) -> None:
        """The client's connection is over: FAREWELL seconds are left."""
        self.settle()
        if self in self._host.living and self._timer is None:
            self._timer = self.loop.later(FAREWELL, self.give_up)

    def give_up(self) -> None:
        """Time is up: what is not delivered is lost. A handler that took everything need not answer."""
        if self in self._host.living:
            delivered = self.stream is not None and not self.leg.out
            if delivered:
                self._report(failed=False)
            self._lose(orderly=delivered)
            self._connection.sink_told()

    def abandon(self) -> None:
        """A callback of this connection raised: close it, without an outcome."""
        if self in self._host.living:
            self._reported = True
            self._lose()

    def _lose(self, *, orderly: bool = False) -> None:
        self._report(failed=True)
        try:
            self._owner.lost(self._copy)  # which looks whether anything was left to write
        finally:
            self._die(orderly=orderly)

    def _die(self, *, orderly: bool) -> None:
        self._kin.pop(self, None)
        self._host.living.discard(self)
        if orderly:
            self._report(failed=False)
        if self.cancel is not None:
            self.give_up_waiting()
            self._has_asked()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.close(orderly=orderly)
        self.leg.out.clear()
        self.leg.queued = 0
