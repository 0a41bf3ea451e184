"""The children of a zygote: forked, held by pidfds, reaped.

The caller polls: a pidfd of `poll` that is in `Children` has become readable when its process ended, and `reap` says
how. Single-threaded.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from typing import NoReturn


class Children:
    """The processes that were forked and have not been reaped. `noun` names one in what is told of it."""

    def __init__(self, poll: select.poll, noun: str) -> None:
        self._poll = poll
        self._noun = noun
        self._pids: dict[int, int] = {}

    def __contains__(self, fd: int) -> bool:
        return fd in self._pids

    def fork(self, run: Callable[[], NoReturn]) -> tuple[int, int]:
        """Fork a child that calls `run`; returns its process id and its pidfd, which stays ours. Raises OSError."""
        pid = os.fork()
        if pid == 0:
            run()
        # The child is not reaped yet, even if it has ended, so the number is not reused.
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._pids[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)
        return pid, pidfd

    def reap(self, pidfd: int) -> str | None:
        """Reap a child that has ended; returns a sentence about an end that was not clean. SIGKILL is the daemon's."""
        pid = self._pids.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0 and -code != signal.SIGKILL:
            return f"the {self._noun} (process {pid}) was ended by {signal.Signals(-code).name}"
        if code > 0:
            return f"the {self._noun} (process {pid}) ended with status {code}"
        return None
