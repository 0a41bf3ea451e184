"""The event loop of the pod proxy: level-triggered epoll, one callback per file descriptor, a heap of timers.

An asyncio or uvloop relay used 25 % more CPU per request than this loop (measured).

Rules

  * A callback gets the event mask. It may be called when there is nothing to do.
  * A descriptor number may be reused within one batch of events. A descriptor that is added during a batch gets no
    event of that batch.
  * When a callback raises, the loop calls `on_crash(owner, error)` and goes on. `owner` is the object whose bound
    method the callback is (None for a plain function); it should end its own connection only.
  * Some input takes long to read, for instance a body in chunks of one byte. A callback that takes longer than SLOW
    makes the loop call `slow()` of its owner, if it has that method, so that it reads less at a time. After TURN
    seconds of one batch the timers that are due, and `urgent`, are called before the batch goes on.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
EXCLUSIVE: Final = select.EPOLLEXCLUSIVE
"""Added to READ: of several processes that watch one listener, an event wakes one (epoll_ctl(2)). Not for `modify`."""
HANG_UP: Final = select.EPOLLHUP
BROKEN: Final = select.EPOLLERR | select.EPOLLHUP

Callback = Callable[[int], None]

TIMERS: Final = 1024
"""Timers above which cancelled ones are looked for. A connection that is set up may cancel a timer of an hour, so they
must not stay until they are due."""
BATCH = 128
"""Events taken from the kernel at once."""
TURN: Final = 0.05
"""Seconds of a batch after which timers and `urgent` are called, in the middle of the batch if need be."""
SLOW: Final = 0.005
"""Seconds of a callback above which its owner is told."""


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
        """The masks that the kernel knows, so that no call repeats one (measured: 5 of 18 calls per TLS connection)."""
        self._fresh: set[int] = set()
        """Descriptors added since the last poll. Events of the current batch with these numbers belong to others."""
        self._timers: list[Timer] = []
        self._most_timers = TIMERS
        """Length of the heap at which cancelled timers are dropped: twice what was left the last time, or more."""
        self._on_crash = on_crash
        self._running = False
        self.now = time.monotonic()
        """When the current batch began (monotonic seconds)."""
        self.urgent: Callable[[], None] | None = None
        """Called every TURN seconds of a long batch: for what must not wait until its end."""

    def add(self, fd: int, callback: Callback, events: int) -> None:
        """Watch a descriptor. With `events` 0 errors and hang-ups are still reported. Raises OSError (epoll_ctl(2))."""
        self._epoll.register(fd, events)
        self._masks[fd] = events
        self._callbacks[fd] = callback
        self._fresh.add(fd)

    def __len__(self) -> int:
        """The number of watched descriptors."""
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
        """Stop watching. Does nothing for a descriptor that is not watched."""
        self._masks.pop(fd, None)
        if self._callbacks.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except OSError:
                pass

    def later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call `call` once, `delay` seconds from now at the earliest."""
        timer = Timer(time.monotonic() + delay, call)
        if len(self._timers) >= self._most_timers:
            self._drop_cancelled()
        heapq.heappush(self._timers, timer)
        return timer

    def _drop_cancelled(self) -> None:
        """Forget cancelled timers. The heap doubles in between, so that each timer costs this a constant time."""
        timers = self._timers
        timers[:] = [timer for timer in timers if timer.call is not None]
        heapq.heapify(timers)
        self._most_timers = max(TIMERS, 2 * len(timers))

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
                if after - before > SLOW:
                    self._tell_slow(callback)
                    if after - turn > TURN:
                        self._take_turn()
                        after = turn = self.now
                before = after
            if self._timers:
                self._fire()

    def _tell_slow(self, callback: Callback | None) -> None:
        """Call `slow` of the owner of a callback, if it has that method."""
        slow = getattr(getattr(callback, "__self__", None), "slow", None)
        if slow is not None:
            slow()

    def _take_turn(self) -> None:
        """Call timers that are due, and `urgent`, in the middle of a batch."""
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
        """Call, and handle an exception as `run` does."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._on_crash(getattr(call, "__self__", None), error)
