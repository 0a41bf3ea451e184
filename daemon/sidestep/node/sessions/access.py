"""The daemon's end of an access to pods: reads what a session asks, judges it, and grants it by a stream.

A request is

    asked      checked at once: the session may use that (`Intercept.allow`), the pod is one that the present plan lets
               it use, and the number is new
    working    a task of its own; it ends as one of
    granted    a stream of the tunnel has been opened; its bytes are moved until both directions have ended
    ended      by the world, which says why; at once, also while the other end reads nothing
    refused    a line with the reason
    cancelled  by the session; or by `follow`: the plan does not let the session use the pod any more

Invariants
  * Nothing is asked of the world without a right, and not for a pod outside of the last `follow`.
  * The end of the tunnel, or of the session, ends every task, and each releases what it holds.
  * At most `MAX_REQUESTS` are working or granted, and at most one snapshot of files.
  * After `GRANT` seconds of work a request is refused: before its session gives up, so that it learns why.
  * One line is told of each request at most, so all may be refused or ended at once: by a deadline, or when their pod
    goes. While `WAITING_LINES` wait, no other request is read.
  * A session that breaks the rules of the lines loses its tunnel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.model.intercept import Allow, Intercept
from sidestep.model.pod import PodKey
from sidestep.model.text import harmless
from sidestep.tunnel.access import (
    Asked,
    Cancel,
    Connect,
    Ended,
    Environment,
    Files,
    Line,
    Lines,
    Ready,
    Refused,
    decode_line,
    encode_line,
)
from sidestep.tunnel.channel import Channel, SocketChannel
from sidestep.tunnel.pump import pump

if TYPE_CHECKING:
    from sidestep.node.sessions.pod_world import PodWorld
    from sidestep.tunnel.stream import Stream

MAX_REQUESTS: Final = 1024
"""Requests of one session at a time: as many as a tunnel has streams."""
MAX_ENVIRONMENTS: Final = 4
"""Of these, requests for variables."""
MAX_SNAPSHOTS: Final = 1
"""Of these, snapshots of files."""
WAITING_LINES: Final = 256
"""Lines that wait for the session, beside one of each request; one that does not read even what pods it may use loses
its tunnel."""
GRANT: Final = 50.0
"""Seconds. A pod's proxy takes 20 to connect, the daemon 30 to have it do so; a session waits for 60."""
MAX_REASON: Final = 1000
"""Characters."""
NEEDS: Final = {Environment: Allow.ENVIRONMENT, Files: Allow.FILES, Connect: Allow.NETWORK}
"""The right for each request."""
MOST: Final = {Allow.ENVIRONMENT: MAX_ENVIRONMENTS, Allow.FILES: MAX_SNAPSHOTS, Allow.NETWORK: MAX_REQUESTS}

OpenData = Callable[[int], Awaitable["Stream"]]
"""Opens the stream that grants a request. Raises RefusedError."""


