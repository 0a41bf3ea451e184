"""A leaky bucket for frames that are normal once and a flood at a thousand a second.

The engine has no clock. The connection's ticks (`http2.Http2Relay.expired`) let the bucket leak, and are only asked for
while it is more than a quarter full, so that a connection that lives for days costs none for a PING every ten seconds.
"""

from __future__ import annotations


class Rate:
    """`level` events, less `leak` for each tick; more than `burst` are too many."""

    __slots__ = ("burst", "leak", "level")

    def __init__(self, burst: int, leak: int) -> None:
        self.burst = burst
        self.leak = leak
        self.level = 0

    def count(self) -> bool:
        """One more; whether that is too many."""
        self.level += 1
        return self.level > self.burst

    @property
    def wants_time(self) -> bool:
        """Whether ticks are needed."""
        return self.level * 4 > self.burst

    def tick(self) -> None:
        """A tick has passed."""
        self.level = max(0, self.level - self.leak)
