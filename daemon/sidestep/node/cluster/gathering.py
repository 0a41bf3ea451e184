"""Debounce interval for changes that are processed together. Pure; the caller passes the time.

After a quiet period a change is processed `least` seconds after it arrived, up to `burst` times in a row. While changes
keep arriving, they are processed `rate` times a second, and no more often than `SHARE` of the event loop's time
permits. A user who changes objects continuously thus delays the changes of others by a second and saturates nothing.
"""

from __future__ import annotations

from sidestep.aio.token_bucket import TokenBucket

SHARE = 0.2
"""Fraction of the event loop's time that the processing may take."""
MOST = 2.0
"""Seconds; upper bound of the interval."""


class Gathering:
    """Debounces changes: ask for `pause` at the first change, report with `took` what processing them cost."""

    def __init__(self, *, least: float, rate: float, burst: float, now: float) -> None:
        self._least = least
        self._looks = TokenBucket(rate=rate, burst=burst, now=now)
        self._rest = 0.0

    def took(self, seconds: float) -> None:
        """Record the seconds of the loop's time that the last processing took."""
        self._rest = seconds * (1 / SHARE - 1)

    def pause(self, now: float) -> float:
        """Seconds to wait before the changes are processed."""
        wait = 0.0
        if not self._looks.take(now):
            wait = self._looks.wait()
            self._looks.take(now + wait)
        return min(MOST, max(self._least, wait, self._rest))
