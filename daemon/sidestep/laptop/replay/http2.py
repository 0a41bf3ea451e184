"""A connection of HTTP/2 on which recorded requests are sent, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from sidestep.laptop.replay.message import MAX_ANSWER, Fields, Incoming, Outgoing, ReplayError, UnusedError

_READ = 64 * 1024
_STATUS = re.compile(rb"[1-9][0-9]{2}")


class Http2Connection:
    """See the module."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, scheme: bytes) -> None:
        self._reader = reader
        self._writer = writer
        self._scheme = scheme
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._http = h2.connection.H2Connection(config)
        self._http.initiate_connection()
        self._is_over = False
        self._was_used = False

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return not self._is_over and not self._reader.at_eof()

    async def exchange(self, request: Outgoing) -> Incoming:
        """Send a request and read its answer. Raises ReplayError."""
        try:
            stream = self._http.get_next_available_stream_id()
            pseudo = [
                (b":method", request.method),
                (b":scheme", self._scheme),
                (b":authority", request.authority),
                (b":path", request.target),
            ]
            is_whole = not request.body and not request.trailers
            self._http.send_headers(stream, [*pseudo, *request.fields], end_stream=is_whole)
            answer = _Answer(stream)
            if not is_whole:
                await self._send_body(stream, request, answer)
            while not answer.ended:
                await self._flush()
                await self._receive(answer)
            await self._flush()
        except h2.exceptions.ProtocolError as error:
            self._is_over = True
            raise ReplayError(f"HTTP/2 failed: {error}") from error
        except OSError as error:
            self._is_over = True
            if self._was_used:
                raise UnusedError("the server closed the connection") from error
            raise ReplayError(f"the connection broke: {error.strerror or error}") from error
        finally:
            self._was_used = True
        return Incoming(answer.status, answer.fields, bytes(answer.body), answer.trailers)

    async def _send_body(self, stream: int, request: Outgoing, answer: _Answer) -> None:
        body = memoryview(request.body)
        while body and not answer.ended:
            room = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)
            if room <= 0:
                await self._flush()
                await self._receive(answer)
                continue
            piece, body = body[:room], body[room:]
            self._http.send_data(stream, bytes(piece), end_stream=not body and not request.trailers)
        if request.trailers and not answer.ended:
            self._http.send_headers(stream, request.trailers, end_stream=True)

    async def _flush(self) -> None:
        self._writer.write(self._http.data_to_send())
        await self._writer.drain()

    async def _receive(self, answer: _Answer) -> None:
        data = await self._reader.read(_READ)
        if not data:
            self._is_over = True
            if self._was_used and not answer.status:
                raise UnusedError("the server closed the connection")
            raise ReplayError("the server closed the connection before the answer was whole")
        for event in self._http.receive_data(data):
            if isinstance(event, h2.events.ConnectionTerminated):
                self._is_over = True
                if event.error_code:
                    raise ReplayError(f"the server ended the connection: HTTP/2 error {int(event.error_code)}")
            elif isinstance(event, h2.events.DataReceived):
                self._http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            answer.take(event)
        if self._is_over and not answer.ended and not answer.status and self._was_used:
            raise UnusedError("the server closed the connection")

    async def aclose(self) -> None:
        """Close it."""
        with contextlib.suppress(h2.exceptions.ProtocolError, OSError):
            self._http.close_connection()
            self._writer.write(self._http.data_to_send())
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class _Answer:
    """What has come of an answer."""

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self.status = 0
        self.fields: Fields = []
        self.body = bytearray()
        self.trailers: Fields = []
        self.ended = False

    def take(self, event: Any) -> None:
        """Take an event of the connection."""
        if getattr(event, "stream_id", None) != self._stream:
            return
        match event:
            case h2.events.ResponseReceived():
                headers = [(bytes(name), bytes(value)) for name, value in event.headers or ()]
                status = dict(headers).get(b":status", b"")
                if _STATUS.fullmatch(status) is None:  # h2 takes any value
                    raise ReplayError("the answer's status is no number")
                self.status = int(status)
                self.fields = [(name, value) for name, value in headers if name[:1] != b":"]
            case h2.events.DataReceived():
                self.body += event.data or b""
                if len(self.body) > MAX_ANSWER:
                    raise ReplayError(f"the answer is larger than {MAX_ANSWER >> 20} MiB")
            case h2.events.TrailersReceived():
                self.trailers = [(bytes(name), bytes(value)) for name, value in event.headers or ()]
            case h2.events.StreamEnded():
                self.ended = True
            case h2.events.StreamReset():
                raise ReplayError(f"the server reset the request (error {event.error_code})")
