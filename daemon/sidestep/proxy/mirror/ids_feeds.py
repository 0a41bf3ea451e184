"""The pipes to the pod's IDS: packets go in as a stream of libpcap's format, bounded, and never wait for the reader.

The daemon hands over a pipe for each Suricata that it starts (`messages.FeedIds`); this process then has its only
writing end, so that Suricata ends with it. The daemon has written what stands before the first packet.

States of a pipe

    current     new connections are fed to it
    retired     a newer one is current: connections that it has been fed from the beginning stay with it, for at most
                RETIRED seconds. So rules change without a packet lost
    ending      nothing is fed to it any more; it closes once what waits is written, or after LAST seconds
    over        closed: its reader is gone, or nobody needs it any more

Invariants

  * Packets are written whole, or left out whole: a stream that misses a byte cannot be read from there on.
  * At most WAITING bytes wait here, beside those in the pipe itself; END more for the ends of connections.
  * What waits is written MOMENT seconds later, or after the events at hand once it is EAGER bytes: one system call for
    many packets, which wakes the reader once. A pipe without room is tried again AGAIN seconds later: were the loop
    asked for its first free page, each page would be one system call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import thread_time, time_ns
from typing import Final

from sidestep.protocols.pcap_stream import RECORD, record
from sidestep.proxy.io.loop import BROKEN, Loop, Timer

WAITING: Final = 256 * 1024
END: Final = 64 * 1024
RETIRED: Final = 30.0
MOMENT: Final = 0.02
EAGER: Final = 32 * 1024
AGAIN: Final = 0.01
LAST: Final = 1.0
"""Seconds within which the reader has to take what waits at the end: an IDS that still reads has it in milliseconds."""
MADE: Final = 0.0000015
"""Processor seconds that a packet takes until it waits here, about."""

Spend = Callable[[float], None]
"""Is told of processor seconds that the feed has taken."""


class IdsPipe:
    """One pipe. Owns `fd`, which does not block."""

    def __init__(self, loop: Loop, fd: int, spend: Spend) -> None:
        self._loop = loop
        self._fd = fd
        self._spend = spend
        self._out: list[bytes | memoryview] = []
        """Packets in parts, in threes."""
        self._rest = memoryview(b"")
        """What was taken out of it, and is not written yet."""
        self._waiting = 0
        """Bytes of both."""
        self._feeds: set[object] = set()
        self._timer: Timer | None = None
        self._is_soon = False
        """It does not wait for MOMENT."""
        self._is_full = False
        """The pipe had no room the last time."""
        self._is_retired = False
        self._at = 0
        self._closes: float | None = None
        """When it is closed, whatever waits."""
        loop.add(fd, self._ready, 0)

    @property
    def is_over(self) -> bool:
        """Whether it is closed."""
        return self._fd < 0

    def write(self, head: bytes, data: bytes | memoryview = b"", *, ends: bool = False) -> bool:
        """As `engine.mirror.ids_feed.PacketPipe.write`."""
        size = len(head) + len(data)
        waiting = self._waiting + RECORD + size
        if waiting > WAITING or self._fd < 0:
            waiting = self._make_room(RECORD + size, WAITING + END if ends else WAITING)
            if not waiting:
                return False
        at = time_ns()
        if at < self._at:
            at = self._at
        self._at = at
        self._waiting = waiting
        self._out += (record(size, at), head, data)
        if self._timer is None:
            self._timer = self._loop.later(MOMENT, self._flush)
        if waiting > EAGER and not (self._is_soon or self._is_full):
            self._flush_soon()
        return True

    def _make_room(self, size: int, most: int) -> int:
        """The bytes that wait with `size` more, after what the pipe takes is written; 0 where they are too many."""
        if self._waiting + size > most:
            self.flush()
        waiting = self._waiting + size
        return waiting if self._fd >= 0 and waiting <= most else 0

    def _flush_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._is_soon = True
        self._timer = self._loop.later(0.0, self._flush)

    def enter(self, feed: object) -> None:
        """A connection is fed to it."""
        self._feeds.add(feed)

    def leave(self, feed: object) -> None:
        """A connection is not any more."""
        self._feeds.discard(feed)
        if self._is_retired and not self._feeds:
            self._loop.later(0.0, self._finish)

    def retire(self) -> None:
        """Another one is current."""
        self._is_retired = True
        self._loop.later(RETIRED if self._feeds else 0.0, self._finish)

    def close(self) -> None:
        """Its reader sees the end. Closing twice is the same as once."""
        if self._fd >= 0:
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._out.clear()
            self._rest = memoryview(b"")
            self._waiting = 0
            if self._timer is not None:
                self._timer.cancel()

    def abandon(self) -> None:
        """A bug was met: nothing more is fed."""
        self.close()

    def flush(self) -> None:
        """Write what waits, as far as the pipe takes it."""
        if self._fd >= 0:
            self._flush()

    def _finish(self) -> None:
        """Close it once what waits is written."""
        if self._closes is None:
            self._closes = self._loop.now + LAST
        self.flush()
        if self._waiting and self._loop.now < self._closes:
            self._loop.later(AGAIN, self._finish)
        else:
            self.close()

    def _ready(self, events: int) -> None:
        if events & BROKEN:
            self.close()

    def _flush(self) -> None:
        """Write what the pipe takes. A packet may be cut there: its rest is written next."""
        began = thread_time()
        packets = len(self._out) // 3
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_soon = False
        try:
            self._write_all()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._is_full = bool(self._waiting)
        if self._is_full:
            self._timer = self._loop.later(AGAIN, self._flush)
        self._spend(thread_time() - began + packets * MADE)

    def _write_all(self) -> None:
        while self._waiting:
            if not self._rest:
                self._rest = memoryview(b"".join(self._out))
                self._out.clear()
            written = os.write(self._fd, self._rest)
            self._rest = self._rest[written:]
            self._waiting -= written


class IdsFeeds:
    """All pipes of a process."""

    def __init__(self, loop: Loop, spend: Spend) -> None:
        self._loop = loop
        self._spend = spend
        self._current: IdsPipe | None = None
        self._before: list[IdsPipe] = []
        """Those that are retired."""

    @property
    def current(self) -> IdsPipe | None:
        """Where new connections are fed; None while there is no IDS."""
        if self._current is not None and self._current.is_over:
            self._current = None
        return self._current

    def replace(self, fd: int) -> None:
        """Feed new connections to this pipe. Takes the descriptor. Raises OSError."""
        before = self.current
        try:
            self._current = IdsPipe(self._loop, fd, self._spend)
        except OSError:
            os.close(fd)
            raise
        if before is not None:
            before.retire()
            self._before = [each for each in (*self._before, before) if not each.is_over]

    def flush(self) -> None:
        """Write what waits: the process is about to end."""
        for each in (*self._before, self._current):
            if each is not None:
                each.flush()
