"""Who has a place in the proxy, so that other users of this machine cannot take all of them.

    unproven    it has not shown that it may use the proxy; a client of this user (`local_user`) never is
    proven      it is this user's, or has given the password
    gone        its socket is closed

Invariants
  * With `most` proven clients no further one is accepted: they wait in the listener's queue.
  * Of `unproven` clients the oldest is ended for another one. None that is proven ends for that.
  * It is not ended in its first `patience` seconds: until then further ones wait in the queue, too. So a burst of
    clients of this user is served where it cannot be told whose they are; where it can, nobody waits for strangers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from sidestep.aio.time_limit import time_limit


class Places:
    """Clients by any key of the caller's, such as the socket."""

    def __init__(self, most: int, *, unproven: int, patience: float = 0.0) -> None:
        self._most = most
        self._most_unproven = unproven
        self._patience = patience
        self._proven: set[object] = set()
        self._unproven: dict[object, tuple[Callable[[], object], float]] = {}
        """What ends each, and since when it is there."""
        self._fewer = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def full(self) -> bool:
        """Whether no client is accepted now."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait until another client may be accepted."""
        await self._room.wait()
        while self._patience and len(self._unproven) >= self._most_unproven:
            _, since = next(iter(self._unproven.values()))
            left = since + self._patience - time.monotonic()
            if left <= 0:
                return
            self._fewer.clear()
            with contextlib.suppress(TimeoutError):
                async with time_limit(left):
                    await self._fewer.wait()
            await self._room.wait()

    def take(self, client: object, end: Callable[[], object], *, proven: bool) -> None:
        """A client is there. `end` ends it."""
        self._unproven[client] = end, time.monotonic()
        if proven:
            self.prove(client)
        elif len(self._unproven) > self._most_unproven:
            oldest, _ = self._unproven.pop(next(iter(self._unproven)))
            oldest()

    def prove(self, client: object) -> None:
        """It has shown that it may use the proxy. Nothing happens to one that has been ended."""
        if self._unproven.pop(client, None) is not None:
            self._proven.add(client)
            self._follow()

    def is_proven(self, client: object) -> bool:
        """Whether it has."""
        return client in self._proven

    def leave(self, client: object) -> None:
        """It has gone."""
        self._unproven.pop(client, None)
        self._proven.discard(client)
        self._follow()

    def _follow(self) -> None:
        self._fewer.set()
        if len(self._proven) < self._most:
            self._room.set()
        else:
            self._room.clear()
