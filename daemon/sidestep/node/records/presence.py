"""Keeps, for the daemon that starts next, which pods are inspected and when this daemon was last there.

A daemon that is killed cannot say for how long its pods are left without anybody. So a file has the pods and ports that
policies apply to, and its modification time is at most BEAT seconds old while the daemon lives. The next daemon reads
it (`absence`) and counts the time since then as uninspected.

Whoever runs holds the lock of the file (flock(2)), which the kernel gives back however a process ends. A file whose
lock is held belongs to another daemon: one that starts beside it, to take over, finds no absence, and writes its own
file once the other has ended. Nothing is kept while no policy applies to any pod.

The file is not trusted more than it must be: root's own regular file of mode 0600, bounded, typed. All that it can say
is for which of the pods and ports that policies apply to *now* some time is counted; none of its texts is shown. A
time before the machine was started, or one that is yet to come, counts as the moment of the start, or as now. A thread
writes it, so a disk that hangs holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from sidestep.model.pod import Pod, PodKey

BEAT: Final = 1.0
"""Seconds between two times that are kept."""
MAX_SIZE: Final = 1024 * 1024
"""Bytes of the file that are read: some thousand pods."""
VALID: Final = 60.0
"""Seconds after its start in which a daemon counts an absence: a policy that comes later is another one."""
FAREWELL: Final = 1.0
"""Seconds that `finish` waits for the thread."""

_NEW: Final = ".new"


class Inspected(msgspec.Struct, frozen=True, order=True):
    """A pod to which policies apply, and its TCP ports to which they do."""

    namespace: str
    name: str
    uid: str
    ports: tuple[int, ...]


@dataclass(slots=True)
class Absence:
    """The time in which no daemon ran, in seconds since 1970, and what it had inspected before."""

    start: float
    end: float
    pods: dict[PodKey, Inspected] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.start

    def take(self, pod: Pod, ports: Collection[int]) -> tuple[int, ...]:
        """Those of a pod's ports that nobody inspected in that time, sorted; a second call for a pod finds none."""
        kept = self.pods.pop(pod.key, None)
        if kept is None or kept.uid != pod.uid or time.time() > self.end + VALID:
            return ()
        return tuple(sorted({*ports} & {*kept.ports}))


_DECODER: Final = msgspec.json.Decoder(tuple[Inspected, ...])


def absence(path: Path) -> Absence | None:
    """What the daemon before this one has left; None if one runs, none ever did, or the file cannot be believed."""
    now = time.time()
    with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not _is_own(status) or status.st_size > MAX_SIZE:
                return None
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            pods = _DECODER.decode(os.read(fd, MAX_SIZE))
        finally:
            os.close(fd)
        booted = now - time.clock_gettime(time.CLOCK_BOOTTIME)
        start = min(max(status.st_mtime, booted), now)
        return Absence(start, now, {PodKey(each.namespace, each.name): each for each in pods})
    return None


class Presence:
    """Writes the file at `path`. `keep` says what is inspected, as often as it likes; the time is kept meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pods: tuple[Inspected, ...] = ()
        self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._kept: tuple[Inspected, ...] = ()
        """What the file has; the thread's, as is ..."""
        self._fd = -1
        """... the descriptor of the file that this daemon wrote, or -1."""

    async def run(self, inspected: Callable[[], tuple[Inspected, ...]]) -> None:
        """Keep what is inspected, and the time, until cancelled."""
        if not inspected():
            with contextlib.suppress(OSError):
                self._remove()  # what a daemon before this one has left
        while True:
            self.keep(inspected())
            await asyncio.sleep(BEAT)

    def keep(self, pods: tuple[Inspected, ...]) -> None:
        """Set what is inspected from now on. Never blocks."""
        if pods == self._pods:
            return
        with self._changed:
            self._pods = pods
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="presence", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Keep the time a last time, then give the file's lock back; waits for at most FAREWELL seconds."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(FAREWELL)

    def _run(self) -> None:
        while True:
            with self._changed:
                pods, is_last = self._pods, self._closing
            with contextlib.suppress(OSError):  # of a full or broken disk; the next try follows
                self._beat(pods, may_write=not is_last)
            if is_last:
                self._release()
                return
            with self._changed:
                is_idle = self._fd < 0 and not pods
                self._changed.wait_for(partial(self._has_news, pods), None if is_idle else BEAT)

    def _has_news(self, pods: tuple[Inspected, ...]) -> bool:
        return self._closing or self._pods is not pods

    def _beat(self, pods: tuple[Inspected, ...], *, may_write: bool) -> None:
        """Bring the file up to date, unless it is another daemon's. Raises OSError."""
        if self._is_at_path() and (pods == self._kept or not may_write):
            os.utime(self._fd)
        elif may_write and pods and not self._is_anothers():
            self._write(pods)
            self._kept = pods
        elif may_write and not pods:
            self._remove()

    def _write(self, pods: tuple[Inspected, ...]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._release()
        new = self._path.with_name(self._path.name + _NEW)
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data = memoryview(msgspec.json.encode(pods))
            while data:
                data = data[os.write(fd, data) :]
            new.replace(self._path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _remove(self) -> None:
        """Remove the file, unless it is another daemon's. Raises OSError."""
        if not self._is_anothers():
            self._path.unlink(missing_ok=True)
        self._release()

    def _is_at_path(self) -> bool:
        """Whether the file at the path is the one that this daemon wrote."""
        if self._fd < 0:
            return False
        try:
            found, own = self._path.lstat(), os.fstat(self._fd)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)

    def _is_anothers(self) -> bool:
        """Whether the file at the path is one that another daemon keeps."""
        if self._is_at_path():
            return False
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _is_own(status: os.stat_result) -> bool:
    """Whether a file is a regular one of this user's that nobody else can read or write."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
