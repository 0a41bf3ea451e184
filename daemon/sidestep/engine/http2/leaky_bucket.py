"""A leaky bucket for frames that are normal now and then, and a flood at a thousand a second.

The relay's ticks (`Http2Relay.expired`) let the bucket leak. They are asked for only while the bucket is more than a
quarter full, so that a connection that lives for days needs none for a PING every ten seconds.
"""

from __future__ import annotations


class LeakyBucket:
    """`level` is the number of events, less `leak` for each tick; more than `burst` are too many."""

    __slots__ = ("burst", "leak", "level")

    def __init__(self, burst: int, leak: int) -> None:
        self.burst = burst
        self.leak = leak
        self.level = 0

    def count(self) -> bool:
        """Count one more event. Returns whether there are too many."""
        self.level += 1
        return self.level > self.burst

    @property
    def wants_time(self) -> bool:
        """Whether ticks are needed."""
        return self.level * 4 > self.burst

    def tick(self) -> None:
        """Learn that a tick has passed."""
        self.level = max(0, self.level - self.leak)
