"""The daemon's side of the reader: sends requests with deadlines; never opens or maps the material itself.

A reader or child that misses a deadline is killed; the next request starts a new reader. One pod with a hanging file
system, or a file that consumes all CPU time, must not starve the others:

- at most `PARALLEL` children run at the same time, and a stamp request waits only for other stamp requests;
- a source that caused a missed deadline, or the death of its child, is refused for `penalty` seconds.

A key arrives as a descriptor, which is forwarded and closed; it is neither read, mapped nor kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from sidestep.aio.packets import ChannelClosed, control_pair, read_sealed_memfd, receive_packet, send_packet
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import ConfigurationError, KernelError, PeerError
from sidestep.node.certificates.one_shot import CPU, MANIFESTS_CPU, WALL
from sidestep.node.certificates.requests import (
    MAX_REQUEST,
    Absence,
    Answer,
    EnvironmentRequest,
    Failed,
    FilesRequest,
    Folder,
    ManifestsRequest,
    Names,
    NamesRequest,
    Payload,
    ReadRequest,
    Request,
    Stamped,
    StampRequest,
    Started,
    Streaming,
    Summary,
)
from sidestep.node.certificates.snapshot_socket import Snapshot

STAMP_DEADLINE: Final = 2.0
"""Seconds for one stamp request after the reader has started; normally 0.2 ms."""
START_DEADLINE: Final = 20.0
"""Seconds for a reader to start, and for a child to send its first message; 0.2 s on an idle machine."""
PENALTY: Final = 30.0
"""Seconds during which a source is refused after it caused a missed deadline or the death of a child."""
PARALLEL: Final = 4
"""Children running at the same time."""
SNAPSHOTS: Final = 2
"""Snapshots of files that are sent at the same time."""
SNAPSHOT_WAIT, SNAPSHOT_LOOK = 15.0, 0.1
"""Seconds for which another one waits, and after which it looks whether one has ended."""

_NOTHING: Final = StampRequest(Folder((), ""))
"""A stamp request without files, which is answered as soon as the reader has started."""
_ANSWERS: Final = msgspec.msgpack.Decoder(Answer)
_REQUESTS: Final = msgspec.msgpack.Encoder()


class Reader:
    """Owns the reader process; one per daemon. With `manifests` it reads manifests as well."""

    def __init__(
        self,
        *,
        manifests: bool = False,
        look_deadline: float = STAMP_DEADLINE,
        penalty: float = PENALTY,
        on_start: Callable[[int], None] = lambda _pid: None,
    ) -> None:
        """Create a reader; its process starts with the first request.

        Deadlines and the penalty are in seconds. `on_start` receives the process id of each reader.
        """
        self._arguments = ["--manifests"] if manifests else []
        self._look_deadline = look_deadline
        self._penalty = penalty
        self._on_start = on_start
        self._looking = asyncio.Lock()
        self._children = asyncio.Semaphore(PARALLEL)
        self._refused_until: dict[object, float] = {}
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: list[subprocess.Popen[bytes]] = []
        self._kills = 0
        self._snapshots: list[Snapshot] = []
        self._next_snapshot = asyncio.Lock()
        """Held by the one that waits for a place; the others wait behind it."""
        self._opening = 0
        """Snapshots that have been asked for."""
        self._started = False
        """Whether the current reader has answered yet."""

    async def stamp(self, source: Folder) -> str:
        """Return a stamp that changes with the files of a certificate. Raises ConfigurationError, KernelError."""
        async with self._looking:
            self._refuse(source)
            await self._start()
            try:
                async with time_limit(self._look_deadline):
                    answer, _ = await self._ask(StampRequest(source))
            except TimeoutError as error:
                self._kill()
                self._punish(source)
                raise KernelError("read", errno.ETIMEDOUT, doing=f"looking at {source.folder}") from error
        if isinstance(answer, Stamped):
            return answer.stamp
        raise _error(answer)

    async def read(self, request: ReadRequest) -> tuple[Summary, int | None]:
        """Read a source; returns its summary, and the credential named by `request.deliver`: a sealed memfd.

        The caller closes the descriptor. Raises ReadError, KernelError.
        """
        answer, fd = await self._by_child(request, request.source, deadline=WALL + 2.0)
        if isinstance(answer, Summary) and (fd is not None) is bool(request.deliver):
            return answer, fd
        if fd is not None:
            os.close(fd)
        raise _error(answer)

    async def manifests(self, folder: str, names: tuple[str, ...]) -> bytes:
        """Return the pickled result of reading manifests. Raises ReadError, KernelError, PeerError."""
        answer, fd = await self._by_child(ManifestsRequest(folder, names), folder, deadline=MANIFESTS_CPU + 30.0)
        return _content(answer, fd)

    async def environment(self, pid: int, birth: int | None) -> bytes:
        """Return the variables of the process that was started at `birth`, each ended by NUL, at least one byte.

        Raises ReadError, KernelError, PeerError.
        """
        answer, fd = await self._by_child(
            EnvironmentRequest(pid, birth),
            ("environment", pid),
            deadline=WALL + 2.0,
            doing=f"reading the variables of process {pid}",
        )
        return _content(answer, fd)

    async def names(self, root: str, birth: int | None) -> Names:
        """Return how names are looked up below a root, that of the process started at `birth`.

        Raises ReadError, KernelError, PeerError.
        """
        answer, fd = await self._by_child(
            NamesRequest((root, birth)), ("names", root), deadline=WALL + 2.0, doing=f"reading below {root}"
        )
        try:
            return msgspec.msgpack.decode(_content(answer, fd), type=Names)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerError("the reader's answer cannot be decoded") from error

    async def files(self, request: FilesRequest) -> socket.socket:
        """Begin a snapshot of files; returns the socket that its frames come from. Closing it ends the snapshot.

        At most `SNAPSHOTS` are sent at the same time; another one waits for `SNAPSHOT_WAIT` seconds. Raises ReadError,
        KernelError, PeerError.
        """
        await self._room_for_snapshot()
        children: list[int] = []
        try:
            answer, fd = await self._by_child(
                request,
                ("files", request.pid, request.root),
                deadline=WALL + 2.0,
                doing="opening files of a container",
                keep=children,
            )
        except BaseException:
            _close_all(children)
            raise
        finally:
            self._opening -= 1
        if isinstance(answer, Streaming) and fd is not None and children:
            snapshot = Snapshot(fd, children[0])
            self._snapshots.append(snapshot)
            return snapshot
        _close_all([*children, *([] if fd is None else [fd])])
        raise _error(answer)

    async def _room_for_snapshot(self) -> None:
        """Wait for one of `SNAPSHOTS` places, first come, first served, and count as opening. Raises ReadError."""
        try:
            async with time_limit(SNAPSHOT_WAIT), self._next_snapshot:
                while True:
                    self._snapshots = [each for each in self._snapshots if not each.over()]
                    if len(self._snapshots) + self._opening < SNAPSHOTS:
                        self._opening += 1
                        return
                    await asyncio.sleep(SNAPSHOT_LOOK)
        except TimeoutError as error:
            reason = f"the node sends {SNAPSHOTS} snapshots of files, and none ended within {SNAPSHOT_WAIT:g} s"
            raise ReadError(f"{reason}; try again later") from error

    @property
    def pid(self) -> int | None:
        """Process id of the reader; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def close(self) -> None:
        """End the reader. A further request starts a new one."""
        self._kill()
        while self._snapshots:
            self._snapshots.pop().forget()
        for process in self._ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1.0)  # longer only for a process in an uninterruptible system call
        self._reap()

    # --- requests
    # -------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Wait until the reader has started, so that its start does not count for a source. Raises KernelError,
        PeerError.
        """
        if self._started and self.pid is not None:
            return
        try:
            async with time_limit(START_DEADLINE):
                await self._ask(_NOTHING)
        except TimeoutError as error:
            self._kill()
            raise KernelError("read", errno.ETIMEDOUT, doing="starting the reader") from error

    async def _by_child(
        self,
        request: Request,
        source: object,
        *,
        deadline: float,
        doing: str = "reading a certificate",
        keep: list[int] | None = None,
    ) -> tuple[Answer, int | None]:
        self._refuse(source)
        cpu = MANIFESTS_CPU if isinstance(request, ManifestsRequest) else CPU
        async with self._children:
            kills = self._kills
            try:
                async with time_limit(deadline + START_DEADLINE):
                    return await self._ask(request, keep)
            except TimeoutError as error:
                self._punish(source)
                raise KernelError("read", errno.ETIMEDOUT, doing=doing) from error
            except _ChildLostError as error:
                if self._kills != kills:  # the reader was killed because of another source
                    raise KernelError("read", errno.EPIPE, doing=doing) from error
                self._punish(source)
                if isinstance(request, FilesRequest):
                    reason = "the child that would send files ended: it could not open them in time, or lacked memory"
                else:
                    reason = f"reading it takes more than {cpu} s of processor time, or too much memory"
                raise ReadError(reason) from error

    async def _ask(self, request: Request, keep: list[int] | None = None) -> tuple[Answer, int | None]:
        """Send a request; returns the answer and its descriptor. The child's pidfd goes to `keep`; its owner closes it.

        Raises _ChildLostError, KernelError, PeerError.
        """
        try:
            packet = _REQUESTS.encode(request)
        except UnicodeEncodeError as error:
            raise ReadError("its path is no text") from error
        if len(packet) > MAX_REQUEST:
            raise ReadError("its description is too long")
        for _ in range(2):
            channel = self._ready()
            ours, theirs = control_pair()
            with ours, theirs:
                try:
                    if not send_packet(channel, packet, theirs.fileno()):
                        raise KernelError("sendmsg", errno.EAGAIN, doing="asking the reader")
                    theirs.close()
                    answer = await _answer(ours, keep)
                except ChannelClosed:
                    # The reader ended with the request in its queue: it was idle, or killed because of another source.
                    if self._channel is channel:
                        self._kill()
                else:
                    self._started = True
                    return answer
        raise KernelError("read", errno.EPIPE, doing="asking the reader")

    def _refuse(self, source: object) -> None:
        now = asyncio.get_running_loop().time()
        self._refused_until = {each: until for each, until in self._refused_until.items() if until > now}
        if source in self._refused_until:
            raise ReadError("it took too long before, and is tried again later")

    def _punish(self, source: object) -> None:
        self._refused_until[source] = asyncio.get_running_loop().time() + self._penalty

    # --- the process ------------------------------------------------------------------------------------------------

    def _ready(self) -> socket.socket:
        self._reap()
        if self._process is not None and self._process.poll() is not None:
            self._kill()
        if self._channel is None:
            ours, theirs = control_pair()
            with theirs:
                try:
                    self._process = subprocess.Popen(
                        [
                            sys.executable,
                            "-I",
                            "-m",
                            "sidestep.node.certificates.reader_child",
                            str(theirs.fileno()),
                            *self._arguments,
                        ],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        pass_fds=(theirs.fileno(),),
                        cwd="/",
                        env={},
                    )
                except OSError as error:
                    ours.close()
                    raise KernelError("execve", error.errno or 0, doing="starting the reader") from error
            ours.setblocking(False)
            self._channel = ours
            self._started = False
            self._on_start(self._process.pid)
        return self._channel

    def _kill(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._kills += 1
            self._process.kill()
            self._ended.append(self._process)
            self._process = None

    def _reap(self) -> None:
        self._ended = [each for each in self._ended if each.poll() is None]


class ReadError(ConfigurationError):
    """A source cannot be read, for a reason that the user can correct. `status` is the API server's, or 0.

    `absent` tells what is not there and may still come.
    """

    def __init__(self, reason: str, *, status: int = 0, absent: Absence = Absence.NOTHING) -> None:
        self.status = status
        self.absent = absent
        super().__init__(reason)


class _ChildLostError(Exception):
    """A one-shot child ended without an answer."""


def _content(answer: Answer, fd: int | None) -> bytes:
    """What the memfd of a `Payload` holds; closes the descriptor. Raises ReadError, PeerError for another answer."""
    try:
        if isinstance(answer, Payload) and fd is not None:
            return read_sealed_memfd(fd, answer.size)
    finally:
        if fd is not None:
            os.close(fd)
    raise _error(answer)


def _error(answer: Answer) -> ReadError | PeerError:
    if isinstance(answer, Failed):
        return ReadError(answer.reason, status=answer.status, absent=answer.absent)
    return PeerError(f"the reader answers with {type(answer).__name__}")


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


async def _answer(sock: socket.socket, keep: list[int] | None) -> tuple[Answer, int | None]:
    """Receive the answer to a request. When this is cancelled, the child that works on it is killed."""
    sock.setblocking(False)
    pidfd = -1
    try:
        while True:
            try:
                packet = await _packet(sock)
            except ChannelClosed as error:
                if pidfd >= 0:
                    raise _ChildLostError from error
                raise
            answer, fd = _decoded(*packet)
            if not isinstance(answer, Started):
                if keep is not None and pidfd >= 0:
                    keep.append(pidfd)
                    pidfd = -1
                return answer, fd
            if fd is None or pidfd >= 0:
                raise PeerError("a one-shot reader does not say who it is")
            pidfd = fd
    except BaseException:
        if pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        raise
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _decoded(data: bytes, fd: int | None) -> tuple[Answer, int | None]:
    try:
        return _ANSWERS.decode(data), fd
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        if fd is not None:
            os.close(fd)
        raise PeerError("the reader's answer cannot be decoded") from error


async def _packet(sock: socket.socket) -> tuple[bytes, int | None]:
    """Receive the next packet and its descriptor. Raises ChannelClosed at the end."""
    loop = asyncio.get_running_loop()
    while True:
        received = receive_packet(sock)
        if received is not None:
            return received
        ready = loop.create_future()
        loop.add_reader(sock, _set, ready)
        try:
            await ready
        finally:
            loop.remove_reader(sock)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
