"""Who has a place in the proxy, so that other users of this machine cannot take all of them.

    unproven    it has not shown that it may use the proxy; a client of this user (`local_user`) never is
    proven      it is this user's, or has given the password
    gone        its socket is closed

Invariants
  * With `most` proven clients no further one is accepted: they wait in the listener's queue.
  * Of `unproven` clients the oldest is ended for another one. None that is proven ends for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Places:
    """Clients by any key of the caller's, such as the socket."""

    def __init__(self, most: int, *, unproven: int) -> None:
        self._most = most
        self._most_unproven = unproven
        self._proven: set[object] = set()
        self._unproven: dict[object, Callable[[], object]] = {}
        self._room = asyncio.Event()
        self._room.set()

    @property
    def full(self) -> bool:
        """Whether no client is accepted now."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait until another client may be accepted."""
        await self._room.wait()

    def take(self, client: object, end: Callable[[], object], *, proven: bool) -> None:
        """A client is there. `end` ends it."""
        self._unproven[client] = end
        if proven:
            self.prove(client)
        elif len(self._unproven) > self._most_unproven:
            self._unproven.pop(next(iter(self._unproven)))()

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
        if len(self._proven) < self._most:
            self._room.set()
        else:
            self._room.clear()
