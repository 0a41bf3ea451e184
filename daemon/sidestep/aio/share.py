"""The share of processor time that one peer may cost: so much at once, then a part of the time that passes. Pure.

A peer whose share is used up is not listened to until it has grown again. That slows an honest peer down, which then
asks for less; one that goes on for `patience` seconds never meant to be understood.

    within      the balance is positive
    overdrawn   it is not; `wait` says for how long
    calm again  the balance has reached half of the burst: what was overdrawn before is forgotten
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShareLimits:
    """Limits of a share; times in seconds."""

    burst: float
    """Seconds of processor time at once."""
    share: float
    """Seconds of it per second after that."""
    patience: float
    """Seconds for which a peer may be overdrawn."""


class Share:
    """The share of one peer. `now` is the caller's clock, in seconds."""

    __slots__ = ("_balance", "_filled", "_limits", "_since")

    def __init__(self, limits: ShareLimits, *, now: float) -> None:
        self._limits = limits
        self._balance = limits.burst
        self._filled = now
        self._since: float | None = None
        """When it was first overdrawn; None: it is calm."""

    def spend(self, seconds: float, now: float) -> None:
        """Note what the peer has just cost."""
        limits = self._limits
        self._balance = min(limits.burst, self._balance + max(0.0, now - self._filled) * limits.share)
        self._filled = now
        if self._balance >= limits.burst / 2:
            self._since = None
        self._balance -= seconds
        if self._balance <= 0.0 and self._since is None:
            self._since = now

    def wait(self) -> float:
        """Seconds after the last `spend` until the peer may be listened to; 0: now."""
        return max(0.0, -self._balance / self._limits.share)

    def is_exhausted(self, now: float) -> bool:
        """Whether it has been overdrawn for too long."""
        return self._since is not None and now - self._since > self._limits.patience
