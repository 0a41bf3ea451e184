"""The share of processor time that mirroring may take: a token bucket of seconds.

plenty      copies are made
spent       the bucket is empty: no copy is begun until it holds `resume` seconds again
overdrawn   copies that had begun took `debt` seconds more: they are cut short, too
"""

from __future__ import annotations

import msgspec
from msgspec.structs import replace


class BudgetLimits(msgspec.Struct, frozen=True):
    """The share is of one processor's time; all other values are seconds."""

    share: float = 0.1
    burst: float = 0.2
    """The most that the bucket holds: what may be taken at once after a time without copies."""
    resume: float = 0.005
    debt: float = 0.1
    """What copies that had begun may take beyond that. The bucket never falls below twice as much."""


class CopyBudget:
    """See the module."""

    __slots__ = ("_limits", "_seconds", "_when", "is_spent")

    def __init__(self, limits: BudgetLimits, now: float) -> None:
        self._limits = limits
        self._seconds = limits.burst
        self._when = now
        self.is_spent = False

    def limit(self, share: float) -> None:
        """Gain this share of one processor's time from now on."""
        self._limits = replace(self._limits, share=share)

    @property
    def is_overdrawn(self) -> bool:
        """See the module."""
        return self.is_spent and self._seconds < -self._limits.debt

    @property
    def due(self) -> float | None:
        """When copies may be begun again; None while they may."""
        if not self.is_spent:
            return None
        return self._when + (self._limits.resume - self._seconds) / self._limits.share

    def spend(self, seconds: float, now: float) -> None:
        """Copying took so long; 0: only time has passed."""
        limits = self._limits
        filled = self._seconds + max(0.0, now - self._when) * limits.share
        self._seconds = max(min(limits.burst, filled) - seconds, -2 * limits.debt)
        self._when = max(now, self._when)
        if self._seconds <= 0:
            self.is_spent = True
        elif self._seconds >= limits.resume:
            self.is_spent = False
