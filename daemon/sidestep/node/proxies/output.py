"""Turns what an untrusted process writes to its stderr into lines for the log.

Each pod proxy has a pipe of its own, so that its lines carry its pod's name and take nothing from other pods. The
daemon reads a bounded amount per second: after each read it waits for PAUSE seconds. Of the lines in it, BURST at once
and then RATE a second are logged, LENGTH characters of each, with escapes for control characters; the rest is counted,
and the count is logged. A writer that is faster finds the pipe full: it does not block, and what it writes is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import Final

from sidestep.aio.token_bucket import TokenBucket
from sidestep.model.errors import KernelError
from sidestep.model.text import harmless

PAUSE: Final = 0.05
"""Seconds between readings."""
READ: Final = 16384
"""Bytes of one."""
LENGTH: Final = 4096
"""Bytes of a line; more make another one."""
BURST: Final = 100
"""Lines logged at once: some tracebacks."""
RATE: Final = 5.0
"""Lines logged a second, after that."""


def pipe() -> tuple[int, int]:
    """The ends of a pipe, to read and to write, neither of which blocks. Raises KernelError."""
    try:
        return os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KernelError("pipe2", error.errno or 0, doing="making a pipe for errors") from error


class Output:
    """Reads a pipe on the running event loop until its end, or until `close`. Owns `fd`."""

    def __init__(self, fd: int, on_line: Callable[[str], None], *, label: str = "") -> None:
        self._fd = fd
        self._on_line = on_line
        self._label = label
        self._loop = asyncio.get_running_loop()
        self._bucket = TokenBucket(rate=RATE, burst=BURST, now=self._loop.time())
        self._rest = b""
        self._dropped = 0
        self._pause: asyncio.TimerHandle | None = None
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._readable)

    def close(self) -> None:
        """Log what is still in there, then close the pipe. Closing twice is the same as once."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        if self._pause is None:
            self._loop.remove_reader(fd)
        else:
            self._pause.cancel()
        with contextlib.suppress(OSError):
            # All that a pipe holds: 16 pages unless told otherwise, which are of 64 KiB on some kernels (pipe(7)).
            self._take(os.read(fd, fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)))
        os.close(fd)
        if self._rest:
            self._emit(self._rest)
        self._tell_dropped()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._loop.remove_reader(self._fd)
        self._pause = self._loop.call_later(PAUSE, self._go_on)
        self._take(data)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._fd, self._readable)

    def _take(self, data: bytes) -> None:
        """Log the lines of it that may be; the others are not looked at."""
        data = self._rest + data
        at = 0
        while (end := data.find(b"\n", at)) >= 0 or len(data) - at > LENGTH:
            if end < 0 or end - at > LENGTH:
                line, after = data[at : at + LENGTH], at + LENGTH
            else:
                line, after = data[at:end], end + 1
            if not self._emit(line):
                self._dropped += data.count(b"\n", after)
                at = max(after, data.rfind(b"\n") + 1, len(data) - LENGTH)
                break
            at = after
        self._rest = data[at:]

    def _emit(self, line: bytes) -> bool:
        """Log a line, or count it: False."""
        if not self._bucket.take(self._loop.time()):
            self._dropped += 1
            return False
        self._tell_dropped()
        self._say(line.decode(errors="replace"))
        return True

    def _tell_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._say(f"({dropped} lines were dropped)")

    def _say(self, text: str) -> None:
        self._on_line(harmless(f"{self._label}: {text}" if self._label else text, LENGTH))
