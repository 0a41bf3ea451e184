"""Circuit breaker of calls to the daemon: clients wait once for a daemon that hangs, and not for every call.

The daemon acknowledges each call as soon as it has read it, however long the answer takes. The breaker measures that.

States

    answering   calls are made; each must be acknowledged within PATIENCE seconds
    silent      one was not: all pending calls fail at once, and new ones fail without being made
    trial       the daemon has sent a message since: calls are made, and must be acknowledged within TRIAL seconds

    answering -- no acknowledgement --> silent -- any message --> trial -- an acknowledgement --> answering
                                          ^------ no acknowledgement --'

A daemon that hangs costs clients PATIENCE seconds once; one that is busy costs them at most TRIAL seconds per call
until it acknowledges one in time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from sidestep.proxy.io.loop import Loop, Timer

PATIENCE: Final = 1.0
"""Seconds for the acknowledgement of a call."""
TRIAL: Final = 0.1
"""Seconds for the first one after a silence."""


class _State(enum.Enum):
    ANSWERING = enum.auto()
    SILENT = enum.auto()
    TRIAL = enum.auto()


class DaemonBreaker:
    """One per control channel."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._state = _State.ANSWERING
        self._expected: dict[int, float] = {}
        """Calls without an acknowledgement, oldest first: `seq` -> when it is overdue (monotonic seconds)."""
        self._timer: Timer | None = None
        self._on_silence: list[Callable[[], None]] = []

    @property
    def is_silent(self) -> bool:
        """Whether no call is to be made."""
        return self._state is _State.SILENT

    def call_on_silence(self, give_up: Callable[[], None]) -> None:
        """Call `give_up` each time the daemon becomes silent."""
        self._on_silence.append(give_up)

    def called(self, seq: int) -> None:
        """Note that a call was sent."""
        delay = PATIENCE if self._state is _State.ANSWERING else TRIAL
        timer = self._loop.later(delay, self._look)
        self._expected[seq] = timer.when
        if self._timer is None:
            self._timer = timer
        else:
            timer.cancel()

    def received(self) -> None:
        """Note that any message of the daemon was received."""
        if self._state is _State.SILENT:
            self._state = _State.TRIAL

    def acknowledged(self, seq: int) -> None:
        """Note that the daemon acknowledged the message with this `seq`."""
        if self._expected.pop(seq, None) is not None:
            self._state = _State.ANSWERING

    def _look(self) -> None:
        """Timer callback: become silent if the oldest call is overdue, else wait for it."""
        self._timer = None
        oldest = next(iter(self._expected.values()), None)
        if oldest is None:
            return
        if oldest > self._loop.now:
            self._timer = self._loop.later(oldest - self._loop.now, self._look)
            return
        self._state = _State.SILENT
        self._expected.clear()
        for give_up in self._on_silence:
            give_up()
