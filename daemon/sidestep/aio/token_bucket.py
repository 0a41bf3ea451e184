"""Token buckets: rate limits that allow bursts. They read no clock: the caller passes `now`, in seconds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class TokenBucket:
    """Holds at most `burst` tokens, starts full, and gains `rate` tokens per second."""

    __slots__ = ("_burst", "_filled", "_rate", "_tokens")

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` tokens and return True, or take nothing and return False when there are fewer."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def change_rate(self, rate: float) -> None:
        """Gain so many tokens per second from now on."""
        self._rate = rate

    def level(self, now: float) -> float:
        """The tokens that are there."""
        return min(self._burst, self._tokens + max(0.0, now - self._filled) * self._rate)

    def wait(self) -> float:
        """Seconds after the last `take` until one token is there."""
        return max(0.0, (1.0 - self._tokens) / self._rate)


class TokenBuckets:
    """One bucket for each of at most `size` keys; the least recently used key is forgotten."""

    def __init__(self, *, rate: float, burst: float, size: int) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._each: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, key: Hashable, now: float) -> bool:
        """Take one token of this key and return True, or return False when it has none."""
        found = self._each.get(key)
        if found is None:
            found = self._each[key] = TokenBucket(rate=self._rate, burst=self._burst, now=now)
            if len(self._each) > self._size:
                self._each.popitem(last=False)
        else:
            self._each.move_to_end(key)
        return found.take(now)
