"""Receive windows: how much a peer may send before somebody has read it. Pure accounting.

Every stream begins with a small window that it never loses. A reader that keeps up earns a larger one, out of a pool
that all streams of the connection share; when the pool is empty, streams go on with what they have. So bulk transfers
are fast, a thousand stalled streams cost `streams * initial + pool` bytes and not a byte more, and a stream that stalls
takes nothing from another.
"""

from __future__ import annotations


class WindowPool:
    """Bytes of window that streams may have beyond their initial one."""

    __slots__ = ("_parent", "free")

    def __init__(self, size: int, *, parent: WindowPool | None = None) -> None:
        """What is taken here is taken from `parent`, too."""
        self.free = size
        self._parent = parent

    def borrow(self, size: int) -> int:
        """Take up to `size` bytes; returns how many there were."""
        taken = min(size, self.free)
        if self._parent is not None:
            taken = self._parent.borrow(taken)
        self.free -= taken
        return taken

    def give_back(self, size: int) -> None:
        """Return bytes taken before."""
        self.free += size
        if self._parent is not None:
            self._parent.give_back(size)


class ReceiveWindow:
    """The window of one stream. `size` is what may be received and unread at once (bytes)."""

    __slots__ = ("_initial", "_maximum", "_owed", "_pool", "size")

    def __init__(self, pool: WindowPool, *, initial: int, maximum: int) -> None:
        self._pool = pool
        self._initial = initial
        self._maximum = maximum
        self._owed = 0
        self.size = initial

    def consumed(self, size: int) -> int:
        """Somebody read `size` bytes. Returns the WINDOW_UPDATE increment to send now, 0 while it is not worth one."""
        self._owed += size
        if self._owed * 2 < self.size:
            return 0
        grown = self._pool.borrow(min(self.size, self._maximum - self.size))
        increment = self._owed + grown
        self.size += grown
        self._owed = 0
        return increment

    def release(self) -> None:
        """The stream is over: return what it grew by."""
        self._pool.give_back(self.size - self._initial)
        self.size = self._initial
