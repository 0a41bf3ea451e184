"""The event loop of the pod proxy: level-triggered epoll, one callback per file descriptor, a heap of timers.

Bare on purpose: an asyncio or uvloop protocol relay measured 25 % more CPU per request than this loop. A callback gets
the event mask and must tolerate being called when there is nothing to do. A descriptor number may be reused within one
batch of events: what is added during a batch gets no event of it. A callback that raises takes down its own connection
only: the loop hands the exception to `on_crash` together with the callback and goes on.

Clients can send what is dear to read (chunks of a byte each). A batch of such events keeps neither timers nor whoever
is `urgent` waiting until its end, and the owner of a dear event is told (`dear`), so that it takes smaller bites.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
HANG_UP: Final = select.EPOLLHUP
BROKEN: Final = select.EPOLLERR | select.EPOLLHUP

Callback = Callable[[int], None]

BATCH = 128
"""Events taken from the kernel at once."""
TURN: Final = 0.05
"""Seconds after which timers and `urgent` get a turn, in the middle of a batch if need be."""
DEAR: Final = 0.005
"""Seconds of an event that are too many."""


class Timer:
    """A call that is due at `when` (monotonic seconds); `cancel` makes it a no-op."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None] | None) -> None:
        self.when = when
        self.call = call

    def cancel(self) -> None:
        """Never call it."""
        self.call = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop:
    """epoll with callbacks and timers. Not thread-safe; one per process."""

    def __init__(self, *, on_crash: Callable[[object, Exception], None]) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._masks: dict[int, int] = {}
        """What the kernel has been told, so that it is not told again (measured: 5 of 18 calls per TLS connection)."""
        self._fresh: set[int] = set()
        """Descriptors added since the last poll: events in hand that bear their numbers were meant for others."""
        self._timers: list[Timer] = []
        self._on_crash = on_crash
        self._running = False
        self.now = time.monotonic()
        self.urgent: Callable[[], None] | None = None
        """Called now and then while events are many: who must not wait for their end."""

    def add(self, fd: int, callback: Callback, events: int) -> None:
        """Watch a descriptor. `events` 0 still reports errors and hang-ups."""
        self._epoll.register(fd, events)
        self._masks[fd] = events
        self._callbacks[fd] = callback
        self._fresh.add(fd)

    def __len__(self) -> int:
        """Descriptors watched."""
        return len(self._callbacks)

    def rebind(self, fd: int, callback: Callback, events: int) -> None:
        """Give a watched descriptor another callback and mask."""
        self._callbacks[fd] = callback
        self.modify(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Change the mask of a watched descriptor."""
        if self._masks.get(fd) != events:
            self._epoll.modify(fd, events)
            self._masks[fd] = events

    def remove(self, fd: int) -> None:
        """Stop watching; a descriptor that is not watched is not an error."""
        self._masks.pop(fd, None)
        if self._callbacks.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass

    def later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call after `delay` seconds."""
        timer = Timer(time.monotonic() + delay, call)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        """Leave `run` after the current callback."""
        self._running = False

    def close(self) -> None:
        """Release the epoll descriptor; the watched ones stay open."""
        self._epoll.close()

    def run(self) -> None:
        """Dispatch until `stop`."""
        self._running = True
        poll = self._epoll.poll
        callbacks = self._callbacks
        fresh = self._fresh
        monotonic = time.monotonic
        while self._running:
            fresh.clear()
            events = poll(self._pause(), BATCH)
            self.now = turn = before = monotonic()
            for fd, mask in events:
                callback = callbacks.get(fd)
                if callback is not None and fd not in fresh:
                    try:
                        callback(mask)
                    except Exception as error:  # noqa: BLE001 - the one fence: a bug ends one connection, not the pod's
                        self._on_crash(getattr(callback, "__self__", None), error)
                after = monotonic()
                if after - before > DEAR:
                    self._tell(callback)
                    if after - turn > TURN:
                        self._take_turn()
                        after = turn = self.now
                before = after
            if self._timers:
                self._fire()

    def _tell(self, callback: Callback | None) -> None:
        """Let the owner of a callback know that it was dear."""
        dear = getattr(getattr(callback, "__self__", None), "dear", None)
        if dear is not None:
            dear()

    def _take_turn(self) -> None:
        """In the middle of a batch: timers, and who is urgent."""
        self.now = time.monotonic()
        self._fire()
        if self.urgent is not None:
            self._guard(self.urgent)
            self.now = time.monotonic()

    def _pause(self) -> float:
        timers = self._timers
        while timers and timers[0].call is None:
            heapq.heappop(timers)
        return max(0.0, timers[0].when - time.monotonic()) if timers else -1

    def _fire(self) -> None:
        timers = self._timers
        now = self.now
        while timers and (timers[0].call is None or timers[0].when <= now):
            call = heapq.heappop(timers).call
            if call is not None:
                self._guard(call)

    def _guard(self, call: Callable[[], None]) -> None:
        """Call behind the same fence as `run` does."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._on_crash(getattr(call, "__self__", None), error)
