"""Counts events of many keys within sliding periods, in bounded memory.

It keeps the times of the latest events of each key, as many as are asked for. Beyond MAX_KEYS keys or MAX_TIMES times
the keys whose last event is longest ago are forgotten, and counted in `forgotten`: whoever can send from very many
addresses can stay below a threshold, which no bounded memory prevents.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable

MAX_KEYS = 4096
"""Keys that are remembered at once; about 300 bytes each."""
MAX_TIMES = 65536
"""Times of all keys together; 8 bytes each."""


class SlidingCounts:
    """The argument `now` of all methods is in seconds, and does not go backwards."""

    def __init__(self, *, max_keys: int = MAX_KEYS, max_times: int = MAX_TIMES) -> None:
        self._max_keys = max_keys
        self._max_times = max_times
        self._times: OrderedDict[Hashable, array[float]] = OrderedDict()
        self._held = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._times)

    def reaches(self, key: Hashable, count: int, period: float, now: float) -> bool:
        """Count an event; whether it is at least the `count`-th of its key within the last `period` seconds."""
        times = self._recent(key, period, now)
        self._add(key, times, now)
        if len(times) > count:
            del times[0]
            self._held -= 1
        return len(times) >= count

    def admits(self, key: Hashable, count: int, period: float, now: float) -> bool:
        """Count an event unless `count` of its key were counted within the last `period` seconds; whether it was."""
        times = self._recent(key, period, now)
        if len(times) >= count:
            return False
        self._add(key, times, now)
        return True

    def _recent(self, key: Hashable, period: float, now: float) -> array[float]:
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = array("d")
        else:
            self._times.move_to_end(key)
        old = bisect_right(times, now - period)
        if old:
            del times[:old]
            self._held -= old
        return times

    def _add(self, key: Hashable, times: array[float], now: float) -> None:
        times.append(now)
        self._held += 1
        while len(self._times) > self._max_keys or self._held > self._max_times:
            oldest, its_times = next(iter(self._times.items()))
            if oldest == key:
                break
            del self._times[oldest]
            self._held -= len(its_times)
            self.forgotten += 1
