"""When to try again what failed, so that many who fail at the same moment do not come back at the same moment.

A pause doubles with each failure up to the last, and is drawn from its upper half: clients that lost one daemon
together spread over a time as long as what they already waited. Success makes the next pause the first one again, but
only once it has lasted (`LASTING`): a daemon that greets and then breaks off is as busy as one that does not greet.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LASTING = 5.0
"""Seconds that a tunnel must live for its end to be a new failure."""


@dataclass(slots=True)
class Retry:
    """`first` and `last` are seconds; `uniform` draws between two of them."""

    first: float
    last: float
    uniform: Callable[[float, float], float] = random.uniform
    _pause: float = 0.0

    def pause(self) -> float:
        """Seconds to wait now, after another failure."""
        pause = self._pause or self.first
        self._pause = min(2 * pause, self.last)
        return self.uniform(pause / 2, pause)

    def succeeded(self, *, lived: float) -> None:
        """Something worked for so many seconds."""
        if lived >= LASTING:
            self._pause = 0.0
