"""Receive windows: how much a peer may send before it is read. Pure accounting.

Every stream starts with a small window, which it always keeps. A reader that keeps up earns a larger one from a pool
shared by all streams of the connection; when the pool is empty, windows do not grow. Thus bulk transfers are fast, a
thousand stalled streams cost at most `streams * initial + pool` bytes, and a stalled stream takes nothing from others.
"""

from __future__ import annotations


class WindowPool:
    """Bytes by which windows of streams may grow beyond their initial size."""

    __slots__ = ("_parent", "free")

    def __init__(self, size: int, *, parent: WindowPool | None = None) -> None:
        """Create a pool of `size` bytes. Borrowed bytes are borrowed from `parent` as well."""
        self.free = size
        self._parent = parent

    def borrow(self, size: int) -> int:
        """Borrow up to `size` bytes; returns the number of bytes borrowed."""
        taken = min(size, self.free)
        if self._parent is not None:
            taken = self._parent.borrow(taken)
        self.free -= taken
        return taken

    def give_back(self, size: int) -> None:
        """Return borrowed bytes."""
        self.free += size
        if self._parent is not None:
            self._parent.give_back(size)


class ReceiveWindow:
    """The window of one stream. `size` is the number of bytes that may be received and unread at once."""

    __slots__ = ("_initial", "_maximum", "_owed", "_pool", "size")

    def __init__(self, pool: WindowPool, *, initial: int, maximum: int) -> None:
        self._pool = pool
        self._initial = initial
        self._maximum = maximum
        self._owed = 0
        self.size = initial

    def consumed(self, size: int) -> int:
        """Record that `size` bytes were read. Returns the WINDOW_UPDATE increment to send now; 0 while it is too
        small.
        """
        self._owed += size
        if self._owed * 2 < self.size:
            return 0
        grown = self._pool.borrow(min(self.size, self._maximum - self.size))
        increment = self._owed + grown
        self.size += grown
        self._owed = 0
        return increment

    def release(self) -> None:
        """Return the growth to the pool when the stream is over."""
        self._pool.give_back(self.size - self._initial)
        self.size = self._initial
