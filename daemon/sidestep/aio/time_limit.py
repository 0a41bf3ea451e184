"""A time limit that also holds in the cleanup of a task that has been cancelled.

`asyncio.timeout` of Python 3.11 raises CancelledError there in place of TimeoutError, so that what is to follow a
farewell that took too long (kill a process, close a socket) never runs. From Python 3.12 on it compares the number of
cancellations with what it was at the beginning, as this does. The linter bans `asyncio.timeout` for that reason.

States: *entered*, then *expired* once the time is over or `expire` was called. Expiring cancels the task, and leaving
takes exactly that cancellation back.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class time_limit:  # noqa: N801 - used as `asyncio.timeout` is
    """`async with time_limit(5.0):` raises TimeoutError after five seconds; None is no limit.

    Who cancels the task meanwhile gets CancelledError, whether the time is over or not.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._before = 0
        """Cancellations of the task that nobody had taken back at the beginning."""
        self._expired = False

    async def __aenter__(self) -> Self:
        self._task = task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._before = task.cancelling()
        if self._seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, self._seconds), self.expire)
        return self

    def expire(self) -> None:
        """End the time now."""
        if self._task is not None and not self._expired:
            self._expired = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        if not self._expired or task is None:
            return
        if task.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise TimeoutError from error
