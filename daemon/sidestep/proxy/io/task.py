"""Runs a coroutine on the event loop of the pod proxy.

Setting up a connection is a sequence of waits: for bytes, a dial, two handshakes. Written as an `async` function it
reads in the order in which it happens, and its `finally` blocks release what it holds however it ends.

    Task        drives one coroutine
    Operation   awaits something that answers through a callback
    Watch       awaits events of one descriptor, within a deadline

Invariants
  * A suspended coroutine waits in exactly one operation, and only that operation resumes it.
  * `Task.cancel` raises GeneratorExit where the coroutine waits: the operation is cancelled, `finally` blocks run, and
    nothing resumes the coroutine afterwards.
  * An exception that leaves the coroutine is raised to whoever resumed it, which for events and timers is the loop.

asyncio is not used, for the reason that `loop` gives; a resumption costs about a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, Generic, TypeVar

from sidestep.proxy.io.loop import READ, Loop, Timer

Result = TypeVar("Result")
Cancel = Callable[[], None]

_EXPIRED: Final = 0
"""In the place of an event mask, which is never 0: the deadline has passed."""


class Operation(Generic[Result]):
    """Awaits the answer of one call: `start(done)` begins it and returns a function that cancels it.

    `done(result)` may be called before `start` returns. After a cancellation it is ignored.
    """

    __slots__ = ("_over", "_result", "_start", "_task")

    def __init__(self, start: Callable[[Callable[[Result], None]], Cancel]) -> None:
        self._start = start
        self._over = False
        self._result: Result | None = None
        self._task: Task | None = None

    def __await__(self) -> Generator[Operation[Any], None, Result]:
        cancel = self._start(self._done)
        if not self._over:
            try:
                yield self
            finally:
                if not self._over:
                    self._over = True
                    cancel()
        return self._result  # type: ignore[return-value] # `_done` has set it

    def _done(self, result: Result) -> None:
        if self._over:
            return
        self._over = True
        self._result = result
        if self._task is not None:
            self._task.resume()

    def wake(self, task: Task) -> None:
        """Take the task to resume."""
        self._task = task


class Task:
    """Drives one coroutine, which awaits operations of this module only."""

    def __init__(self, coroutine: Coroutine[Operation[Any], None, None]) -> None:
        self._coroutine = coroutine
        self._over = False

    def start(self) -> None:
        """Run until the first wait. Raises what the coroutine raises. Does nothing after `cancel`."""
        self.resume()

    def resume(self) -> None:
        """Run until the next wait. Raises what the coroutine raises."""
        if self._over:
            return
        try:
            operation = self._coroutine.send(None)
        except StopIteration:
            self._over = True
        except BaseException:
            self._over = True
            raise
        else:
            operation.wake(self)

    def cancel(self) -> None:
        """End the coroutine where it waits. Nothing is done when it is over. Not to be called by the coroutine."""
        if not self._over:
            self._over = True
            self._coroutine.close()


class Watch:
    """Awaits events of one descriptor. All waits together have `seconds`; `restart` sets another deadline.

    The descriptor is registered with the loop until `close`. `registered`: it is already, and stays so after `close`.
    """

    def __init__(self, loop: Loop, fd: int, *, seconds: float, registered: bool = False) -> None:
        self._loop = loop
        self._fd = fd
        self._registered = registered
        self._done: Callable[[int], None] | None = None
        self._expired = False
        if registered:
            loop.rebind(fd, self._ready, READ)
        else:
            loop.add(fd, self._ready, READ)
        self._timer: Timer = loop.later(seconds, self._expire)

    async def event(self, mask: int) -> int:
        """Wait for one of the events of `mask` and return those that came. Raises TimeoutError at the deadline."""
        self._loop.modify(self._fd, mask)
        came = _EXPIRED if self._expired else await Operation(self._begin)
        if came == _EXPIRED:
            raise TimeoutError("it took too long")
        return came

    def restart(self, seconds: float) -> None:
        """Replace the deadline: `seconds` from now."""
        self._timer.cancel()
        self._expired = False
        self._timer = self._loop.later(seconds, self._expire)

    def close(self) -> None:
        """Stop watching."""
        self.release()
        if not self._registered:
            self._loop.remove(self._fd)

    def release(self) -> None:
        """Stop watching, and leave the descriptor registered for whoever takes it over."""
        self._timer.cancel()

    def abandon(self) -> None:
        """End the waiting as the deadline does: an error of ours was met in a callback."""
        self._expire()

    def _begin(self, done: Callable[[int], None]) -> Cancel:
        self._done = done
        return self._forget

    def _forget(self) -> None:
        self._done = None

    def _ready(self, mask: int) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(mask)

    def _expire(self) -> None:
        self._expired = True
        self._ready(_EXPIRED)
