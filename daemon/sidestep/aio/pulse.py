"""A sign of life that costs nobody a system call: a page of memory in which one process counts and another one looks.

The looking process makes the page and hands its descriptor over. It is sealed against shrinking before that, for a
mapped page that is cut off under a reader ends the reader (SIGBUS, memfd_create(2)); what the counting process writes
into it may be anything, only that it changes has a meaning. Nothing here imports asyncio: a pod proxy counts, too.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

from sidestep.model.errors import KernelError, PeerError

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_COUNT = struct.Struct("=Q")


class Watched:
    """The looking end."""

    def __init__(self) -> None:
        """Raises KernelError."""
        try:
            self._fd = os.memfd_create("sidestep-pulse", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(self._fd, mmap.PAGESIZE)
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
                self._page = mmap.mmap(self._fd, mmap.PAGESIZE, prot=mmap.PROT_READ)
            except OSError:
                os.close(self._fd)
                raise
        except OSError as error:
            raise KernelError("memfd_create", error.errno or 0, doing="making a page for heartbeats") from error
        self._last = self._page[: _COUNT.size]

    @property
    def fd(self) -> int:
        """What the other process is given; it stays this object's."""
        return self._fd

    def beats(self) -> bool:
        """Whether the other process has counted since the last look."""
        now = self._page[: _COUNT.size]
        beats, self._last = now != self._last, now
        return beats

    def close(self) -> None:
        """Release the page."""
        self._page.close()
        os.close(self._fd)


class Pulse:
    """The counting end."""

    def __init__(self, fd: int) -> None:
        """Takes over the descriptor. Raises PeerError when it cannot be mapped."""
        try:
            self._page = mmap.mmap(fd, mmap.PAGESIZE)
        except (OSError, ValueError) as error:
            raise PeerError(f"the page for heartbeats cannot be used: {error}") from error
        finally:
            os.close(fd)
        self._count = 0

    def beat(self) -> None:
        """Count."""
        self._count += 1
        _COUNT.pack_into(self._page, 0, self._count)

    def close(self) -> None:
        """Release the page; nothing is counted any more."""
        self._page.close()
