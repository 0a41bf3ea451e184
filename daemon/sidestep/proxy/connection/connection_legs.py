"""The legs of one served connection that the shell knows: those that are connected, or were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sidestep.engine.leg import Ending, Leg, Role
from sidestep.proxy.connection.connection_leg import ConnectionLeg, LegOwner
from sidestep.proxy.connection.dial import is_unacknowledged
from sidestep.proxy.io.loop import Loop

FORGET: Final = 8
"""Legs of one connection above which those that are over are forgotten."""


class ConnectionLegs:
    """Every leg that was asked for, until it is over and there are many."""

    __slots__ = ("_all", "_loop", "_owner")

    def __init__(self, loop: Loop, owner: LegOwner) -> None:
        self._loop = loop
        self._owner = owner
        self._all: list[ConnectionLeg] = []

    def __iter__(self) -> Iterator[ConnectionLeg]:
        """Those there are now; the set may change meanwhile."""
        return iter([*self._all])

    def of(self, leg: Leg) -> ConnectionLeg:
        """The I/O of a leg of the relay, made when it is asked for first."""
        io = leg.io
        if io is None:
            io = leg.io = ConnectionLeg(self._loop, leg, self._owner)
            self._all.append(io)
        return io  # type: ignore[no-any-return]

    @property
    def queued(self) -> int:
        """Bytes that wait to be written, or will be once their leg is connected."""
        return sum(io.leg.queued for io in self._all if io.stream is not None or not io.leg.ending)

    @property
    def has_unsent(self) -> bool:
        """Whether bytes, or the ends that follow them, are still to be written."""
        return any(io.has_unsent for io in self._all)

    def forget(self) -> None:
        """Drop legs that are over, if there are many."""
        if len(self._all) > FORGET:
            self._all = [io for io in self._all if io.stream is not None or not io.leg.ending]

    def is_cut_off(self, active: float) -> bool:
        """Whether the app's kernel has stopped to acknowledge what the client sent at `active` (monotonic seconds),
        although ours retransmits it."""
        return any(
            io.leg.role is Role.APP and io.leg.active < active and is_unacknowledged(io.stream.sock)
            for io in self._all
            if io.stream is not None
        )

    def close(self) -> None:
        """Close every stream; a client that the relay has sent an end to lingers."""
        for io in self:
            leg = io.leg
            if io.lingering is not None:
                continue
            if io.stream is not None and leg.role is Role.CLIENT and leg.ending in (Ending.FINISH, Ending.CLOSE):
                io.finish(notify=self._owner.notify)
                io.begin_lingering()
            else:
                io.release(orderly=True)

    def reset(self) -> None:
        """Reset every stream."""
        for io in self:
            io.release(orderly=False)