class AccessServer:
    """One session's access, in one tunnel. `run` it once the session is greeted."""

    def __init__(self, access: Intercept, world: PodWorld, *, on_crash: Callable[[str, BaseException], None]) -> None:
        self._access = access
        self._world = world
        self._tasks = Tasks(f"access {access.display}", on_crash=on_crash)
        self._pods: frozenset[PodKey] = frozenset()
        self._running: dict[int, tuple[asyncio.Task[None], PodKey, Allow]] = {}
        self._ended: set[int] = set()
        """Numbers of those that run and of whose end a line was told."""
        self._highest = 0
        self._lines: asyncio.Queue[Line] = asyncio.Queue(MAX_REQUESTS + 2 * WAITING_LINES)
        self._told = asyncio.Event()
        self._overflow = asyncio.Event()
        self._open_data: OpenData | None = None

    def follow(self, pods: Iterable[PodKey]) -> None:
        """Let the session use these pods, and no other; ends what it uses of others."""
        now = frozenset(pods)
        if now == self._pods:
            return
        self._pods = now
        for task, pod, _ in self._running.values():
            if pod not in now:
                task.cancel()
        self._tell(Ready(tuple(sorted(map(str, now)))[:MAX_REQUESTS]))

    async def run(self, open_lines: Callable[[], Awaitable[Stream]], open_data: OpenData) -> None:
        """Serve until the tunnel ends. Raises PeerError when the session breaks the rules."""
        self._open_data = open_data
        try:
            stream = await open_lines()
            async with Tasks(f"access {self._access.display}: lines") as tasks:
                reading = tasks.start(self._read(stream), name="read")
                writing = tasks.start(self._write(stream), name="write")
                overflow = tasks.start(self._overflow.wait(), name="overflow")
                waiting: set[asyncio.Task[Any]] = {reading, writing, overflow}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if tasks.crash is not None:
                    raise tasks.crash
                if overflow.done():
                    raise PeerError("the session does not read what it is told about its access")
        finally:
            await self._tasks.aclose()

    def _tell(self, line: Line) -> None:
        try:
            self._lines.put_nowait(line)
        except asyncio.QueueFull:
            self._overflow.set()

    async def _write(self, stream: Stream) -> None:
        while True:
            await stream.write(encode_line(await self._lines.get()))
            self._told.set()

    async def _read(self, stream: Stream) -> None:
        lines = Lines()
        while data := await stream.read():
            for line in lines.feed(data):
                while self._lines.qsize() >= WAITING_LINES:
                    self._told.clear()
                    await self._told.wait()
                self._take(decode_line(line, Asked))  # type: ignore[arg-type]  # a union

    def _take(self, asked: Asked) -> None:
        if isinstance(asked, Cancel):
            found = self._running.get(asked.number)
            if found is not None:
                found[0].cancel()
            return
        if asked.number <= self._highest:
            raise PeerError("the session has used the number of a request twice")
        self._highest = asked.number
        try:
            pod, needed = self._judged(asked)
        except RefusedError as error:
            self._refuse(asked.number, error)
            return
        task = self._tasks.start(self._carry_out(asked, pod), name=f"request {asked.number}")
        self._running[asked.number] = (task, pod, needed)
        task.add_done_callback(lambda _: self._over(asked.number))

    def _over(self, number: int) -> None:
        self._running.pop(number, None)
        self._ended.discard(number)

    def _end(self, number: int, reason: str) -> None:
        """The world ends a request. Its task may wait for a session that reads nothing, so it is cancelled."""
        if number in self._running and number not in self._ended:
            self._ended.add(number)
            self._tell(Ended(number, _shown(reason)))
            self._running[number][0].cancel()

    def _judged(self, asked: Environment | Files | Connect) -> tuple[PodKey, Allow]:
        """Return the pod, and the right that is used. Raises RefusedError."""
        needed = NEEDS[type(asked)]
        if needed not in self._access.allow:
            allowed = self._access.place or "nothing"
            raise RefusedError(f"{self._access.leave_name} does not allow {needed} (it allows: {allowed})")
        namespace, _, name = asked.pod.partition("/")
        pod = PodKey(namespace, name)
        if pod not in self._pods:
            raise RefusedError(f"{self._access.leave_name} cannot use pod {harmless(asked.pod)} now")
        if len(self._running) >= MAX_REQUESTS or MOST[needed] <= sum(
            each is needed for _, _, each in self._running.values()
        ):
            raise RefusedError(f"{self._access.leave_name} uses as much at once as it may; try again later")
        return pod, needed

    async def _carry_out(self, asked: Environment | Files | Connect, pod: PodKey) -> None:
        try:
            await self._grant(asked, pod)
        except SidestepError as error:
            self._refuse(asked.number, error)
        except asyncio.CancelledError:
            self._refuse(asked.number, RefusedError("it was ended"))
            raise

    async def _grant(self, asked: Environment | Files | Connect, pod: PodKey) -> None:
        """Carry a request out, and move its bytes. Raises SidestepError as long as no stream was opened."""
        try:
            async with time_limit(GRANT):
                found = await self._found(asked, pod)
        except TimeoutError as error:
            raise RefusedError(f"the node could not carry it out within {GRANT:g} s") from error
        if isinstance(found, bytes):
            await _send(await self._opened(asked.number), found)
        else:
            await self._pump(asked.number, found)

    async def _found(self, asked: Environment | Files | Connect, pod: PodKey) -> bytes | Channel:
        """Return variables, or a channel for the bytes of what was asked for. Raises SidestepError."""
        match asked:
            case Environment():
                return await self._world.environment(self._access, pod, asked.container)
            case Files():
                sock = await self._world.files(self._access, pod, asked.container, asked.paths, asked.max_bytes)
                return SocketChannel(sock)
            case Connect():
                return await self._world.connect(
                    self._access,
                    pod,
                    asked.host,
                    asked.port,
                    asked.protocol,
                    ended=lambda reason: self._end(asked.number, reason),
                )

    async def _pump(self, number: int, channel: Channel) -> None:
        try:
            stream = await self._opened(number)
        except BaseException:
            channel.abort()
            raise
        await pump(stream, channel)

    async def _opened(self, number: int) -> Stream:
        assert self._open_data is not None  # noqa: S101 - requests are read after it was set
        return await self._open_data(number)

    def _refuse(self, number: int, error: SidestepError) -> None:
        if number not in self._ended:
            self._tell(Refused(number, _shown(str(error))))


def _shown(reason: str) -> str:
    return harmless(reason, MAX_REASON)[: MAX_REASON + 1]


async def _send(stream: Stream, content: bytes) -> None:
    try:
        await stream.write(content)
        await stream.write_eof()
        while await stream.read():  # the other end finishes its side once it has everything
            pass
    except PeerError:
        pass  # it does not want it any more
    finally:
        if not stream.over:
            stream.reset()
