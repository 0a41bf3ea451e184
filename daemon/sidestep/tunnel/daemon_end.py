"""The daemon's end of a tunnel: sends the hello, publishes events, opens streams for diverted connections.

Publishing never waits. Request events go into a bounded queue; when it is full the oldest is dropped and counted. A
newer `State` replaces a queued one, so that the session always receives the latest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from sidestep.aio.patience import patience
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.tunnel.access import NUMBER, PROTOCOL_ACCESS, PROTOCOL_ACCESS_DATA
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.errors import TunnelClosedError
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import (
    Answered,
    Dropped,
    Earlier,
    Ended,
    Hello,
    HelloAnswer,
    Lost,
    Moving,
    PodState,
    Request,
    State,
    decode,
    encode,
)
from sidestep.tunnel.opening import PROTOCOL_RECORDS, REASON, StreamOpening, clean_reason
from sidestep.tunnel.stream import CANCEL, Headers, Stream
from sidestep.tunnel.versions import check_answer

Verify = Callable[[Hello, HelloAnswer], None]
"""Checks the proof of an answer; raises RefusedError. In local mode the peer credentials of the socket are the
proof."""

_BATCH = 64
"""Request lines sent by one write."""
_PODS = 256
"""Pods that are kept of a state which exceeds the length of a line."""
_NAME = 512
"""Characters that are kept of their names."""


def accept_anyone(_hello: Hello, _answer: HelloAnswer) -> None:
    """The `Verify` of local mode."""


class DaemonEnd:
    """The daemon's end: owns the client-side `Connection` of one session."""

    def __init__(self, connection: Connection, *, limits: TunnelLimits = DEFAULT_LIMITS) -> None:
        self.connection = connection
        self._limits = limits
        self._requests: deque[Request | Answered | Earlier | Lost] = deque()
        self._dropped = 0
        self.dropped = 0
        """Number of request lines dropped."""
        self._state: State | None = None
        self._ended: Ended | None = None
        self._moving: Moving | None = None
        self._news = asyncio.Event()

    async def hello(self, hello: Hello, *, verify: Verify = accept_anyone) -> HelloAnswer:
        """Send the hello; returns the session's answer.

        Raises PeerError when the answer is late or malformed, RefusedError when it does not match the hello.
        """
        try:
            async with patience(self._limits.hello_timeout):
                stream = self.connection.open(_post("/v1/hello"))
                await stream.write(encode(hello))
                await stream.write_eof()
                await stream.response()
                body = await read_all(stream, self._limits.hello)
        except TimeoutError as error:
            raise PeerError("the session did not answer the hello") from error
        answer = decode(body, HelloAnswer, what="the session's answer to the hello")
        check_answer(answer.version)
        if hello.intercept and hello.intercept not in answer.serves:
            raise RefusedError(f"the session does not serve {hello.namespace}/{hello.name}")
        verify(hello, answer)
        return answer

    def publish(self, event: State | Request | Answered | Earlier | Lost | Moving) -> None:
        """Queue an event. Never waits, never raises."""
        if isinstance(event, State):
            self._state = event
        elif isinstance(event, Moving):
            self._moving = event
        else:
            if len(self._requests) >= self._limits.event_queue:
                self._requests.popleft()
                self._dropped += 1
                self.dropped += 1
            self._requests.append(event)
        self._news.set()

    async def run(self) -> SidestepError | None:
        """Send events until the tunnel ends. Returns the result of `Connection.closed`."""
        sending = asyncio.create_task(self._send_events(), name="tunnel-events")
        try:
            ends: set[asyncio.Future[Any]] = {sending, self.connection.closed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        self.connection.close()
        return await self.connection.wait_closed()

    async def end(self, ended: Ended) -> None:
        """Send the last event, then close the tunnel. Takes at most the `farewell` limit, in seconds."""
        self._ended = ended
        self._news.set()
        await asyncio.wait({self.connection.closed}, timeout=self._limits.farewell)
        self.connection.close()

    async def open(self, opening: StreamOpening) -> Stream:
        """Open a stream, waiting for a free one, and wait until the CLI has connected to the handler.

        Raises RefusedError with the reason.
        """
        return await self._open(opening.to_headers())

    async def open_records(self) -> Stream:
        """Open the stream of the session's records. Raises RefusedError when the session does not take them."""
        return await self._open(_connect(PROTOCOL_RECORDS, "/v1/records"))

    async def open_access(self) -> Stream:
        """Open the stream of lines about the pods' world. Raises RefusedError when the session uses nothing of it."""
        return await self._open(_connect(PROTOCOL_ACCESS, "/v1/access"))

    async def open_access_data(self, number: int) -> Stream:
        """Open the stream that grants the request of this number. Raises RefusedError when nobody waits for it."""
        return await self._open((*_connect(PROTOCOL_ACCESS_DATA, "/v1/access"), (NUMBER, str(number))))

    async def _open(self, headers: Headers) -> Stream:
        stream: Stream | None = None
        try:
            async with patience(self._limits.open_timeout):
                await self.connection.wait_for_free_stream()
                stream = self.connection.open(headers)
                answer = await stream.response()
        except TimeoutError as error:
            raise RefusedError(f"the session did not answer within {self._limits.open_timeout:g} s") from error
        except TunnelClosedError as error:
            raise RefusedError("the session is gone") from error
        except PeerError as error:
            raise RefusedError(clean_reason(str(error))) from error
        else:
            opened, stream = stream, None if dict(answer).get(":status") == "200" else stream
            if stream is None:
                return opened
            raise RefusedError(clean_reason(dict(answer).get(REASON, "the session refused the connection")))
        finally:
            if stream is not None:
                stream.reset(CANCEL)

    async def _send_events(self) -> None:
        try:
            stream = self.connection.open(_post("/v1/events"))
            while True:
                await self._news.wait()
                self._news.clear()
                while lines := self._batch():
                    await stream.write(lines)
                if self._ended is not None:
                    await stream.write(encode(self._ended) + b"\n")
                    await stream.write_eof()
                    while await stream.read():  # the other end finishes its side after it has received everything
                        pass
                    return
        except PeerError as error:
            self.connection.close(error)

    def _batch(self) -> bytes:
        events: list[State | Request | Answered | Earlier | Lost | Dropped | Moving] = []
        if self._moving is not None:
            events.append(self._moving)
            self._moving = None
        if self._state is not None:
            events.append(self._state)
            self._state = None
        if self._dropped:
            events.append(Dropped(self._dropped))
            self._dropped = 0
        events.extend(self._requests.popleft() for _ in range(min(_BATCH, len(self._requests))))
        return b"".join(filter(None, map(self._line, events)))

    def _line(self, event: State | Request | Answered | Earlier | Dropped | Lost | Moving) -> bytes:
        """Encode one event as a line within the limit; the other end breaks the tunnel over a longer one."""
        line = encode(event) + b"\n"
        if len(line) <= self._limits.event_line:
            return line
        if isinstance(event, State):
            short = State(tuple(PodState(pod.pod[:_NAME], pod.state[:_NAME]) for pod in event.pods[:_PODS]))
            return encode(short) + b"\n"
        self._dropped += 1
        self.dropped += 1
        return b""


def _connect(protocol: str, path: str) -> Headers:
    return (
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "https"),
        (":authority", "session"),
        (":path", path),
    )


def _post(path: str) -> Headers:
    return (
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "session"),
        (":path", path),
        ("content-type", "application/json"),
    )


async def read_all(stream: Stream, limit: int, *, what: str = "a message") -> bytes:
    """Read a whole body. Raises PeerError when it is longer than `limit` bytes; `what` is what it should be."""
    parts, size = [], 0
    while data := await stream.read():
        size += len(data)
        if size > limit:
            stream.reset(CANCEL)
            raise PeerError(f"{what} of more than {limit} bytes came through the tunnel")
        parts.append(data)
    return b"".join(parts)
