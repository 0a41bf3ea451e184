"""A token bucket: so many at once, then so many a second. Pure; the caller says what time it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable


class Allowance:
    """`burst` at once, `rate` a second after that."""

    __slots__ = ("_burst", "_filled", "_rate", "_tokens")

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = now

    def take(self, now: float, amount: float = 1.0) -> bool:
        """Whether one more, or `amount`, is allowed; it is then taken."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def wait(self) -> float:
        """Seconds after the last `take` until one more will be allowed."""
        return max(0.0, (1.0 - self._tokens) / self._rate)


class Allowances:
    """One allowance for each of at most `size` keys; the key that was not asked about for longest is forgotten."""

    def __init__(self, *, rate: float, burst: float, size: int) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._each: OrderedDict[Hashable, Allowance] = OrderedDict()

    def take(self, key: Hashable, now: float) -> bool:
        """Whether this key is allowed one more; it is then taken."""
        found = self._each.get(key)
        if found is None:
            found = self._each[key] = Allowance(rate=self._rate, burst=self._burst, now=now)
            if len(self._each) > self._size:
                self._each.popitem(last=False)
        else:
            self._each.move_to_end(key)
        return found.take(now)
