"""Deferred mirroring work: runs a moment after the bytes that client and app see are written.

Copying a request costs more than relaying it: on a quiet machine requests took 1.5 times as long when they were copied
before they were written to the app. So the engine only queues calls, in the order of the requests; the shell runs them
(`run`) a bounded time later. The queue is bounded: above FULL bytes copying is synchronous.

`catch_up` runs while a client is served. An exception there does not end that client's connection: the next `run`
raises it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, NoReturn

CALL: Final = 256
"""Bytes that a call counts for in itself."""
FULL: Final = 64 * 1024
"""Bytes above which nothing more waits."""


class Deferred:
    """Calls that wait, of one client connection."""

    __slots__ = ("_closed", "calls", "caught_up", "size")

    def __init__(self) -> None:
        self.calls: list[tuple[int, Callable[..., object], tuple[Any, ...]]] = []
        self.size = 0
        """Bytes that they keep alive; an estimate."""
        self.caught_up = 0
        """Calls done by `catch_up`; whoever counts time sets it back."""
        self._closed = False

    @property
    def is_full(self) -> bool:
        """Whether the next `put` does what waits at once."""
        return self.size > FULL

    def put(self, size: int, call: Callable[..., object], *args: object) -> None:
        """Note a call, and before that do what waits if that is too much; `size` are the bytes that it keeps alive."""
        if self.is_full:
            self.catch_up()
        self.note(size, call, *args)

    def note(self, size: int, call: Callable[..., object], *args: object) -> None:
        """Only note it. The caller has seen that there was room."""
        if not self._closed:
            size += CALL
            self.calls.append((size, call, args))
            self.size += size

    def run(self, most: int = sys.maxsize) -> None:
        """Do what waits, at most so many calls, in the order in which they were noted."""
        while self.calls and most > 0:
            calls = self.calls[:most]
            del self.calls[:most]
            most -= len(calls)
            for size, call, args in calls:
                self.size -= size
                call(*args)

    def catch_up(self) -> None:
        """Do all that waits, in the middle of serving a client."""
        self.caught_up += len(self.calls)
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - the next `run` raises it, where no client is served
            self.close()
            self.calls.append((0, _raise, (error,)))

    def close(self) -> None:
        """Forget what waits and whatever is noted later."""
        self._closed = True
        self.calls.clear()
        self.size = 0


def _raise(error: Exception) -> NoReturn:
    raise error
