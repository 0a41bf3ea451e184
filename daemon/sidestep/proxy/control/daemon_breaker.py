"""Circuit breaker of the questions to the daemon: one that stays unanswered is the last for which a client waits.

The daemon acknowledges every question as soon as it has read it, whatever the answer is and however long that takes.

    answering   questions are asked; one must be acknowledged within PATIENCE seconds
    silent      one was not. All open questions fail now, new ones fail without being asked
    trial       the daemon has said something since: questions are asked, and must be acknowledged within TRIAL seconds

    answering -- no acknowledgement --> silent -- any message --> trial -- a question is acknowledged --> answering
                                          ^------ no acknowledgement --'

So a daemon that hangs costs clients PATIENCE seconds once, and one that is busy TRIAL seconds per answer.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from sidestep.proxy.io.loop import Loop, Timer

PATIENCE: Final = 1.0
"""Seconds for the acknowledgement of a question."""
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
        """Questions without an acknowledgement, oldest first: `seq` -> when it is overdue, on the loop's clock."""
        self._timer: Timer | None = None
        self._on_silence: list[Callable[[], None]] = []

    @property
    def is_silent(self) -> bool:
        """Whether nothing is to be asked."""
        return self._state is _State.SILENT

    def call_on_silence(self, give_up: Callable[[], None]) -> None:
        """Have `give_up` called each time the daemon falls silent."""
        self._on_silence.append(give_up)

    def asked(self, seq: int) -> None:
        """A question was sent."""
        delay = PATIENCE if self._state is _State.ANSWERING else TRIAL
        timer = self._loop.later(delay, self._look)
        self._expected[seq] = timer.when
        if self._timer is None:
            self._timer = timer
        else:
            timer.cancel()

    def heard(self) -> None:
        """A message of the daemon was received."""
        if self._state is _State.SILENT:
            self._state = _State.TRIAL

    def acknowledged(self, seq: int) -> None:
        """The daemon acknowledged the message with this `seq`."""
        if self._expected.pop(seq, None) is not None:
            self._state = _State.ANSWERING

    def _look(self) -> None:
        """Timer callback: fall silent if the oldest question is overdue, else wait for it."""
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
