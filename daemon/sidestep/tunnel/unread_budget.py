"""Bounds the unread bytes of all tunnels of a node together. Pure accounting.

Receive windows bound a single tunnel, to 112 MiB with every stream stalled. A node can have a thousand tunnels, so
their sum has a limit as well: above it, the holder with the most unread bytes must `shed` some (a connection resets its
fullest stream). A tunnel whose data is read holds almost nothing and is never affected. Window growth takes at most
half of the limit for all tunnels, and an eighth for one.
"""

from __future__ import annotations

from typing import Protocol

from sidestep.tunnel.window import WindowPool

LIMIT = 64 * 1024 * 1024
"""Bytes. The daemon itself takes about 60 MiB."""


class UnreadHolder(Protocol):
    """An owner of unread bytes."""

    def shed(self) -> None:
        """Release some: call `UnreadBudget.subtract` for at least one byte."""


class UnreadBudget:
    """The budget shared by all tunnels of a node."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._unread_by_holder: dict[UnreadHolder, int] = {}
        self._windows = WindowPool(limit // 2)
        self.total = 0
        """Unread bytes of all holders."""
        self.shed_count = 0
        """Number of times that a holder had to release bytes."""

    def windows(self, most: int) -> WindowPool:
        """Return the pool for window growth of one tunnel, at most `most` bytes."""
        return WindowPool(min(most, self._limit // 8), parent=self._windows)

    def add(self, holder: UnreadHolder, size: int) -> None:
        """Count `size` more unread bytes of `holder`. Above the limit, makes the largest holder shed at once."""
        self._unread_by_holder[holder] = self._unread_by_holder.get(holder, 0) + size
        self.total += size
        while self.total > self._limit:
            before = self.total
            self.shed_count += 1
            max(self._unread_by_holder, key=self._unread_by_holder.__getitem__).shed()
            if self.total >= before:
                break

    def subtract(self, holder: UnreadHolder, size: int) -> None:
        """Count `size` fewer unread bytes of `holder`."""
        left = self._unread_by_holder.get(holder, 0) - size
        self.total -= size
        if left > 0:
            self._unread_by_holder[holder] = left
        else:
            self._unread_by_holder.pop(holder, None)
