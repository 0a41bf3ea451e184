"""An HTTP/2 client over a channel, with the `h2` library: whole requests in, whole answers out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions

WINDOW = 1 << 20


@dataclass
class Answer:
    """What came back on one stream."""

    informational: list[dict[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.headers.get(":status", "0"))


class Http2Client:
    """`async with Http2Client(channel)`; one request at a time or many."""

    def __init__(self, channel: Any, *, reads: bool = True) -> None:
        self.channel = channel
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="latin-1"))
        self.answers: dict[int, Answer] = {}
        self.reads = reads
        """Whether windows are given back."""
        self.changed = asyncio.Event()
        self.over = False
        self.handler: Any = None
        """The peer behind the channel, for the tests that look at it."""

    async def __aenter__(self) -> Self:
        self.h2.initiate_connection()
        await self.flush()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.wait({self._reading})
        self.channel.close()

    async def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            await self.channel.write(data)

    async def begin(self, path: str, *, method: str = "GET", end: bool = True, **more: Any) -> int:
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":authority", "orders.shop"), (":path", path)]
        fields += [(name.replace("_", "-"), value) for name, value in more.items()]
        self.h2.send_headers(stream, fields, end_stream=end)
        self.answers[stream] = Answer()
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        view = memoryview(data)
        while view:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(view))
            if not room:
                self.changed.clear()
                await self.changed.wait()
                continue
            self.h2.send_data(stream, bytes(view[:room]))
            view = view[room:]
            await self.flush()
        if end:
            self.h2.end_stream(stream)
            await self.flush()

    async def finished(self, stream: int) -> Answer:
        answer = self.answers[stream]
        while not answer.ended and answer.reset is None and not self.over:
            self.changed.clear()
            await self.changed.wait()
        return answer

    async def request(self, path: str, body: bytes = b"", *, method: str = "", **more: Any) -> Answer:
        stream = await self.begin(path, method=method or ("POST" if body else "GET"), end=not body, **more)
        if body:
            await self.send(stream, body, end=True)
        return await self.finished(stream)

    async def _read(self) -> None:
        try:
            while data := await self.channel.read():
                for event in self.h2.receive_data(data):
                    self._take(event)
                await self.flush()
                self.changed.set()
        finally:
            self.over = True
            self.changed.set()

    def _take(self, event: Any) -> None:
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        match event:
            case h2.events.InformationalResponseReceived():
                answer.informational.append(dict(event.headers))
            case h2.events.ResponseReceived():
                answer.headers = dict(event.headers)
            case h2.events.TrailersReceived():
                answer.trailers = dict(event.headers)
            case h2.events.DataReceived():
                answer.body += event.data
                if self.reads:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                answer.ended = True
            case h2.events.StreamReset():
                answer.reset = int(event.error_code)
