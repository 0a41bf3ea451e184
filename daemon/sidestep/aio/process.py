"""A process held by a pidfd: signals cannot hit a reused pid, and a process that is not a child can be awaited."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import KernelError


class Process:
    """A process of this daemon, not necessarily its child. Owns the pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    @property
    def alive(self) -> bool:
        """Whether the process runs; False for a zombie."""
        if self._pidfd < 0:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing when the process has ended. Raises KernelError."""
        if self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass
        except OSError as error:
            raise KernelError("pidfd_send_signal", error.errno or 0) from error

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def watch(self, on_end: Callable[[], None]) -> Callable[[], None]:
        """Call `on_end` once, in the event loop, when the process has ended; returns a function that cancels this.

        Raises KernelError.
        """
        loop = asyncio.get_running_loop()
        try:
            # A duplicate of our own: several may watch, and close() may come first.
            watched = os.dup(self._pidfd)
        except OSError as error:
            raise KernelError("dup", error.errno or 0, doing="watching a process") from error
        done = False

        def call_off() -> None:
            nonlocal done
            if not done:
                done = True
                loop.remove_reader(watched)
                os.close(watched)

        def ended() -> None:
            call_off()
            on_end()

        loop.add_reader(watched, ended)
        return call_off

    async def wait(self, *, deadline: float | None = None) -> bool:
        """Wait for the end, at most `deadline` seconds; False when the process still runs then. Raises KernelError."""
        if not self.alive:
            return True
        over = asyncio.Event()
        call_off = self.watch(over.set)
        try:
            async with time_limit(deadline):
                await over.wait()
        except TimeoutError:
            pass
        finally:
            call_off()
        return not self.alive

    def close(self) -> None:
        """Close the pidfd; the process keeps running."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
