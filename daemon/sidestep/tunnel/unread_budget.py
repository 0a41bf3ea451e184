"""How many bytes all tunnels of a node may hold that nobody has read yet. Pure accounting.

The windows bound what one tunnel may hold, 112 MiB with every stream stalled. A node has a thousand tunnels, so their
sum is bounded here: above `limit` the holder that holds most gives up what it has, which is its business (a connection
resets its fullest stream). Who reads what arrives holds next to nothing, and is never asked. What windows
grow by comes out of half of the limit, for all tunnels, and of an eighth for one.
"""

from __future__ import annotations

from typing import Protocol

from sidestep.tunnel.window import WindowPool

LIMIT = 64 * 1024 * 1024
"""Bytes; the daemon itself takes about 60 MiB."""


class UnreadHolder(Protocol):
    """What holds unread bytes."""

    def shed(self) -> None:
        """Give up some: call `Budget.give` for at least one byte."""


class UnreadBudget:
    """One for all tunnels of a node."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._unread_by_holder: dict[UnreadHolder, int] = {}
        self._windows = WindowPool(limit // 2)
        self.total = 0
        """Bytes held now, by all."""
        self.shed_count = 0
        """How often a holder had to give something up."""

    def windows(self, most: int) -> WindowPool:
        """What the windows of one tunnel may grow by, at most `most` bytes."""
        return WindowPool(min(most, self._limit // 8), parent=self._windows)

    def add(self, holder: UnreadHolder, size: int) -> None:
        """`holder` holds `size` bytes more; maybe somebody, itself too, has to give up some at once."""
        self._unread_by_holder[holder] = self._unread_by_holder.get(holder, 0) + size
        self.total += size
        while self.total > self._limit:
            before = self.total
            self.shed_count += 1
            max(self._unread_by_holder, key=self._unread_by_holder.__getitem__).shed()
            if self.total >= before:
                break

    def subtract(self, holder: UnreadHolder, size: int) -> None:
        """`holder` holds `size` bytes less."""
        left = self._unread_by_holder.get(holder, 0) - size
        self.total -= size
        if left > 0:
            self._unread_by_holder[holder] = left
        else:
            self._unread_by_holder.pop(holder, None)
