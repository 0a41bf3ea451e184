"""When the mirror's events are consumed: late and little by little, so that no client's request waits for it.

What relays tell their mirrors (`engine.mirror`) is consumed about LATE seconds after the first of it: making copies,
and telling the daemon and the developer's machine of them, would otherwise happen in the very moment in which the app
works at the request. (LATE is not shorter because a timer that is due soon costs the request, too: on a virtual machine
setting the clock takes 60 us.) Then it is consumed SLICE seconds at a time, one connection after the other, with the
events of all sockets in between. A connection for which more than EAGER bytes wait is due at once.

The processor time that all this takes is measured and counted against a budget (`engine.mirror.budget`), with an
estimate of what the node daemon spends on it; what came of copies decides whether their wiretap gets more
(`engine.mirror.breaker`). The gate that joins both (`engine.mirror.gate`) has no clock: the `MirrorScheduler` tells it
the time, and calls it when it is due.

States of a connection's mirror (`ConnectionMirror`):

    resting    no event waits
    waiting    some do; they are not due
    due        it is among those whose turn comes next
    left       the client's connection is over, or is spliced: once no event waits any more, the legs of its copies have
               a bounded time to be connected and flushed
"""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic, thread_time
from typing import Final

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.mirror.gate import TapGate
from sidestep.proxy.io.loop import Loop, Timer
from sidestep.proxy.mirror.copy_connection import CopyConnection, MirroredConnection

LATE: Final = 0.03
"""Seconds that events wait to be consumed ..."""
GRAIN: Final = 0.01
"""... or so much less, if others are consumed then."""
EAGER: Final = 8 * 1024
"""Bytes of events that do not wait; far less than a copy, or a queue, may hold."""
SLICE: Final = 0.001
"""Seconds of consuming between two looks at sockets, about."""
STEP: Final = 8
"""Events of one connection between two looks at the clock."""
OPENING: Final = 16
"""Connections to the handler of one wiretap that are asked for at once: a handler that refuses is known to by then."""
CAUGHT_UP: Final = 0.00003
"""Seconds that consuming an event takes, about, where that is not measured (`EventQueue.catch_up`)."""
PATIENCE: Final = 0.5
"""Seconds after which a sink that waits is told the time."""
TOLD: Final = 0.00005
"""Processor seconds that telling the daemon of one copy takes, there and here."""


class MirrorScheduler:
    """Drives the mirrors of all connections of a process, in the order in which they are due."""

    __slots__ = (
        "_current",
        "_due",
        "_gate_timer",
        "_is_pressed",
        "_loop",
        "_opening",
        "_patient",
        "_queued",
        "_timer",
        "_waiting",
        "gate",
        "living",
    )

    def __init__(self, loop: Loop, gate: TapGate | None = None) -> None:
        self._loop = loop
        self.gate = gate or TapGate(loop.now)
        self._gate_timer: Timer | None = None
        self._opening: Counter[str] = Counter()
        """Wiretap -> connections that have been asked for and are not there."""
        self._queued: dict[str, deque[CopyConnection]] = {}
        """Wiretap -> those that wait to be asked for; the ledger bounds them."""
        self._waiting: dict[ConnectionMirror, float] = {}
        """Those that are not due, with the time (of the loop's clock) when they are, the next one first."""
        self._due: dict[ConnectionMirror, None] = {}
        self._patient: dict[ConnectionMirror, None] = {}
        """Those of which a sink waits (`Mirror.waiting`), or has waited: a timer runs while there are any."""
        self._current: ConnectionMirror | None = None
        self._timer: Timer | None = None
        self._is_pressed = False
        """The timer is for those that are due."""
        self.living: set[CopyConnection] = set()
        """Connections of copies that are not closed."""

    @property
    def is_idle(self) -> bool:
        """Whether no event waits, and no copy is under way."""
        return not self._waiting and not self._due and not self.living

    def expect(self, mirror: ConnectionMirror, *, eager: bool) -> None:
        """Have the events of a connection consumed in time, or without waiting if `eager`."""
        if mirror in self._due:
            return
        if eager or mirror is self._current:
            self._waiting.pop(mirror, None)
            self._due[mirror] = None
        elif mirror not in self._waiting:
            self._waiting[mirror] = self._loop.now + LATE
        else:
            return
        if self._current is None:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            if self._is_pressed or not self._due:
                return
            self._timer.cancel()
        self._is_pressed = bool(self._due)
        delay = 0.0
        if not self._due:
            delay = max(0.0, next(iter(self._waiting.values())) - monotonic())
        self._timer = self._loop.later(delay, self._work)

    def _work(self) -> None:
        self._timer = None
        now = monotonic()
        began = thread_time()
        while self._waiting:
            mirror, when = next(iter(self._waiting.items()))
            if when > now + GRAIN:
                break
            del self._waiting[mirror]
            self._due[mirror] = None
        while self._due:
            self._current = mirror = next(iter(self._due))
            del self._due[mirror]
            mirror.advance()
            if monotonic() > now + SLICE:
                break
        self.spend(thread_time() - began)
        self._rest()

    def wait_for(self, mirror: ConnectionMirror) -> None:
        """A sink of the connection waits: tell it the time now and then."""
        if not self._patient:
            self._loop.later(PATIENCE, self._look)
        self._patient[mirror] = None

    def _look(self) -> None:
        now = monotonic()
        patient, self._patient = self._patient, {}
        for mirror in patient:
            mirror.look(now)

    def _rest(self) -> None:
        self._current = None
        if self._due or self._waiting:
            self._arm()

    def ask(self, leg: CopyConnection, uid: str) -> None:
        """As CopyHost.ask."""
        if self._opening[uid] < OPENING:
            self._opening[uid] += 1
            leg.ask()
        else:
            self._queued.setdefault(uid, deque()).append(leg)

    def answered(self, uid: str) -> None:
        """As CopyHost.answered."""
        self._opening[uid] -= 1
        queued = self._queued.get(uid)
        while queued:
            leg = queued.popleft()
            if leg in self.living:
                self._opening[uid] += 1
                leg.ask()
                break
        if not queued:
            self._queued.pop(uid, None)
        if not self._opening[uid]:
            del self._opening[uid]

    def opened(self, uid: str) -> None:
        """As CopyHost.opened."""
        self.gate.opened(uid, monotonic())
        self._watch_gate()

    def failed(self, uid: str) -> None:
        """As CopyHost.failed."""
        self.gate.failed(uid, monotonic())
        self._watch_gate()
        if not self.gate.is_closed(uid):
            for leg in self._queued.pop(uid, ()):
                leg.refuse()

    def succeeded(self, uid: str) -> None:
        """As CopyHost.succeeded."""
        self.gate.succeeded(uid, monotonic())

    def told(self, lines: int) -> None:
        """So many copies are told to the daemon."""
        self.spend(lines * TOLD)

    def spend(self, seconds: float) -> None:
        """As CopyHost.spend."""
        self.gate.spend(seconds, monotonic())
        if self.gate.holds:
            self._watch_gate()

    def _watch_gate(self) -> None:
        due = self.gate.due
        timer = self._gate_timer
        if due is not None and (timer is None or timer.when > due):
            if timer is not None:
                timer.cancel()
            self._gate_timer = self._loop.later(max(0.0, due - monotonic()), self._gate_due)

    def _gate_due(self) -> None:
        self._gate_timer = None
        self.gate.expire(monotonic())
        self._watch_gate()

    def abandon(self) -> None:
        """A bug was met in the mirror at hand."""
        mirror = self._current
        try:
            if mirror is not None:
                mirror.abandon()
        finally:
            self._rest()


