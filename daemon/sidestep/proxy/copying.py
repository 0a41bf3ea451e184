"""Copies for wiretaps are made late and little by little, so that no client's request waits for them.

What the engines defer (`Relay.deferred`) is done LATE seconds after the first of it: making copies, and telling the
daemon and the developer's machine of them, should not happen in the very moment in which the app works at the request.
(LATE is not shorter because a timer that is due soon costs the request, too: on a virtual machine setting the clock
takes 60 us.) Then it is done SLICE seconds at a time, with the events of all connections in between. Of a connection
for which more than EAGER bytes wait it is done next.

States of a connection's copies (`Copying`):

    resting    nothing is deferred
    waiting    something is; it is among those that the `Copyist` will see to
    left       the client's connection is over, or moves without us: once nothing is deferred any more, the tap legs
               have a bounded time to be connected and flushed
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidestep.engine.relay import Leg, Role
from sidestep.proxy.loop import Loop, Timer
from sidestep.proxy.taps import Surroundings, TapLeg

LATE: Final = 0.03
"""Seconds that copies wait to be made."""
EAGER: Final = 16 * 1024
"""Bytes to be copied that do not wait; far less than a copy may hold."""
SLICE: Final = 0.001
"""Seconds of copying between two looks at events."""
STEP: Final = 8
"""Deferred calls of one connection between two looks at the clock."""


class Copyist:
    """Sees to the copies of all connections of a process, in the order in which they began to wait."""

    __slots__ = ("_at_hand", "_is_due", "_loop", "_timer", "_waiting", "living")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[Copying, None] = {}
        self._at_hand: Copying | None = None
        self._timer: Timer | None = None
        self._is_due = False
        """The timer is as short as can be."""
        self.living: set[TapLeg] = set()
        """Tap legs that are not dead."""

    @property
    def is_idle(self) -> bool:
        """Whether no copy is to be made, and none under way."""
        return not self._waiting and not self.living

    def expect(self, copying: Copying, *, eager: bool) -> None:
        """See to these copies, soon, or next if `eager`."""
        self._waiting[copying] = None
        if self._at_hand is None and (self._timer is None or (eager and not self._is_due)):
            self._arm(eager=eager)

    def _arm(self, *, eager: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_due = eager
        self._timer = self._loop.later(0.0 if eager else LATE, self._work)

    def _work(self) -> None:
        self._timer = None
        waiting = self._waiting
        end = monotonic() + SLICE
        while waiting:
            self._at_hand = copying = next(iter(waiting))
            del waiting[copying]
            copying.advance()
            if monotonic() > end:
                break
        self._rest()

    def _rest(self) -> None:
        self._at_hand = None
        if self._waiting:
            self._arm(eager=True)

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

    __slots__ = ("_around", "_copyist", "_has_left", "_loop")

    def __init__(self, loop: Loop, around: Surroundings, copyist: Copyist) -> None:
        self._loop = loop
        self._around = around
        self._copyist = copyist
        self._has_left = False

    def glance(self) -> None:
        """Something is deferred: have it done."""
        self._copyist.expect(self, eager=self._around.relay.deferred.size > EAGER)

    def advance(self) -> None:
        """Do some of what is deferred."""
        deferred = self._around.relay.deferred
        deferred.run(STEP)
        if not self._has_left:
            self._around.copied()
        elif deferred.calls:
            self.glance()
        else:
            self._part()

    def open(self, leg: Leg) -> None:
        """Have the handler's connection of a tap leg asked for."""
        TapLeg(self._loop, leg, self._around, self._copyist.living).open()

    def settle(self) -> None:
        """Bring the tap legs in line with the relay."""
        for leg in self._legs():
            leg.io.settle()

    def _legs(self) -> list[Leg]:
        return [leg for leg in self._around.relay.legs if leg.role is Role.TAP and leg.io is not None]

    def leave(self) -> None:
        """The client's connection is over, or moves without us."""
        self._has_left = True
        self._around.relay.farewell()
        if self._around.relay.deferred.calls:
            self.glance()
        else:
            self._part()

    def _part(self) -> None:
        relay = self._around.relay
        for leg in [leg for leg in relay.opening if leg.role is Role.TAP]:
            relay.opening.remove(leg)
            self.open(leg)
        for leg in self._legs():
            leg.io.farewell()
        self._around.tap_moved()

    def abandon(self) -> None:
        """A bug was met: nothing more is copied of this connection, and its client notices nothing."""
        self._around.relay.deferred.close()
        for leg in self._legs():
            leg.io.abandon()
        self._around.tap_moved()
