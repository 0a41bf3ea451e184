"""Tasks with a name and an owner.

asyncio keeps only a weak reference to a task, and reports an exception only when the task is collected, possibly never.
A `Tasks` object owns its tasks: it holds them, and cancels and awaits all of them when it is closed. When a task
*crashes* (ends with anything but a result or a cancellation), its siblings are cancelled at once and the owner is told:
through `on_crash`, and by `wait()`.

    async with Tasks("pod proxy shop/orders") as tasks:
        tasks.start(watch(), name="watch")
        await tasks.wait()              # until every task has ended; raises what the first crash raised
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from sidestep.model.errors import BugError

T = TypeVar("T")
OnCrash = Callable[[str, BaseException], None]
"""(name of the task, what it raised); called once, in the event loop, at the first crash."""


class Tasks:
    """A named group of tasks that lives as long as its owner. Belongs to one event loop."""

    def __init__(self, name: str, *, on_crash: OnCrash | None = None) -> None:
        self.name = name
        self._on_crash = on_crash
        self._tasks: set[asyncio.Task[Any]] = set()
        self._crash: BaseException | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def crash(self) -> BaseException | None:
        """What the first task that crashed raised."""
        return self._crash

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run a coroutine as a task of this group. Raises BugError once the group is closed or has crashed."""
        if self._closed:
            coroutine.close()
            raise BugError(f"{self.name}: task {name} was started after the end")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self.name}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def wait(self) -> None:
        """Wait until no task is left; raises what the first crash raised."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._crash is not None:
            raise self._crash

    def cancel(self) -> None:
        """Cancel every task and accept no new one; does not wait."""
        self._closed = True
        current = _current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    async def aclose(self) -> None:
        """Cancel every task and wait for their ends. A task of the group may call this: it is not cancelled itself."""
        self.cancel()
        current = _current_task()
        while rest := {task for task in self._tasks if task is not current}:
            await asyncio.wait(rest)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None or self._crash is not None:
            return
        self._crash = error
        self.cancel()
        if self._on_crash is not None:
            self._on_crash(task.get_name(), error)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
