"""The bounded queue of one connection's mirror events: filled while a client is served, consumed a moment later.

Consuming an event (copying a request, say) costs more than relaying it: on a quiet machine requests took 1.5 times as
long when they were copied before they were written to the app. So relays only queue events; the shell has them consumed
(`run`) a bounded time later, in order.

The queue is bounded in bytes, and so in number, because every event counts for at least EVENT bytes:

    up to FULL    events wait
    above FULL    the next event has everything before it consumed at once (`catch_up`), if `may_catch_up` allows that:
                  consumers may have used up their share of time. Otherwise the event is dropped and counted in a `Gap`,
                  which stands in the queue where the event would have stood

Events of which a client causes few, and without which sinks would be wrong about the connection, are never dropped
(`put_always`). Those that a client may cause many of are dropped above OVERFULL.

`catch_up` runs while a client is served. An exception there does not end that client's connection: the next `run`
raises it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from sidestep.engine.mirror.events import Event, Gap

EVENT: Final = 256
"""Bytes that an event counts for beside its data."""
FULL: Final = 64 * 1024
"""Bytes above which nothing more waits, ..."""
OVERFULL: Final = 4 * FULL
"""... but for events that sinks should not miss. A client can divert 2,000 HTTP/2 streams in one read."""


def _always() -> bool:
    return True


class EventQueue:
    """See the module. `events` are those that wait, each with the bytes that it counts for."""

    __slots__ = ("_closed", "_consume", "_error", "_may_catch_up", "caught_up", "events", "size")

    def __init__(self, consume: Callable[[Event], None], may_catch_up: Callable[[], bool] = _always) -> None:
        self._consume = consume
        self._may_catch_up = may_catch_up
        self._closed = False
        self._error: Exception | None = None
        self.events: list[tuple[int, Event]] = []
        self.size = 0
        """Bytes that they keep alive; an estimate."""
        self.caught_up = 0
        """Events consumed by `catch_up`; whoever counts time sets it back."""

    @property
    def is_full(self) -> bool:
        """Whether the next `put` has no room yet."""
        return self.size > FULL

    def put(self, event: Event, size: int = 0, exchange: int = 0) -> bool:
        """Queue an event that keeps `size` bytes alive, with room made for it; False when it was dropped.

        `exchange` is the event's own, for the gap.
        """
        if self.size > FULL:
            if not self._may_catch_up():
                self._drop(size, exchange)
                return False
            self.catch_up()
        self.note(event, size)
        return True

    def put_always(self, event: Event, size: int = 0, *, most: int = sys.maxsize) -> None:
        """As `put`, but an event for which no room can be made is queued all the same, unless more than `most` wait."""
        if self.size > FULL and self._may_catch_up():
            self.catch_up()
        if self.size > most:
            self._drop(size, None)
        else:
            self.note(event, size)

    def note(self, event: Event, size: int = 0) -> None:
        """Queue an event. The caller has seen that there is room."""
        if not self._closed:
            size += EVENT
            self.events.append((size, event))
            self.size += size

    def _drop(self, size: int, exchange: int | None) -> None:
        if self._closed:
            return
        last = self.events[-1][1]
        if isinstance(last, Gap):
            gap = last
        else:
            gap = Gap()
            self.events.append((0, gap))
        gap.events += 1
        gap.size += size
        if exchange is not None:
            gap.exchanges.add(exchange)

    def run(self, most: int = sys.maxsize) -> None:
        """Have events consumed, at most so many, in order. Raises what their consumer raises."""
        if self._error is not None:
            error, self._error = self._error, None
            self.events.clear()
            raise error
        while self.events and most > 0:
            events = self.events[:most]
            del self.events[:most]
            most -= len(events)
            for size, event in events:
                self.size -= size
                self._consume(event)

    def catch_up(self) -> None:
        """Have all events consumed, in the middle of serving a client."""
        self.caught_up += len(self.events)
        try:
            self.run()
        except Exception as error:  # noqa: BLE001 - the next `run` raises it, where no client is served
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Close; the next `run` raises the error."""
        self.close()
        self._error = error
        self.events.append((0, Gap()))  # something waits, so that `run` is called

    def close(self) -> None:
        """Forget what waits, and whatever is queued later."""
        self._closed = True
        self.events.clear()
        self.size = 0
