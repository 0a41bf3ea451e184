"""Decides by their load how many processes of a pod proxy serve. Sans-IO.

    steady
      | all that serve, taken together, use more than BUSY of as many processors
    busy    for GROW seconds: one more serves, steady again; less than that: steady
      | one process fewer would use less than CALM of its processors, taken together
    calm    for SHRINK seconds: one fewer serves, steady again; more than that: steady

Invariants

  * From 1 to `most` processes are wanted. A smaller `most` counts at once.
  * Between CALM and BUSY nothing changes, so that a process is not taken away because it has halved the load of the
    other.
  * Time is that between two looks. Who looks after a long pause has seen one interval, not the pause.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

BUSY: Final = 0.8
"""Of a processor. A process that uses this much makes others wait soon."""
CALM: Final = 0.5
"""Of each processor that would be left; well below BUSY."""
GROW: Final = 2.0
"""Seconds."""
SHRINK: Final = 60.0
"""Seconds."""


class Load:
    """The load of one pod proxy, and how many processes are wanted for it."""

    __slots__ = ("_busy", "_calm", "_most", "wanted")

    def __init__(self, most: int) -> None:
        self._most = most
        self._busy = 0.0
        """Seconds for which it has been busy, 0 while it is not ..."""
        self._calm = 0.0
        """... or calm."""
        self.wanted = 1
        """Processes that are to serve."""

    def limit(self, most: int) -> None:
        """There may be this many from now on, one at least."""
        self._most = most
        self.wanted = min(self.wanted, most)

    def observe(self, used: Collection[float], elapsed: float, *, leaving: int = 0) -> bool:
        """Learn how much of a processor each process that serves has used in the last `elapsed` seconds.

        Returns whether another number is wanted now. While fewer or more serve than are wanted nothing is concluded. As
        many as are `leaving` serve no more and have not ended: together they are never more than `most` by growing.
        """
        together, count = sum(used), len(used)
        settled = count == self.wanted
        self._busy = self._busy + elapsed if settled and together > BUSY * count else 0.0
        self._calm = self._calm + elapsed if settled and together < CALM * (count - 1) else 0.0
        if self._busy >= GROW and self.wanted + leaving < self._most:
            self._want(self.wanted + 1)
        elif self._calm >= SHRINK:
            self._want(self.wanted - 1)
        else:
            return False
        return True

    def _want(self, count: int) -> None:
        self.wanted = count
        self._busy = self._calm = 0.0
