"""Deadlines that do not count time in which no answer could have been given or read.

With a fixed deadline a busy machine fails: the peer gets no CPU, or this loop is too busy to read its answer; the peer
is killed and replaced, which makes the machine busier still. `patience` is a `time_limit` that subtracts the time
for which the loop was stalled (`meter`) and the time for which the peer was ready to run and waited for a CPU
(`run_delay`). A process that is stopped or blocked does not wait for a CPU, so it is detected without delay. The
deadline passes after `MOST` times its length in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sidestep.aio.meter import stalled
from sidestep.aio.time_limit import time_limit

MOST: Final = 6.0
"""A deadline may be extended to this many times its length."""

LEAST: Final = 0.01
"""Least extension, in seconds; a shorter one is not waited for."""


def run_delay(pid: int) -> float:
    """Seconds that a process has spent ready to run but without a CPU; 0 where the kernel does not say.

    The second field of /proc/PID/schedstat (kernel: Documentation/scheduler/sched-stats.rst), of its main thread.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class patience:  # noqa: N801 - used as `time_limit` is
    """`async with patience(5.0, of=pid):` raises TimeoutError after five seconds, not counting the time named above.

    `of` is the pid of the process that answers, or a function that returns it; None for a peer elsewhere.
    """

    def __init__(self, seconds: float, *, of: Callable[[], int | None] | int | None = None) -> None:
        self.seconds = seconds
        self._of = of
        self._loop = asyncio.get_running_loop()
        self._scope = time_limit(None)
        self._timer: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._stalled = 0.0
        self._pid: int | None = None
        self._delayed = 0.0

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        self._began = self._loop.time()
        self._stalled = stalled(self._loop)
        self._pid = self._process()
        self._delayed = run_delay(self._pid) if self._pid is not None else 0.0
        self._timer = self._loop.call_later(self.seconds, self._due)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._scope.__aexit__(kind, error, trace)

    def _process(self) -> int | None:
        return self._of() if callable(self._of) else self._of

    def _due(self) -> None:
        """Expire, or extend the deadline by the time that does not count."""
        left_out = stalled(self._loop) - self._stalled
        pid = self._process()
        if pid is not None:
            # Another process than at the begin has waited for a CPU only since then.
            left_out += run_delay(pid) - (self._delayed if pid == self._pid else 0.0)
        end = self._began + min(self.seconds + max(0.0, left_out), self.seconds * MOST)
        if end - self._loop.time() > LEAST:
            self._timer = self._loop.call_at(end, self._due)
        else:
            self._timer = None
            self._scope.expire()


class Silence:
    """Measures how long a process has given no sign of life, less the time that it waited for a CPU."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._delayed: float | None = None
        """Its `run_delay` when half of the limit had passed; None before."""
        self.seconds = 0.0

    def broken(self) -> None:
        """The process gave a sign of life."""
        self.seconds = 0.0
        self._delayed = None

    def lasts(self, elapsed: float, *, pid: int) -> bool:
        """Add `elapsed` seconds of silence; returns whether the silence exceeds the limit."""
        self.seconds += elapsed
        if self.seconds < self._limit / 2:
            return False
        # Half of the limit is over: from here on the time that it waits for a CPU is subtracted.
        delayed = run_delay(pid)
        if self._delayed is None:
            self._delayed = delayed
        return self.seconds - min(delayed - self._delayed, self._limit * (MOST - 1)) >= self._limit
