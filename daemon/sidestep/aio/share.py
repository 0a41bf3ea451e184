"""Limits the processor time that one peer may use: a burst, then a fraction of the time that passes. Reads no clock.

A peer that has used up its share is not read until the share has grown again. An honest peer slows down and then sends
less. A peer that stays overdrawn for `patience` seconds is taken for hostile.

    within      the balance is positive: the peer is read
    overdrawn   the balance is zero or less: the peer is not read for `wait()` seconds
    recovered   the balance has reached half of the burst: earlier overdrafts are forgotten

Several peers may divide a share. Each gains its part only, and is slowed earlier than one that has all of it; none is
taken for hostile, because the others may leave theirs unused.
"""

from __future__ import annotations

import msgspec


class ShareLimits(msgspec.Struct, frozen=True):
    """Limits of a share; times in seconds."""

    burst: float
    """Seconds of processor time at once."""
    share: float
    """Seconds of processor time gained per second."""
    patience: float
    """Seconds for which a peer may stay overdrawn."""


class Share:
    """The share of one peer. `now` is the caller's clock, in seconds."""

    __slots__ = ("_balance", "_filled", "_gain", "_is_whole", "_limits", "_since")

    def __init__(self, limits: ShareLimits, *, now: float) -> None:
        self._limits = limits
        self._gain = limits.share
        self._is_whole = True
        self._balance = limits.burst
        self._filled = now
        self._since: float | None = None
        """When it became overdrawn; None when it has recovered since."""

    def divide(self, peers: int) -> None:
        """Gain 1/peers of the share from now on."""
        self._gain = self._limits.share / peers
        if self._is_whole is not (peers == 1):
            self._is_whole = peers == 1
            self._since = None

    def spend(self, seconds: float, now: float) -> None:
        """Charge `seconds` of processor time to the peer."""
        limits = self._limits
        self._balance = min(limits.burst, self._balance + max(0.0, now - self._filled) * self._gain)
        self._filled = now
        if self._balance >= limits.burst / 2:
            self._since = None
        self._balance -= seconds
        if self._balance <= 0.0 and self._since is None and self._is_whole:
            self._since = now

    def wait(self) -> float:
        """Seconds after the last `spend` until the peer may be read again; 0 for now."""
        return max(0.0, -self._balance / self._gain)

    def is_exhausted(self, now: float) -> bool:
        """Whether the peer has been overdrawn for longer than its patience."""
        return self._since is not None and now - self._since > self._limits.patience
