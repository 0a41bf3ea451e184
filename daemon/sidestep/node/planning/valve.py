"""The overload valve of a steered port: a proxy that cannot keep up loses the port to the app for a while.

In: the length of the accept queue, and `now`, at every look. Out: whether the port may be steered. The proxy goes on
accepting while the valve is shut (unsteering only keeps new connections away), so the queue empties by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE = 1.0
"""Seconds for which the queue must be more than half full."""
FIRST_PAUSE = 2.0
LAST_PAUSE = 60.0
"""Seconds that the valve stays shut: first, doubling up to the last while it has to shut again soon."""


@dataclass(slots=True)
class Valve:
    """One port's valve, open at first."""

    _crowded_since: float | None = None
    _shut_until: float | None = None
    _opened: float = 0.0
    _pause: float = FIRST_PAUSE

    @property
    def shut(self) -> bool:
        """Whether the port is to be left to the app."""
        return self._shut_until is not None

    @property
    def watching(self) -> bool:
        """Whether the next look matters although nothing else has changed."""
        return self._crowded_since is not None or self._shut_until is not None

    def look(self, *, length: int, limit: int, now: float) -> None:
        """Take what the queue is like: connections that wait, and how many may."""
        crowded = 2 * length > limit
        if self._shut_until is not None:
            if now >= self._shut_until and not crowded:
                self._shut_until, self._opened = None, now
            return
        if not crowded:
            self._crowded_since = None
            return
        if self._crowded_since is None:
            self._crowded_since = now
        if now - self._crowded_since >= PATIENCE:
            self._crowded_since = None
            if now - self._opened > LAST_PAUSE:
                self._pause = FIRST_PAUSE
            self._shut_until = now + self._pause
            self._pause = min(2 * self._pause, LAST_PAUSE)
