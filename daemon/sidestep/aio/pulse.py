"""Heartbeats without system calls: one process counts in a shared page of memory, another one watches the count.

The watching process makes the page and passes its descriptor on. It first seals the page against shrinking, because
reading a mapped page that was truncated raises SIGBUS (memfd_create(2)). The counting process may write anything: only
a change has a meaning. This module does not import asyncio, because pod proxies use it too.
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
    """The watching end."""

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
        """The descriptor to pass to the other process; this object keeps it."""
        return self._fd

    def beats(self) -> bool:
        """Whether the count has changed since the last call."""
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
        """Increase the count: one sign of life."""
        self._count += 1
        _COUNT.pack_into(self._page, 0, self._count)

    def close(self) -> None:
        """Unmap the page; `beat` must not be called afterwards."""
        self._page.close()
