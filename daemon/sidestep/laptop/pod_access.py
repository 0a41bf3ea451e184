"""The developer's end of an access to pods: asks the daemons, and hands over what they grant.

A session has a tunnel to each node with pods of the workload. Each tells which of its pods can be used now; of all of
them one is *chosen*: the first by name, for as long as it can be used, so that variables, files and connections are
those of one pod.

    ask --> the link to the chosen pod's node: a line, and a future by its number
            stream with that number    -> the future has it; `Granted.close` ends it
            refused                    -> RefusedError
            ended, after it was granted -> `PodAccess.ended` is told why; the stream breaks
            the tunnel breaks          -> CutOffError; who asks again waits for another tunnel

Lines of a link are written by one task, whole: who asks may be cancelled at any time, and half a line would spoil the
next one. A request that is given up before its line was begun is never written; of one that was, a `Cancel` is. So no
more lines wait than there were requests at one time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, Self

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.laptop.handler import NoHandler
from sidestep.model.errors import PeerError, RefusedError
from sidestep.model.intercept import MAX_ENVIRONMENT
from sidestep.tunnel.access import (
    Asked,
    Cancel,
    Connect,
    Ended,
    Environment,
    Files,
    Lines,
    Ready,
    Told,
    decode_line,
    encode_line,
    number_of,
)
from sidestep.tunnel.daemon_end import read_all

if TYPE_CHECKING:
    from types import TracebackType

    from sidestep.tunnel.stream import Stream

ANSWER: Final = 60.0
"""Seconds within which a request is granted or refused: longer than the daemon takes (`node.sessions.access.GRANT`),
whose reason says more."""
READY: Final = 30.0
"""Seconds for which a request waits for a pod."""


class CutOffError(RefusedError):
    """The tunnel ended before a request was answered."""


class Granted:
    """What a request was granted: a stream, to read and to write. Close it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.closed = asyncio.Event()

    def close(self) -> None:
        """Give the stream back; one that has not ended in both directions is reset."""
        self.closed.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Link:
    """One tunnel's stream of lines."""

    def __init__(self, stream: Stream, ended: Callable[[str], None]) -> None:
        self.pods: frozenset[str] = frozenset()
        self._ended = ended
        self._stream = stream
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Granted]] = {}
        self._unsent: dict[int, bytes] = {}
        """Lines that were not begun, in their order."""
        self._news = asyncio.Event()

    async def ask(self, make: Callable[[int], Asked]) -> Granted:
        """Send a request; returns what is granted. Raises RefusedError, PeerError."""
        self._number += 1
        number = self._number
        line = encode_line(make(number))
        granted: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self._waiting[number] = granted
        self._send(number, line)
        try:
            async with time_limit(ANSWER):
                return await granted
        except BaseException as error:
            if not granted.done() or granted.cancelled():
                self._withdraw(number)
            elif granted.exception() is None:
                granted.result().close()
            if isinstance(error, TimeoutError):
                raise RefusedError(f"the node daemon did not answer within {ANSWER:g} s") from error
            raise
        finally:
            self._waiting.pop(number, None)

    def _withdraw(self, number: int) -> None:
        if self._unsent.pop(number, None) is None:
            self._send(number, encode_line(Cancel(number)))

    def _send(self, number: int, line: bytes) -> None:
        self._unsent[number] = line
        self._news.set()

    async def write(self) -> None:
        """Write the lines until the tunnel breaks, as its reader sees."""
        try:
            while True:
                while self._unsent:
                    number = next(iter(self._unsent))
                    await self._stream.write(self._unsent.pop(number))
                self._news.clear()
                await self._news.wait()
        except PeerError:
            pass

    def told(self, line: Told) -> None:
        """Take a line of the daemon."""
        if isinstance(line, Ready):
            self.pods = frozenset(line.pods)
            return
        waiting = self._waiting.get(line.number)
        if waiting is not None and not waiting.done():
            waiting.set_exception(RefusedError(line.reason))
        elif isinstance(line, Ended):
            self._ended(line.reason)

    def granted(self, number: int, granted: Granted) -> bool:
        """Hand over a stream; returns False when nobody waits for it."""
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return False
        waiting.set_result(granted)
        return True

    def broken(self) -> None:
        """The tunnel is gone."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(CutOffError("the connection to the node daemon is gone"))
                waiting.exception()  # retrieved: its owner may have given up


class PodAccess(NoHandler):
    """The "handler" of a session with access to pods, and its `tunnel.access.AccessClient`."""

    def __init__(self) -> None:
        super().__init__()
        self.access = self
        self.ended: Callable[[str], None] = lambda _reason: None
        """Called with the reason why the node has ended what it had granted. It may say so without end: bound it."""
        self._links: dict[object, _Link] = {}
        self._chosen = ""
        self._news = asyncio.Event()

    # --- for who uses it ----------------------------------------------------------------------------------------------

    async def environment(self) -> bytes:
        """Return the variables of the pod's container, each ended by NUL.

        Raises RefusedError, and PeerError also for more than MAX_ENVIRONMENT bytes.
        """
        async with await self._ask(Environment) as granted:
            content = await read_all(granted.stream, MAX_ENVIRONMENT, what="variables")
            await granted.stream.write_eof()
            return content

    async def files(self, paths: tuple[str, ...], max_bytes: int) -> Granted:
        """Begin a snapshot (`protocols.file_frames`). Raises RefusedError, PeerError."""
        return await self._ask(lambda number, pod: Files(number, pod, paths=paths, max_bytes=max_bytes))

    async def connect(self, host: str, port: int, protocol: Literal["tcp", "udp"] = "tcp") -> Granted:
        """Connect from the pod to a host; UDP is carried as capsules. Raises RefusedError, PeerError."""
        return await self._ask(lambda number, pod: Connect(number, pod, host, port, protocol))

    async def pod(self) -> str:
        """Wait for a pod that can be used; returns `namespace/name`. Raises RefusedError after `READY` seconds."""
        try:
            async with time_limit(READY):
                while not (chosen := self._choose()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise RefusedError("no pod can be used now; sidestep status may tell why") from error
        return chosen

    async def _ask(self, make: Callable[[int, str], Asked]) -> Granted:
        pod = await self.pod()
        link = next(each for each in self._links.values() if pod in each.pods)
        return await link.ask(lambda number: make(number, pod))

    def _tell_ended(self, reason: str) -> None:
        self.ended(reason)

    def _choose(self) -> str:
        usable = sorted(pod for link in self._links.values() for pod in link.pods)
        if self._chosen not in usable:
            self._chosen = usable[0] if usable else ""
        return self._chosen

    # --- AccessClient -------------------------------------------------------------------------------------------------

    async def talk(self, tunnel: object, stream: Stream) -> None:
        """As AccessClient.talk."""
        if tunnel in self._links:
            raise PeerError("the daemon has opened the lines of an access twice")
        stream.respond(200)
        link = self._links[tunnel] = _Link(stream, self._tell_ended)
        try:
            async with Tasks("access: lines") as tasks:
                reading = tasks.start(self._read(stream, link), name="read")
                tasks.start(link.write(), name="write")
                await asyncio.wait({reading})
                if tasks.crash is not None:
                    raise tasks.crash
        finally:
            del self._links[tunnel]
            link.broken()

    async def _read(self, stream: Stream, link: _Link) -> None:
        lines = Lines()
        while data := await stream.read():
            for line in lines.feed(data):
                link.told(decode_line(line, Told))  # type: ignore[arg-type]  # a union
            self._news.set()

    async def take(self, tunnel: object, stream: Stream) -> None:
        """As AccessClient.take."""
        link = self._links.get(tunnel)
        granted = Granted(stream)
        if link is None or not link.granted(number_of(stream.headers), granted):
            stream.respond(502, end_stream=True)
            return
        stream.respond(200)
        await granted.closed.wait()
