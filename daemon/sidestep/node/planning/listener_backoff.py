"""When to replace a socket of ours that somebody in the pod has ended: later each time.

Pure: `now` is an argument, in seconds of a monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE = 0.1
LAST_PAUSE = 30.0
"""Seconds until a socket is replaced: first, doubling up to the last while its successors die too."""

CALM = 60.0
"""Seconds without a death after which the pause starts again at FIRST_PAUSE."""


@dataclass(slots=True)
class ListenerBackoff:
    """Schedules the replacement of one socket and of the sockets that replace it."""

    renew_at: float | None = None
    """When the socket, which is dead, is to be replaced; None while it lives."""
    _pause: float = FIRST_PAUSE
    _last: float = float("-inf")

    def died(self, now: float) -> None:
        """The socket is dead."""
        self._pause = FIRST_PAUSE if now - self._last > CALM else min(2 * self._pause, LAST_PAUSE)
        self.renew_at, self._last = now + self._pause, now

    def is_due(self, now: float) -> bool:
        """Whether the socket is to be replaced now."""
        return self.renew_at is not None and now >= self.renew_at

    def renewed(self) -> None:
        """A new socket is in use."""
        self.renew_at = None
