"""Where EVE records are written: a file that is rotated, a unix socket, or a descriptor such as standard output.

A sink is used by one thread (`writer`), and may block it. It never raises: `write` says how many of the lines were
written, and `problem` why the others were not. After a failure it tries nothing for PAUSE seconds, so that a full disk
or an absent reader costs nothing; lines of that time are not written. No line is ever written in part, and then
followed by another one: a file is cut back to its last whole line, a connection is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

PAUSE: Final = 1.0
"""Seconds after a failure."""
FILE_SIZE: Final = 32 * 1024 * 1024
"""Bytes of one file ..."""
FILES: Final = 4
"""... and how many there are at most: eve.json, and eve.json.1 (the newest) to eve.json.3."""
LOOK: Final = 1.0
"""Seconds between two looks whether the file is still where it was."""
STALL: Final = 2.0
"""Seconds for which a reader of the socket may read nothing."""


class Sink(Protocol):
    """See the module."""

    problem: str
    """Why the last lines were not written, for people; empty while all is well."""

    def write(self, lines: Sequence[bytes]) -> int:
        """Write lines in order; returns how many were written whole."""

    def close(self) -> None:
        """Give everything back."""


class _Retrying:
    """What the sinks have in common: something that is opened when it is needed, and again after a pause."""

    def __init__(self) -> None:
        self.problem = ""
        self._again = 0.0

    def write(self, lines: Sequence[bytes]) -> int:
        """See `Sink`."""
        if time.monotonic() < self._again:
            return 0
        try:
            written = self._write(lines)
        except OSError as error:
            self._failed(error)
            return 0
        if written == len(lines):
            self.problem = ""
        return written

    def _failed(self, error: OSError) -> None:
        self.problem = error.strerror or str(error)
        self._again = time.monotonic() + PAUSE

    def _write(self, lines: Sequence[bytes]) -> int:
        raise NotImplementedError


class FileSink(_Retrying):
    """A file at `path`, for its owner only; what is in it stays. A folder that is missing is made, for its owner only.

    The file is looked for again when it was removed or renamed by somebody else. A link, a FIFO or a device in its
    place is not written to.
    """

    def __init__(self, path: Path, *, size: int = FILE_SIZE, files: int = FILES) -> None:
        super().__init__()
        self._path = path
        self._most = size
        self._files = files
        self._fd = -1
        self._size = 0
        self._identity = (0, 0)
        self._looked = 0.0

    def close(self) -> None:
        """See `Sink`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _write(self, lines: Sequence[bytes]) -> int:
        written = 0
        while written < len(lines):
            try:
                self._open()
            except OSError as error:
                self._failed(error)
                break
            end, room = written, max(self._most - self._size, 0)
            while end < len(lines) and (len(lines[end]) <= room or (not self._size and end == written)):
                room -= len(lines[end])
                end += 1
            if end == written:
                self._rotate()
                continue
            written += self._append(lines[written:end])
            if written < end:
                break
        return written

    def _append(self, lines: Sequence[bytes]) -> int:
        """Append lines; those that found no room are taken back. Returns how many were written."""
        data = b"".join(lines)
        try:
            size = os.write(self._fd, data)
        except OSError as error:
            self._failed(error)
            self.close()
            return 0
        if size == len(data):
            self._size += size
            return len(lines)
        whole = kept = 0
        for line in lines:
            if kept + len(line) > size:
                break
            kept += len(line)
            whole += 1
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self._size + kept)
        self._failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self.close()
        return whole

    def _open(self) -> None:
        now = time.monotonic()
        if self._fd >= 0 and now >= self._looked + LOOK:
            self._looked = now
            with contextlib.suppress(OSError):
                found = os.lstat(self._path)
                if (found.st_dev, found.st_ino) == self._identity:
                    return
            self.close()
        if self._fd >= 0:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, f"{self._path} is no regular file")
        self._fd, self._size, self._looked = fd, status.st_size, now
        self._identity = (status.st_dev, status.st_ino)

    def _rotate(self) -> None:
        """Make room: the oldest file goes, the others get the next number."""
        self.close()
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._files))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)  # noqa: PTH105 - what is replaced is the oldest
        if self._files == 1:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108 - the same


class SocketSink(_Retrying):
    """A stream socket at which somebody listens, as of Suricata's `filetype: unix_stream`: the reader is the server."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._sock: socket.socket | None = None

    def close(self) -> None:
        """See `Sink`."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _write(self, lines: Sequence[bytes]) -> int:
        sock = self._connected()
        written = 0
        try:
            for line in lines:
                sock.sendall(line)
                written += 1
        except OSError as error:
            self.close()
            self._failed(OSError(errno.ETIMEDOUT, "the reader does not read") if _is_late(error) else error)
        return written

    def _connected(self) -> socket.socket:
        if self._sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(STALL)
            try:
                sock.connect(str(self._path))
            except OSError:
                sock.close()
                raise
            self._sock = sock
        return self._sock


class DescriptorSink(_Retrying):
    """A descriptor, which stays the caller's: a pipe or a terminal. Nobody else may write lines to it."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def close(self) -> None:
        """See `Sink`."""

    def _write(self, lines: Sequence[bytes]) -> int:
        written = 0
        try:
            for line in lines:
                left = memoryview(line)
                while left:
                    try:
                        left = left[os.write(self._fd, left) :]
                    except BlockingIOError:
                        select.select([], [self._fd], [])
                written += 1
        except OSError as error:
            self._failed(error)
        return written


def _is_late(error: OSError) -> bool:
    return isinstance(error, TimeoutError | BlockingIOError)
