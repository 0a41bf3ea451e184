"""Hints that a folder has changed, from inotify(7).

A hint only shortens a wait: its user looks at the folder itself, and looks without a hint from time to time, because
links that lead out of the folder and network file systems give none. Where no watch can be made, there are no hints.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path
from typing import Self

from sidestep.aio.time_limit import time_limit

_CHANGES = 0x002 | 0x008 | 0x040 | 0x080 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF."""

_libc = ctypes.CDLL(None, use_errno=True)


class Hint:
    """Use as a context manager on the running event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = -1
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self.watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    @property
    def watching(self) -> bool:
        """Whether hints may come."""
        return self._fd >= 0

    def watch(self) -> None:
        """Begin, or begin again after the folder was replaced."""
        self._drop()
        fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if fd < 0:
            return
        if _libc.inotify_add_watch(fd, os.fsencode(self._folder), _CHANGES) < 0:
            os.close(fd)
            return
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._readable)

    async def wait(self, longest: float) -> bool:
        """Wait for a hint, at most `longest` seconds; whether there was one."""
        try:
            async with time_limit(longest):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True

    def _readable(self) -> None:
        try:
            os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            self._drop()
        self._event.set()

    def _drop(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
