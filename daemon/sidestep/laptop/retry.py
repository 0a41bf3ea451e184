"""Pauses between attempts, with jitter, so that clients which fail together do not retry together.

A pause doubles with each failure up to a maximum, and is drawn from its upper half. Success resets the pause only after
it has lasted for `LASTING` seconds: a daemon that greets and then breaks off is as overloaded as one that does not
greet.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

LASTING = 5.0
"""Seconds after which the end of a tunnel counts as a new failure."""


@dataclass(slots=True)
class Retry:
    """Computes pauses between `first` and `last` seconds; `uniform` draws a number between two bounds."""

    first: float
    last: float
    uniform: Callable[[float, float], float] = random.uniform
    _pause: float = 0.0

    def pause(self) -> float:
        """Record a failure; returns the seconds to wait now."""
        pause = self._pause or self.first
        self._pause = min(2 * pause, self.last)
        return self.uniform(pause / 2, pause)

    def succeeded(self, *, lived: float) -> None:
        """Record a success that lasted for `lived` seconds."""
        if lived >= LASTING:
            self._pause = 0.0
