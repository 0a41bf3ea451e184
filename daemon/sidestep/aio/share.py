"""Limits the processor time that one peer may use: a burst, then a fraction of the time that passes. Reads no clock.

A peer that has used up its share is not read until the share has grown again. An honest peer slows down and then sends
less. A peer that stays overdrawn for `patience` seconds is taken for hostile.

    within      the balance is positive: the peer is read
    overdrawn   the balance is zero or less: the peer is not read for `wait()` seconds
    recovered   the balance has reached half of the burst: earlier overdrafts are forgotten
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ShareLimits:
    """Limits of a share; times in seconds."""

    burst: float
    """Seconds of processor time at once."""
    share: float
    """Seconds of processor time gained per second."""
    patience: float
    """Seconds for which a peer may stay overdrawn."""

    def divided(self, peers: int) -> ShareLimits:
        """The limits of one of several peers that have a share together."""
        return replace(self, share=self.share / peers)


class Share:
    """The share of one peer. `now` is the caller's clock, in seconds."""

    __slots__ = ("_balance", "_filled", "_limits", "_since")

    def __init__(self, limits: ShareLimits, *, now: float) -> None:
        self._limits = limits
        self._balance = limits.burst
        self._filled = now
        self._since: float | None = None
        """When it became overdrawn; None when it has recovered since."""

    def spend(self, seconds: float, now: float) -> None:
        """Charge `seconds` of processor time to the peer."""
        limits = self._limits
        self._balance = min(limits.burst, self._balance + max(0.0, now - self._filled) * limits.share)
        self._filled = now
        if self._balance >= limits.burst / 2:
            self._since = None
        self._balance -= seconds
        if self._balance <= 0.0 and self._since is None:
            self._since = now

    def wait(self) -> float:
        """Seconds after the last `spend` until the peer may be read again; 0 for now."""
        return max(0.0, -self._balance / self._limits.share)

    def is_exhausted(self, now: float) -> bool:
        """Whether the peer has been overdrawn for longer than its patience."""
        return self._since is not None and now - self._since > self._limits.patience
