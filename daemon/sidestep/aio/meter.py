"""Measures how long each turn of the event loop takes: a histogram, and the stalled time that deadlines subtract.

One turn of the loop runs every callback that is ready; other events wait. A turn lasts from the return of select() to
its next call, in wall-clock time, so it includes time in which the process had no CPU. No timer is used: an idle loop
stays idle, and a turn costs two clock readings.

`stalled` is the sum of what turns took beyond `NOTICED`. `patience` subtracts it: a peer that did not answer within ten
seconds, of which the loop was stalled for eight, had only two seconds to answer.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from bisect import bisect_left
from typing import Final

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram's buckets (seconds); one more takes the rest."""

NOTICED: Final = 0.1
"""Seconds that a turn may take before it counts as a stall (the goal for the longest)."""


class LoopMeter:
    """The turns of one loop."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        """Turns by bucket, not cumulative."""
        self.seconds = 0.0
        """Sum of all turns."""
        self.longest = 0.0
        self.stalled = 0.0

    def turn(self, seconds: float) -> None:
        """Count one turn."""
        self.seconds += seconds
        if seconds <= BOUNDS[0]:
            self.counts[0] += 1
            return
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.longest = max(self.longest, seconds)
        if seconds > NOTICED:
            self.stalled += seconds - NOTICED


class _MeteredSelector(selectors.EpollSelector):
    """epoll that reports to the meter the time between two calls of select()."""

    def __init__(self, meter: LoopMeter) -> None:
        super().__init__()
        self._meter = meter
        self._returned: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._returned is not None:
            self._meter.turn(time.monotonic() - self._returned)
        ready = super().select(timeout)
        self._returned = time.monotonic()
        return ready


class MeteredLoop(asyncio.SelectorEventLoop):
    """An event loop with a meter."""

    def __init__(self) -> None:
        self.meter = LoopMeter()
        super().__init__(_MeteredSelector(self.meter))


def stalled(loop: asyncio.AbstractEventLoop) -> float:
    """Seconds for which a loop has been stalled so far; 0 for one without a meter."""
    return loop.meter.stalled if isinstance(loop, MeteredLoop) else 0.0
