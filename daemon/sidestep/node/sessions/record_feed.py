"""The records of one session on their way to it: lines in a stream of the tunnel, as fast as the session reads them.

    waiting    lines wait, at most WAITING bytes, and NODE bytes in the feeds of all sessions together
    written    the stream's window and the transport decide when
    lost       a line that finds no room is counted as `reader`; counts are told as events, PAUSE seconds apart at least

The stream is opened once the hello is answered. A session that refuses or resets it gets no records any more, and goes
on otherwise.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import PeerError, RefusedError
from sidestep.tunnel.messages import Lost
from sidestep.tunnel.pump import cancel_and_wait

if TYPE_CHECKING:
    from sidestep.tunnel.stream import Stream

WAITING: Final = 512 * 1024
"""Bytes of lines that wait for one session ..."""
NODE: Final = 16 * 1024 * 1024
"""... and for all sessions of a node."""
BATCH: Final = 64 * 1024
"""Bytes that are written at once, about."""
PAUSE: Final = 0.5
"""Seconds between two events about lost records."""
FAREWELL: Final = 1.0
"""Seconds that the last lines have to be written when a session ends."""


class WaitingBytes:
    """The bytes that wait in all feeds of a node."""

    def __init__(self, most: int = NODE) -> None:
        self.most = most
        self.held = 0


class RecordFeed:
    """See the module. Implements `node.records.live.Feed`. `tell` sends an event, and never waits."""

    def __init__(self, *, tell: Callable[[Lost], None], waiting: WaitingBytes) -> None:
        self._tell = tell
        self._node = waiting
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._lost: Counter[tuple[str, str]] = Counter()
        self._told_later: asyncio.TimerHandle | None = None
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_over = False
        self.sent = 0
        """Lines that were written to the stream."""
        self.lost = 0
        """Records that were not sent."""

    def put(self, line: bytes, pod: str) -> None:
        """Send a line, or count it as lost. Never waits."""
        size = len(line)
        if self._is_over:
            return
        if self._size + size > WAITING or self._node.held + size > self._node.most:
            self.lose(pod, "reader", 1)
            return
        self._lines.append(line)
        self._hold(size)
        self._idle.clear()
        self._news.set()

    def lose(self, pod: str, reason: str, count: int) -> None:
        """Count records of a pod that are not sent."""
        self.lost += count
        self._lost[pod, reason] += count
        if self._told_later is None and not self._is_over:
            self._told_later = asyncio.get_running_loop().call_later(PAUSE, self.tell_losses)

    def tell_losses(self) -> None:
        """Send what was counted."""
        if self._told_later is not None:
            self._told_later.cancel()
            self._told_later = None
        lost, self._lost = self._lost, Counter()
        for (pod, reason), count in lost.items():
            self._tell(Lost(pod=pod, port=0, count=count, reason=reason))

    async def run(self, open_stream: Callable[[], Awaitable[Stream]]) -> None:
        """Write lines to the stream until it or the tunnel ends."""
        watching: asyncio.Task[PeerError] | None = None
        try:
            stream = await open_stream()
            watching = asyncio.create_task(stream.until_broken(), name="records: watch")
            watching.add_done_callback(lambda _: self.close())
            while not self._is_over:
                await self._news.wait()
                self._news.clear()
                while batch := self._batch():
                    await stream.write(b"".join(batch))
                    self.sent += len(batch)
                self._idle.set()
        except (PeerError, RefusedError):
            pass  # the session does not take records, or the tunnel is over, which others notice
        finally:
            self.close()
            if watching is not None:
                await cancel_and_wait(watching)

    async def drain(self) -> None:
        """Wait until what waits is written, FAREWELL seconds at most, and tell what was lost."""
        self.tell_losses()
        try:
            async with time_limit(FAREWELL):
                await self._idle.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """Take no more; what waits is dropped."""
        self._is_over = True
        self._lines.clear()
        self._hold(-self._size)
        self._idle.set()
        self._news.set()
        if self._told_later is not None:
            self._told_later.cancel()
            self._told_later = None

    def _hold(self, change: int) -> None:
        self._size += change
        self._node.held += change

    def _batch(self) -> list[bytes]:
        batch: list[bytes] = []
        size = 0
        while self._lines and size < BATCH:
            line = self._lines.popleft()
            batch.append(line)
            size += len(line)
        self._hold(-size)
        return batch