class ConnectionMirror:
    """The mirror of one connection, and the legs of its copies; see the module."""

    __slots__ = ("_connection", "_has_left", "_legs", "_loop", "_scheduler")

    def __init__(self, loop: Loop, connection: MirroredConnection, scheduler: MirrorScheduler) -> None:
        self._loop = loop
        self._connection = connection
        self._scheduler = scheduler
        self._has_left = False
        self._legs: dict[CopyConnection, None] = {}
        """Those that live, whatever their sinks still know of them."""

    def glance(self) -> None:
        """Events wait: have them consumed."""
        queue = self._connection.relay.mirror.queue
        if queue is None:
            return
        if queue.caught_up:
            self._scheduler.spend(queue.caught_up * CAUGHT_UP)
            queue.caught_up = 0
        self._scheduler.expect(self, eager=queue.size > EAGER)

    def advance(self) -> None:
        """Have some events consumed."""
        mirror = self._connection.relay.mirror
        mirror.run(STEP)
        if mirror.waiting is not None:
            self._scheduler.wait_for(self)
        if not self._has_left:
            self._connection.mirrored()
        elif mirror.events:
            self.settle()
            self.glance()
        else:
            self._part()

    def look(self, now: float) -> None:
        """Tell the sink that waits the time."""
        mirror = self._connection.relay.mirror
        if mirror.waiting is not None:
            mirror.waiting.expire(now)
            self._connection.sink_told()
        if mirror.waiting is not None:
            self._scheduler.wait_for(self)

    def settle(self) -> None:
        """Have new legs connected, and bring all of them in line with their sinks.

        This may run while the client is served, so an error of a sink is raised when its events are consumed next.
        """
        try:
            self._open_all()
            for leg in [*self._legs]:
                leg.settle()
        except Exception as error:  # noqa: BLE001 - a bug in mirroring does not end the client's connection
            self._connection.relay.mirror.fail(error)

    def leave(self) -> None:
        """The client's connection is over, or is spliced."""
        self._has_left = True
        self._connection.relay.farewell()
        if self._connection.relay.mirror.events:
            self.glance()
        else:
            self._part()

    def _part(self) -> None:
        self._open_all()
        for leg in [*self._legs]:
            leg.farewell()
        self._connection.sink_told()

    def _open_all(self) -> None:
        opening = self._connection.relay.mirror.opening
        while opening:
            self.open(opening.pop(0))

    def open(self, leg: CopyLeg) -> None:
        """Have the handler's connection of a leg asked for."""
        CopyConnection(self._loop, leg, self._connection, kin=self._legs, host=self._scheduler).open()

    def abandon(self) -> None:
        """A bug was met: nothing more is mirrored of this connection, and its client notices nothing."""
        mirror = self._connection.relay.mirror
        mirror.close()
        while mirror.opening:
            leg = mirror.opening.pop(0)
            leg.end(Ending.ABORT)
            leg.owner.lost(leg)
        for each in [*self._legs]:
            each.abandon()
        self._connection.sink_told()
