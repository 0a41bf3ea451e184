"""Copies for wiretaps are made late and little by little, so that no client's request waits for them.

What the engines defer (`Relay.deferred`) is done about LATE seconds after the first of it: making copies, and telling
the daemon and the developer's machine of them, should not happen in the very moment in which the app works at the
request. (LATE is not shorter because a timer that is due soon costs the request, too: on a virtual machine setting the
clock takes 60 us.) Then it is done SLICE seconds at a time, one connection after the other, with the events of all
connections in between. A connection for which more than EAGER bytes wait is due at once.

The time that all this takes is measured and counted against a budget (`engine.mirror.budget`), with an estimate of what
the node daemon spends on it; what came of copies decides whether their wiretap gets more (`engine.mirror.breaker`). The
gate that joins both (`engine.mirror.gate`) has no clock: the `Copyist` tells it the time, and calls it when it is due.

States of a connection's copies (`Copying`):

    resting    nothing is deferred
    waiting    something is; it is not due
    due        it is among those whose turn comes next
    left       the client's connection is over, or moves without us: once nothing is deferred any more, the tap legs
               have a bounded time to be connected and flushed
"""

from __future__ import annotations

from collections import Counter, deque
from time import monotonic, thread_time
from typing import Final

from sidestep.engine.mirror.gate import TapGate
from sidestep.engine.relay import CopyLeg, Ending
from sidestep.proxy.io.loop import Loop, Timer
from sidestep.proxy.mirror.tap_leg import Surroundings, TapLeg

LATE: Final = 0.03
"""Seconds that copies wait to be made ..."""
GRAIN: Final = 0.01
"""... or so much less, if others are made then."""
EAGER: Final = 8 * 1024
"""Bytes to be copied that do not wait; far less than a copy may hold, or a connection defer."""
SLICE: Final = 0.001
"""Seconds of copying between two looks at events, about."""
STEP: Final = 8
"""Deferred calls of one connection between two looks at the clock."""
OPENING: Final = 16
"""Connections to the handler of one wiretap that are asked for at once: a handler that refuses is known to by then."""
HASTY: Final = 0.00003
"""Seconds that a deferred call takes, about, when it is made where time is not measured."""
TOLD: Final = 0.00005
"""Processor seconds that telling the daemon of one copy takes, there and here."""


class Copyist:
    """Sees to the copies of all connections of a process, in the order in which they are due."""

    __slots__ = (
        "_at_hand",
        "_due",
        "_gate_timer",
        "_is_pressed",
        "_loop",
        "_opening",
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
        self._queued: dict[str, deque[TapLeg]] = {}
        """Wiretap -> those that wait to be asked for; the ledger bounds them."""
        self._waiting: dict[Copying, float] = {}
        """Those that are not due, with the time (of the loop's clock) when they are, the next one first."""
        self._due: dict[Copying, None] = {}
        self._at_hand: Copying | None = None
        self._timer: Timer | None = None
        self._is_pressed = False
        """The timer is for those that are due."""
        self.living: set[TapLeg] = set()
        """Tap legs that are not dead."""

    @property
    def is_idle(self) -> bool:
        """Whether no copy is to be made, and none under way."""
        return not self._waiting and not self._due and not self.living

    def expect(self, copying: Copying, *, eager: bool) -> None:
        """See to these copies in time, or without waiting if `eager`."""
        if copying in self._due:
            return
        if eager or copying is self._at_hand:
            self._waiting.pop(copying, None)
            self._due[copying] = None
        elif copying not in self._waiting:
            self._waiting[copying] = self._loop.now + LATE
        else:
            return
        if self._at_hand is None:
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
            copying, when = next(iter(self._waiting.items()))
            if when > now + GRAIN:
                break
            del self._waiting[copying]
            self._due[copying] = None
        while self._due:
            self._at_hand = copying = next(iter(self._due))
            del self._due[copying]
            copying.advance()
            if monotonic() > now + SLICE:
                break
        self.spend(thread_time() - began)
        self._rest()

    def _rest(self) -> None:
        self._at_hand = None
        if self._due or self._waiting:
            self._arm()

    def ask(self, leg: TapLeg, uid: str) -> None:
        """As Keeper.ask."""
        if self._opening[uid] < OPENING:
            self._opening[uid] += 1
            leg.ask()
        else:
            self._queued.setdefault(uid, deque()).append(leg)

    def answered(self, uid: str) -> None:
        """As Keeper.answered."""
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
        """As Keeper.opened."""
        self.gate.opened(uid, monotonic())
        self._watch_gate()

    def failed(self, uid: str) -> None:
        """As Keeper.failed."""
        self.gate.failed(uid, monotonic())
        self._watch_gate()
        if not self.gate.is_closed(uid):
            for leg in self._queued.pop(uid, ()):
                leg.refuse()

    def succeeded(self, uid: str) -> None:
        """As Keeper.succeeded."""
        self.gate.succeeded(uid, monotonic())

    def told(self, lines: int) -> None:
        """So many copies are told to the daemon."""
        self.spend(lines * TOLD)

    def spend(self, seconds: float) -> None:
        """As Keeper.spend."""
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
        """A bug was met in the copies at hand."""
        copying = self._at_hand
        try:
            if copying is not None:
                copying.abandon()
        finally:
            self._rest()


class Copying:
    """The copies of one connection; see the module."""

    __slots__ = ("_around", "_copyist", "_has_left", "_legs", "_loop")

    def __init__(self, loop: Loop, around: Surroundings, copyist: Copyist) -> None:
        self._loop = loop
        self._around = around
        self._copyist = copyist
        self._has_left = False
        self._legs: dict[TapLeg, None] = {}
        """Those that live, whatever the relay still knows of them."""

    def glance(self) -> None:
        """Something is deferred: have it done."""
        deferred = self._around.relay.deferred
        if deferred.caught_up:
            self._copyist.spend(deferred.caught_up * HASTY)
            deferred.caught_up = 0
        self._copyist.expect(self, eager=deferred.size > EAGER)

    def advance(self) -> None:
        """Do some of what is deferred."""
        deferred = self._around.relay.deferred
        deferred.run(STEP)
        if not self._has_left:
            self._around.copied()
        elif deferred.calls:
            self._open_all()
            self.settle()
            self.glance()
        else:
            self._part()

    def open(self, leg: CopyLeg) -> None:
        """Have the handler's connection of a tap leg asked for."""
        TapLeg(self._loop, leg, self._around, kin=self._legs, keeper=self._copyist).open()

    def settle(self) -> None:
        """Bring the tap legs in line with their relays."""
        for leg in [*self._legs]:
            leg.settle()

    def leave(self) -> None:
        """The client's connection is over, or moves without us."""
        self._has_left = True
        self._around.relay.farewell()
        if self._around.relay.deferred.calls:
            self.glance()
        else:
            self._part()

    def _part(self) -> None:
        self._open_all()
        for leg in [*self._legs]:
            leg.farewell()
        self._around.tap_moved()

    def _open_all(self) -> None:
        for leg in self._take_opening():
            self.open(leg)

    def _take_opening(self) -> list[CopyLeg]:
        opening = self._around.relay.opening
        legs = [leg for leg in opening if isinstance(leg, CopyLeg)]
        for leg in legs:
            opening.remove(leg)
        return legs

    def abandon(self) -> None:
        """A bug was met: nothing more is copied of this connection, and its client notices nothing."""
        self._around.relay.deferred.close()
        for leg in self._take_opening():
            leg.end(Ending.ABORT)
            leg.owner.lost(leg, self._loop.now)
        for each in [*self._legs]:
            each.abandon()
        self._around.tap_moved()
