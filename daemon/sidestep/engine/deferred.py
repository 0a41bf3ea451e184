"""What is of no consequence for client and app, done a moment after they have been served.

Copying a request costs more than relaying it: on a quiet machine requests took 1.5 times as long when they were copied
before they were written to the app. So copies are only noted where requests are read, in order; the shell has them made
(`run`) a bounded time later, and at once when `size` says that much waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

CALL: Final = 256
"""Bytes that a call counts for in itself."""
ALL: Final = 1 << 62


class Deferred:
    """Calls that wait, of one client connection."""

    __slots__ = ("_closed", "calls", "size")

    def __init__(self) -> None:
        self.calls: list[tuple[int, Callable[..., object], tuple[Any, ...]]] = []
        self.size = 0
        """Bytes that they keep alive, about."""
        self._closed = False

    def put(self, size: int, call: Callable[..., object], *args: object) -> None:
        """Note a call; `size` are the bytes that it keeps alive."""
        if not self._closed:
            size += CALL
            self.calls.append((size, call, args))
            self.size += size

    def run(self, most: int = ALL) -> None:
        """Do what waits, at most so many calls, in the order in which they were noted."""
        while self.calls and most > 0:
            calls = self.calls[:most]
            del self.calls[:most]
            most -= len(calls)
            for size, call, args in calls:
                self.size -= size
                call(*args)

    def close(self) -> None:
        """Forget what waits and whatever is noted later."""
        self._closed = True
        self.calls.clear()
        self.size = 0
