"""Who of a session's pods takes how many of the streams of its tunnel.

A pod whose proxy was taken over may ask for as many as there are. So a pod may take another one only while it has fewer
than EAGERNESS times those that are free: alone it takes three quarters, two that want everything three sevenths each,
and however many do, some are free for a pod that has none. Who may not yet waits, behind those of the same pod; when
one becomes free the pod with the fewest goes first.

Invariants: the streams taken are those of all pods together, never more than `streams`; a pod with none waiting and
none taken is not remembered; whoever waits could not take one when anything last changed.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Final

from sidestep.model.errors import RefusedError

EAGERNESS: Final = 3
"""What a pod may have, in streams that are free."""


class StreamShares:
    """Shares the `streams` of one session among its pods."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._taken: Counter[str] = Counter()
        self._used = 0
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def acquire(self, pod: str) -> None:
        """Take a stream for a pod, as soon as it may have one. The caller sets a deadline, and gives it back.

        Raises RefusedError when too many of this pod wait.
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
                self.release(pod)  # the stream was granted, and nobody takes it
            raise

    def release(self, pod: str) -> None:
        """A stream that was taken for a pod is over."""
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
        """Remove a turn that was cancelled. `give` may have removed it since: the task that waits runs later."""
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
