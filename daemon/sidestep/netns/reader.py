"""Files below a container's root, read by a helper process that may hang without harm.

The daemon sends one request at a time and waits with a deadline; a helper that misses it, breaks the protocol or dies
is killed, and the next request starts another. So that one pod with a filesystem that never answers cannot starve the
others, a root that cost a deadline is refused at once for a while. Content is returned, never kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.netns import reader_child

DEADLINE: Final = 2.0
"""Seconds for one file; an ordinary one takes 0.2 ms."""

PENALTY: Final = 30.0
"""Seconds during which a root that cost a deadline is refused."""

_CHILD: Final = str(Path(reader_child.__file__))


class AbsentFileError(ConfigurationError):
    """The path leads to nothing; another name may be tried."""


class FileReader:
    """Owns the helper. One per daemon; requests queue for it."""

    def __init__(self, *, deadline: float = DEADLINE, penalty: float = PENALTY) -> None:
        """The helper starts with the first request. Seconds."""
        self._deadline = deadline
        self._penalty = penalty
        self._lock = asyncio.Lock()
        self._refused_until: dict[str, float] = {}
        self._channel: socket.socket | None = None
        self._helper: subprocess.Popen[bytes] | None = None
        self._killed: list[subprocess.Popen[bytes]] = []

    async def read(self, root: str, path: str, *, birth: int | None = None) -> bytes:
        """Content (at most 1 MiB) of the regular file `path`, every link of it resolved below the folder `root`.

        For a root /proc/PID/root `birth` is when that process was started; a later one of that id is not meant (ESRCH).

        Raises AbsentFileError, ConfigurationError for anything else a person can put right (`..`, a folder, a device,
        too large), KernelError when the root is gone, the kernel refuses, or (ETIMEDOUT) the deadline passes.
        """
        request = _request(root, path, birth)
        async with self._lock:
            now = asyncio.get_running_loop().time()
            self._refused_until = {each: until for each, until in self._refused_until.items() if until > now}
            if root in self._refused_until:
                raise KernelError("read", errno.ETIMEDOUT, doing=f"reading {path} below {root}, which hung before")
            try:
                async with asyncio.timeout(self._deadline):
                    status, answer = await self._exchange(request)
            except BaseException as error:
                self._kill()  # its next answer would be to a question nobody remembers
                if isinstance(error, TimeoutError):
                    self._refused_until[root] = asyncio.get_running_loop().time() + self._penalty
                    raise KernelError("read", errno.ETIMEDOUT, doing=f"reading {path} below {root}") from error
                if isinstance(error, OSError | EOFError):
                    raise KernelError("read", errno.EPIPE, doing=f"reading {path} below {root}") from error
                raise
        return _content(status, answer, path)

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        channel = self._ready()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(channel, request)
        header = await self._receive(channel, 1 + reader_child.LENGTH.size)
        (size,) = reader_child.LENGTH.unpack(header[1:])
        if size > reader_child.MAX_FILE:
            raise EOFError("the file-reading helper answers out of bounds")
        return header[0], await self._receive(channel, size)

    @staticmethod
    async def _receive(channel: socket.socket, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < size:
            chunk = await loop.sock_recv(channel, size - len(data))
            if not chunk:
                raise EOFError("the file-reading helper ended")
            data += chunk
        return bytes(data)

    def _ready(self) -> socket.socket:
        self._reap()
        if self._helper is not None and self._helper.poll() is not None:
            self._kill()
        if self._channel is None:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    self._helper = subprocess.Popen(
                        (sys.executable, "-I", "-S", _CHILD),
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        cwd="/",
                        env={},
                    )
                except OSError:
                    ours.close()
                    raise
            ours.setblocking(False)
            self._channel = ours
        return self._channel

    def _kill(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._helper is not None:
            self._helper.kill()
            self._killed.append(self._helper)
            self._helper = None

    def _reap(self) -> None:
        self._killed = [each for each in self._killed if each.poll() is None]

    @property
    def helper_pid(self) -> int | None:
        """Process id of the helper, when there is one."""
        return self._helper.pid if self._helper is not None else None

    def close(self) -> None:
        """End the helper. Another `read` would start a new one."""
        self._kill()
        for helper in self._killed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.wait(timeout=1.0)  # only a process that the kernel cannot end yet takes longer
        self._reap()


def _request(root: str, path: str, birth: int | None) -> bytes:
    subject = f"path {path!r}"
    if "\0" in path or "\0" in root:
        raise ConfigurationError("holds a NUL character", subject=subject)
    if ".." in path.split("/"):
        raise ConfigurationError("must not contain '..'", subject=subject)
    if not path.strip("/"):
        raise ConfigurationError("names no file", subject=subject)
    try:
        body = b"\0".join((os.fsencode(root), b"" if birth is None else b"%d" % birth, os.fsencode(path)))
    except UnicodeEncodeError as error:
        raise ConfigurationError("is no file name", subject=subject) from error
    if len(body) > reader_child.MAX_REQUEST:
        raise ConfigurationError("is too long", subject="path")
    return reader_child.LENGTH.pack(len(body)) + body


def _content(status: int, answer: bytes, path: str) -> bytes:
    if status == reader_child.OK:
        return answer
    text = answer.decode(errors="replace")
    subject = f"path {path!r}"
    if status == reader_child.ABSENT:
        raise AbsentFileError(text, subject=subject)
    if status == reader_child.UNUSABLE:
        raise ConfigurationError(text, subject=subject)
    call, _, number = text.partition(" ")
    raise KernelError(call, int(number) if number.isdecimal() else errno.EIO, doing=f"reading {path}")
