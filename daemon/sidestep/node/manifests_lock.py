"""Lets one node daemon at a time serve a folder of manifests; of two, the last to attach would silently win every pod.

The lock is a flock(2) on the folder itself: nothing is written, and the kernel releases it with the process, however
that ends. A daemon that starts on the socket of the holder takes over, as in an upgrade, and waits for the lock beside
its work. File systems without locks (some network file systems) have none.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import time
from pathlib import Path

from sidestep.model.errors import ConfigurationError

RETRY = 0.2
"""Seconds between two tries while the predecessor drains."""
PATIENCE = 2.0
"""Seconds for a daemon that has closed its socket to end."""
_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EACCES})


class ManifestsLock:
    """The lock on one folder. `acquire`, then, beside the work, `wait_for`; `close` at the end."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError when the folder cannot be opened."""
        self._folder = folder
        try:
            self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            reason = f"cannot be opened: {os.strerror(error.errno or 0)}"
            raise ConfigurationError(reason, subject="--manifests", value=str(folder)) from error

    def acquire(self, *, after: int = 0) -> None:
        """Take it, unless process `after` holds it, whose place is taken over.

        One that has just ended its work is waited for. Raises ConfigurationError naming the daemon that holds it.
        """
        end = time.monotonic() + PATIENCE
        while not self._try():
            holder = _holder(self._fd)
            if after and holder in (0, after):
                return
            if time.monotonic() > end:
                which = f"pid {holder}, {_socket_of(holder)}" if holder else "in another PID namespace"
                raise ConfigurationError(
                    f"another node daemon serves these manifests ({which}): use or end that one, or start this one on "
                    "its socket to take its place",
                    subject="--manifests",
                    value=str(self._folder),
                )
            time.sleep(RETRY)

    async def wait_for(self) -> None:
        """Take the lock as soon as the predecessor releases it; returns at once when it is held already."""
        while not self._try():  # noqa: ASYNC110 - nobody is told when a flock is given back
            await asyncio.sleep(RETRY)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in _TAKEN
        return True


def _holder(fd: int) -> int:
    """The process that holds a flock on this file (proc_locks(5)); 0 when it cannot be seen."""
    status = os.fstat(fd)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == wanted and words[4].isdigit():
            return int(words[4])
    return 0


def _socket_of(pid: int) -> str:
    """The socket of a daemon, from its command line."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        words = []
    for word, following in itertools.pairwise(words):
        if word == "--socket":
            return f"socket {following}"
        if word.startswith("--socket="):
            return f"socket {word.partition('=')[2]}"
    return "the default socket"
