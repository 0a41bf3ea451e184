"""When to start a crashed process again, and when its crashes are a loop. Pure: `now` is an argument.

The first restart comes after milliseconds, because clients wait in the accept queue and most crashes are single. The
pause doubles with every crash that follows. `crashes` of them within `window` seconds are a *loop*: the owner unsteers,
so that the app serves, and starts are tried rarely. A loop ends when a process has lived longer than `window`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec


class Backoff(msgspec.Struct, frozen=True):
    """The pauses, in seconds, and the number of crashes that make a loop (docs/design.md, "Failure")."""

    first: float = 0.010
    longest: float = 5.0
    window: float = 30.0
    crashes: int = 5
    loop_pause: float = 30.0
    """Between tries once it is a loop."""


class Verdict(msgspec.Struct, frozen=True):
    """Start again after `pause` seconds; `looping` says whether it is a crash loop."""

    pause: float
    looping: bool


@dataclass(slots=True)
class CrashHistory:
    """The crashes of one process and its successors."""

    backoff: Backoff = field(default_factory=Backoff)
    _recent: deque[float] = field(default_factory=deque)
    _looping: bool = False

    def crashed(self, now: float, *, lived: float = 0.0) -> Verdict:
        """Record a crash (or a failed start) after `lived` seconds of life; `now` is monotonic seconds."""
        backoff = self.backoff
        if lived > backoff.window:
            self._looping = False
        while self._recent and now - self._recent[0] > backoff.window:
            self._recent.popleft()
        self._recent.append(now)
        self._looping = self._looping or len(self._recent) >= backoff.crashes
        if self._looping:
            return Verdict(backoff.loop_pause, looping=True)
        doublings = len(self._recent) - 1
        return Verdict(min(backoff.first * 2**doublings, backoff.longest), looping=False)
