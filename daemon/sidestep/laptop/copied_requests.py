"""Reads the requests in copies on their way to a wiretap's handler, and tells them whole: heads, bodies, trailers.

The handler gets every byte as before; what is kept of a body is bounded (MAX_BODY). A copy of HTTP/1 is a connection of
its own with one request; one of HTTP/2 is a stream on a connection of the client's (`engine.mirror`). Copies of whole
connections and datagrams are not read. A copy that cannot be read any more, or ends before its request, is told as far
as it came, as cut; the rest of an HTTP/2 connection is not told then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from sidestep.engine.http2.app_responses import AppResponses
from sidestep.engine.mirror.events import Answerer
from sidestep.laptop.handler import Handler, HandlerSettings
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.chunked_data import ChunkedData
from sidestep.protocols.hpack import Block
from sidestep.protocols.http1 import CHUNKED, END_OF_HEAD, parse_request
from sidestep.protocols.http1_requests import RequestReader
from sidestep.protocols.http2 import DEFAULT_LIMITS
from sidestep.tunnel.channel import Channel
from sidestep.tunnel.opening import StreamOpening

MAX_BODY: Final = 1024 * 1024
"""Bytes of one body that are kept."""
MAX_STREAMS: Final = 1024
"""Requests of an HTTP/2 connection that are read at once; others are not told."""
_PREFACE: Final = 24
"""Bytes of the client's connection preface (RFC 9113, section 3.4)."""

Fields = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class CopiedRequest:
    """One request, as the handler got it. Names of fields are in lower case."""

    opening: StreamOpening
    """The copy that it came in: pod, port and client."""
    method: bytes
    target: bytes
    fields: Fields
    body: bytearray = field(default_factory=bytearray)
    trailers: Fields = field(default_factory=list)
    is_cut: bool = False
    """There was more of the body, or its trailers."""
    began: float = field(default_factory=time.monotonic)
    """When its head had come."""

    def add(self, data: bytes) -> None:
        """Keep bytes of the body while there is room."""
        room = MAX_BODY - len(self.body)
        self.body += data[:room]
        self.is_cut |= len(data) > room


Take = Callable[[CopiedRequest], None]


class _Reader(Protocol):
    def receive(self, data: bytes) -> None:
        """Take bytes of the copy."""

    def over(self) -> None:
        """The copy has ended."""


class RecordingHandler(Handler):
    """A handler that tells `take` each request that is copied to it."""

    def __init__(self, settings: HandlerSettings, take: Take) -> None:
        super().__init__(settings)
        self._take = take

    async def dial(self, opening: StreamOpening) -> Channel:
        """As Handler.dial."""
        channel = await super().dial(opening)
        if opening.protocol == "http/1.1":
            return _RecordingChannel(channel, _Http1Copy(opening, self._take))
        if opening.protocol == "h2":
            return _RecordingChannel(channel, _Http2Copies(opening, self._take))
        return channel


class _RecordingChannel:
    """A `tunnel.channel.Channel` whose written bytes a reader is told, too."""

    def __init__(self, channel: Channel, reader: _Reader) -> None:
        self._channel = channel
        self._reader = reader

    async def read(self) -> bytes:
        """As Channel.read."""
        return await self._channel.read()

    async def write(self, data: bytes) -> None:
        """As Channel.write."""
        self._reader.receive(data)
        await self._channel.write(data)

    async def write_eof(self) -> None:
        """As Channel.write_eof."""
        self._reader.over()
        await self._channel.write_eof()

    def hung_up(self) -> bool:
        """As Channel.hung_up."""
        return self._channel.hung_up()

    def close(self) -> None:
        """As Channel.close."""
        self._reader.over()
        self._channel.close()

    def abort(self) -> None:
        """As Channel.abort."""
        self._reader.over()
        self._channel.abort()


