"""How long changes are gathered before they are looked at together. Pure; the caller says what time it is.

After a quiet time a change is looked at `least` seconds after it came. `burst` looks may follow each other like that;
while changes keep coming there are `rate` a second, and never so many that the work takes more than `SHARE` of the
event loop's time. So one who changes objects all the time delays others' changes by a second, and saturates nothing.
"""

from __future__ import annotations

from sidestep.aio.allowance import Allowance

SHARE = 0.2
"""The part of the event loop's time that the work may take."""
MOST = 2.0
"""Seconds that gathering takes at most."""


class Gathering:
    """Debounces changes: ask for `pause` at the first change, report with `took` what processing them cost."""

    def __init__(self, *, least: float, rate: float, burst: float, now: float) -> None:
        self._least = least
        self._looks = Allowance(rate=rate, burst=burst, now=now)
        self._rest = 0.0

    def took(self, seconds: float) -> None:
        """Note how many seconds of the loop's time the last processing took."""
        self._rest = seconds * (1 / SHARE - 1)

    def pause(self, now: float) -> float:
        """Seconds to wait before the changes are processed."""
        wait = 0.0
        if not self._looks.take(now):
            wait = self._looks.wait()
            self._looks.take(now + wait)
        return min(MOST, max(self._least, wait, self._rest))
