"""Shares the streams of one tunnel among the pods of its session.

A compromised pod proxy may request all streams. Therefore a pod may acquire another stream only while it has fewer than
EAGERNESS times the number of free ones: alone it gets three quarters, two pods with unlimited demand get three sevenths
each, and for any number of pods some streams stay free for a pod that has none. Others wait, in order within a pod; a
freed stream goes to the pod with the fewest.

Invariants: the acquired streams are the sum over all pods and never more than `streams`; a pod without acquired streams
and without waiters is not stored; a waiter could not acquire a stream at the last change.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Final

from sidestep.model.errors import RefusedError

EAGERNESS: Final = 3
"""Streams that a pod may have, as a multiple of the free ones."""


class StreamShares:
    """Shares the `streams` of one session among its pods."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._taken: Counter[str] = Counter()
        self._used = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def acquire(self, pod: str) -> None:
        """Acquire a stream for a pod, waiting until it may have one. The caller sets a deadline and calls `release`.

        Raises RefusedError when too many callers of this pod wait.
        """
        waiting = self._waiting.get(pod)
        if waiting is None and self._may(pod):
            self._book(pod)
            return
        if waiting is None:
            waiting = self._waiting[pod] = deque()
        if len(waiting) >= self._streams:
            raise RefusedError(f"{len(waiting)} connections of this pod wait for the session already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._withdraw(pod, turn)
            else:
                self.release(pod)  # the stream was granted to a cancelled caller
            raise

    def release(self, pod: str) -> None:
        """Return a stream of a pod."""
        self._used -= 1
        self._taken[pod] -= 1
        if not self._taken[pod]:
            del self._taken[pod]
        while self._waiting:
            first = min(self._waiting, key=self._taken.__getitem__)
            if not self._may(first):
                return
            self._grant(first)

    def _grant(self, pod: str) -> None:
        waiting = self._waiting[pod]
        turn = waiting.popleft()
        if not waiting:
            del self._waiting[pod]
        if not turn.done():
            self._book(pod)
            turn.set_result(None)

    def _withdraw(self, pod: str, turn: asyncio.Future[None]) -> None:
        """Remove a cancelled waiter. `release` may have removed it already, because the waiting task runs later."""
        waiting = self._waiting.get(pod)
        if waiting is not None and turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[pod]

    def _may(self, pod: str) -> bool:
        return self._taken[pod] < EAGERNESS * (self._streams - self._used)

    def _book(self, pod: str) -> None:
        self._used += 1
        self._taken[pod] += 1