class _Http1Copy:
    """The copy of one request. After a switch of protocols what follows is not read."""

    def __init__(self, opening: StreamOpening, take: Take) -> None:
        self._opening = opening
        self._take = take
        self._reader: RequestReader | None = RequestReader()
        """None once nothing more is read."""
        self._request: CopiedRequest | None = None
        self._chunks: ChunkedData | None = None
        self._trailers = b""

    def receive(self, data: bytes) -> None:
        at = 0
        while self._reader is not None and at < len(data):
            reader, start = self._reader, at
            at = reader.read(data, at)
            if reader.event == messages.HEADED:
                self._begin(reader, reader.head)
            elif reader.event == messages.BROKEN:
                self.over()
            elif self._request is not None and not reader.in_head:
                self._body(self._request, data[start:at])
                if reader.event == messages.COMPLETE:
                    self._complete(self._request)

    def _begin(self, reader: RequestReader, head: bytes) -> None:
        parsed = parse_request(head)
        if isinstance(parsed, str):
            self._reader = None
            return
        target = head.split(b" ", 2)[1]
        self._request = CopiedRequest(self._opening, parsed.method, target, list(parsed.fields))
        self._chunks = ChunkedData() if parsed.body == CHUNKED else None
        reader.begin(parsed.body)
        if not parsed.body:
            self._complete(self._request)

    def _body(self, request: CopiedRequest, data: bytes) -> None:
        if self._chunks is None:
            request.add(data)
            return
        request.add(self._chunks.read(data))
        self._trailers += self._chunks.trailers
        self._chunks.trailers = b""

    def _complete(self, request: CopiedRequest) -> None:
        lines = self._trailers.removesuffix(END_OF_HEAD).removesuffix(b"\r\n").split(b"\r\n")
        pairs = [line.partition(b":") for line in lines if line]
        request.trailers = [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]
        self._reader = self._request = None
        self._take(request)

    def over(self) -> None:
        request, self._request, self._reader = self._request, None, None
        if request is not None:
            request.is_cut = True
            self._take(request)


class _Every(dict[int, CopiedRequest]):
    """What `AppResponses` is told to look at: all streams."""

    def __contains__(self, stream: object) -> bool:
        return True


class _Http2Copies:
    """The requests of one connection. Header blocks and data are read as those of an app are: the frames are alike."""

    def __init__(self, opening: StreamOpening, take: Take) -> None:
        self._opening = opening
        self._take = take
        self._skipped = 0
        self.responses: Mapping[int, object] = _Every()
        self.samples: Mapping[int, object] = {}
        self._open: dict[int, CopiedRequest] = {}
        self._frames = AppResponses(self, DEFAULT_LIMITS)  # type: ignore[arg-type]  # it takes no samples

    def receive(self, data: bytes) -> None:
        if self._skipped < _PREFACE:
            skip = min(_PREFACE - self._skipped, len(data))
            self._skipped += skip
            data = data[skip:]
        if data:
            self._frames.receive(data)

    def whole_response(self, stream: int, block: Block, size: int) -> bool:
        """Have what comes whole told in parts."""
        del stream, block, size
        return False

    def response_block(self, stream: int, by: Answerer, block: Block, *, ends: bool) -> None:
        """A header block of a request: its head, or its trailers."""
        del by
        request = self._open.get(stream)
        if request is not None:
            request.trailers = list(block.fields)
        elif len(self._open) < MAX_STREAMS and block.fields and block.fields[0][0][:1] == b":":
            pseudo = {name: value for name, value in block.fields if name[:1] == b":"}
            fields = [(name, value) for name, value in block.fields if name[:1] != b":"]
            method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
            if b":authority" in pseudo and not any(name == b"host" for name, _ in fields):
                fields.insert(0, (b"host", pseudo[b":authority"]))
            self._open[stream] = CopiedRequest(self._opening, method, path, fields)
        if ends:
            self.response_end(stream)

    def response_data(self, stream: int, data: bytes) -> None:
        """Data of a request."""
        request = self._open.get(stream)
        if request is not None:
            request.add(data)

    def response_end(self, stream: int) -> None:
        """A request is whole."""
        request = self._open.pop(stream, None)
        if request is not None:
            self._take(request)

    def lose_responses(self) -> None:
        """Nothing more can be read."""
        self.over()

    def over(self) -> None:
        for stream in [*self._open]:
            self._open[stream].is_cut = True
            self.response_end(stream)
