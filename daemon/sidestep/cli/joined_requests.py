"""Joins requests with their answers, for reports of sessions.

The daemon tells a request together with its answer, or first the request and later an answer of the same number.

    shown      with its answer, or it will get none
    held       its answer is to come: it is shown with that, or without after `patience` seconds
    unanswered it was shown without; when its answer comes it is shown once more, as late

Where only some statuses are wanted, a request is shown only with its answer. Numbers count anew when the tunnel breaks
(`interrupted`): what is held is shown then, and no answer that comes later is one of these requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from sidestep.cli.request_text import is_wanted
from sidestep.tunnel.messages import Answered, Request

WAITING = 4096
"""Requests whose answers are waited for; the oldest one is given up for a newer one."""

Key = tuple[str, int]
"""Pod, and number of a request there."""


class JoinedRequests:
    """See the module. `show` gets a request, and whether it was shown before without its answer."""

    def __init__(
        self, show: Callable[[Request, bool], None], *, statuses: tuple[str, ...] = (), patience: float = 0.0
    ) -> None:
        self._show = show
        self._statuses = statuses
        self._patience = patience
        self._waiting: dict[Key, tuple[Request, asyncio.TimerHandle | None]] = {}
        """A handle: it is held."""

    def request(self, event: Request) -> None:
        """Take a request."""
        if event.answer is not None or not event.number:
            if is_wanted(event.answer, self._statuses):
                self._show(event, False)
            return
        key = event.pod, event.number
        if key in self._waiting:
            self._forget(key)
        elif len(self._waiting) >= WAITING:
            self._forget(next(iter(self._waiting)))
        handle = None
        if self._patience and not self._statuses:
            handle = asyncio.get_running_loop().call_later(self._patience, self._let_go, key)
        elif not self._statuses:
            self._show(event, False)
        self._waiting[key] = event, handle

    def answered(self, event: Answered) -> None:
        """Take an answer."""
        found = self._waiting.pop((event.pod, event.number), None)
        if found is None:
            return
        request, handle = found
        if handle is not None:
            handle.cancel()
        if is_wanted(event.answer, self._statuses):
            self._show(replace(request, answer=event.answer), handle is None and not self._statuses)

    def _let_go(self, key: Key) -> None:
        """Show a request that is held, without its answer."""
        request, handle = self._waiting[key]
        if handle is not None:
            handle.cancel()
            self._waiting[key] = request, None
            self._show(request, False)

    def _forget(self, key: Key) -> None:
        """Give up the answer of a request that waits for it."""
        self._let_go(key)
        del self._waiting[key]

    def interrupted(self) -> None:
        """The tunnel broke: show what is held."""
        self.close()

    def close(self) -> None:
        """Show what is held."""
        for key in [*self._waiting]:
            self._forget(key)
