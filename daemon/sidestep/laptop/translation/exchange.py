"""Carries one request from a stream of the tunnel's HTTP/2 to the handler's HTTP/1.1, and its answer back.

Body and answer are transferred concurrently, one chunk at a time, which propagates back-pressure in both directions: a
handler that does not read stops the reader of the stream, and the window of the stream stops the client.

    the answer is complete, the request is sent completely   the connection is kept
    the answer is complete, the handler stops reading        RST_STREAM(NO_ERROR) after `LINGER`, connection closed
    the handler breaks off inside its answer                 RST_STREAM(INTERNAL_ERROR), so it never looks complete
    it breaks off before its answer, on a kept connection    once more on a fresh one
    it breaks off before its answer, or speaks no HTTP       a 502, or to the app if no byte of a body was consumed
    its answer's head is larger than `MAX_HEAD`              a 502 with that reason
    the client resets the stream                             the connection is closed with a reset
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11

from sidestep.laptop.translation.connection_pool import MAX_HEAD, ConnectionPool, HandlerConnection
from sidestep.laptop.translation.fields import Request, refusal, request_of, response_of, trailers_of
from sidestep.model.errors import RefusedError
from sidestep.tunnel.errors import ChannelBrokenError, StreamResetError
from sidestep.tunnel.pump import cancel_and_wait
from sidestep.tunnel.stream import HTTP_1_1_REQUIRED, INTERNAL_ERROR, NO_ERROR, PROTOCOL_ERROR, Stream

LINGER: Final = 5.0
"""Seconds for which a handler may continue reading a request after its answer is complete."""
_HEAD_TOO_LARGE: Final = 431
"""h11's `error_status_hint` for a head above its `max_incomplete_event_size`."""
_FIELD: Final = 32
"""Bytes that HTTP/2 adds per field to the length of name and value (RFC 9113, SETTINGS_MAX_HEADER_LIST_SIZE)."""
_BODILESS: Final = frozenset({204, 304})


class _UnansweredError(Exception):
    """The handler closed, or sent something other than HTTP, before its answer began."""


class _TooLargeError(Exception):
    """The head of the handler's answer exceeds the limit."""


class TranslatedExchange:
    """One exchange. `intercept` and `handler` are names used in error texts."""

    def __init__(self, stream: Stream, connections: ConnectionPool, *, intercept: str, handler: str) -> None:
        self._stream = stream
        self._connections = connections
        self._intercept = intercept
        self._handler = handler
        self._consumed = False
        """Whether a byte of the body was read from the stream."""

    async def refuse(self, reason: str) -> None:
        """Answer with an error that gives the reason."""
        stream = self._stream
        status, fields, body = refusal(stream.headers, reason, intercept=self._intercept)
        stream.respond(status, fields, end_stream=not body)
        if body:
            await stream.write(body)
            await stream.write_eof()
        if not stream.over:
            stream.reset(NO_ERROR)

    async def run(self) -> None:
        """Serve the stream."""
        stream = self._stream
        try:
            request = request_of(stream.headers, has_body=not stream.at_end or bool(stream.trailers))
        except h11.LocalProtocolError as error:
            await self.refuse(
                f"HTTP/1.1, all that the handler at {self._handler} speaks, cannot carry this request: {error}"
            )
            return
        try:
            await self._answer(request)
        except StreamResetError:
            return
        except RefusedError as error:
            await self._give_up(str(error))
        except _UnansweredError as error:
            await self._give_up(f"the handler at {self._handler} did not answer: {error}")
        except _TooLargeError:
            await self.refuse(f"the handler at {self._handler} answered with a head of more than {MAX_HEAD >> 10} KiB")

    async def _give_up(self, reason: str) -> None:
        """There is no answer of the handler: let the app answer if possible, otherwise answer 502."""
        if self._consumed:
            await self.refuse(reason)
        else:
            self._stream.reset(HTTP_1_1_REQUIRED)  # REFUSED_STREAM would invite the client to repeat the request

    async def _answer(self, request: Request) -> None:
        connection = await self._connections.acquire(fresh=not request.repeatable)
        try:
            await self._attempt(request, connection)
        except _UnansweredError:
            if not connection.used:
                raise
            await self._attempt(request, await self._connections.acquire(fresh=True))

    async def _attempt(self, request: Request, connection: HandlerConnection) -> None:
        """Perform the exchange on this connection. Raises _UnansweredError, _TooLargeError, StreamResetError."""
        stream = self._stream
        sending = asyncio.create_task(self._send(request, connection), name=f"translate-request-{stream.id}")
        receiving = asyncio.create_task(self._receive(request, connection), name=f"translate-answer-{stream.id}")
        broken = asyncio.create_task(stream.until_broken(), name=f"translate-watch-{stream.id}")
        sound = False
        try:
            await asyncio.wait({receiving, broken}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done() and receiving.result():
                await asyncio.wait({sending, broken}, timeout=LINGER, return_when=asyncio.FIRST_COMPLETED)
                sound = sending.done() and sending.exception() is None
        finally:
            try:
                await cancel_and_wait(sending, receiving, broken)
            finally:
                self._connections.release(connection, sound=sound)
        if not stream.over:
            stream.reset(NO_ERROR)

    async def _send(self, request: Request, connection: HandlerConnection) -> None:
        """Send the request. Raises ChannelBrokenError (the answer then decides), and PeerError of the stream."""
        stream = self._stream
        try:
            await connection.send(request.head)
            if request.has_body:
                while data := await stream.read():
                    self._consumed = True
                    await connection.send(h11.Data(data=data))
                    await asyncio.sleep(0)  # neither call yields while data and room are available
            trailers = trailers_of(stream.trailers) if request.chunked else []
            await connection.send(h11.EndOfMessage(headers=trailers))
        except h11.LocalProtocolError:  # a body of another length than announced, or invalid trailers
            stream.reset(PROTOCOL_ERROR)

    async def _receive(self, request: Request, connection: HandlerConnection) -> bool:
        """Forward the answer; returns whether it was complete. Raises as `_attempt`, and PeerError of the stream."""
        stream = self._stream
        try:
            head = await self._head(connection)
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == _HEAD_TOO_LARGE:
                raise _TooLargeError from error
            raise _UnansweredError(str(error)) from error
        except (ChannelBrokenError, h11.ProtocolError) as error:
            raise _UnansweredError(str(error)) from error
        if sum(len(name) + len(value) + _FIELD for name, value in head.headers) > MAX_HEAD:
            raise _TooLargeError
        fields = response_of(head.headers)
        without = request.head.method == b"HEAD" or head.status_code in _BODILESS or ("content-length", "0") in fields
        stream.respond(head.status_code, fields, end_stream=without)
        try:
            while not isinstance(event := await connection.receive(), h11.EndOfMessage):
                if isinstance(event, h11.Data) and event.data:
                    await stream.write(bytes(event.data))
                    await asyncio.sleep(0)
        except (ChannelBrokenError, h11.ProtocolError):
            stream.reset(INTERNAL_ERROR)
            return False
        if not without:
            trailers = response_of(event.headers)
            if trailers:
                stream.finish_with(trailers)
            else:
                await stream.write_eof()
        return True

    async def _head(self, connection: HandlerConnection) -> h11.Response:
        while True:
            event = await connection.receive()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise h11.RemoteProtocolError("it closed the connection")
            self._stream.respond(event.status_code, response_of(event.headers))
