"""A connection of HTTP/1.1 on which recorded requests are sent, one after the other.

A body goes with its length; one with trailers is chunked (RFC 9112, section 7.1.2).
"""

from __future__ import annotations

import asyncio
import contextlib

import h11

from sidestep.laptop.replay.message import MAX_ANSWER, MAX_HEAD, Fields, Incoming, Outgoing, ReplayError, UnusedError

_READ = 64 * 1024


class Http1Connection:
    """See the module."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        self._was_used = False

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._http.our_state is h11.IDLE and not self._reader.at_eof()

    async def exchange(self, request: Outgoing) -> Incoming:
        """Send a request and read its answer. Raises ReplayError."""
        try:
            self._writer.write(self._encode(request))
            await self._writer.drain()
            return await self._answer()
        except h11.LocalProtocolError as error:
            raise ReplayError(f"the request cannot be sent: {error}") from error
        except h11.RemoteProtocolError as error:
            raise ReplayError(f"the answer cannot be read: {error}") from error
        except OSError as error:
            if self._was_used:
                raise UnusedError("the server closed the connection") from error
            raise ReplayError(f"the connection broke: {error.strerror or error}") from error
        finally:
            self._was_used = True

    def _encode(self, request: Outgoing) -> bytes:
        headers: Fields = [(b"host", request.authority), *request.fields]
        if request.trailers:
            headers.append((b"transfer-encoding", b"chunked"))
        elif request.body or request.method in (b"POST", b"PUT", b"PATCH"):
            headers.append((b"content-length", b"%d" % len(request.body)))
        data = self._http.send(h11.Request(method=request.method, target=request.target, headers=headers)) or b""
        if request.body:
            data += self._http.send(h11.Data(data=request.body)) or b""
        return data + (self._http.send(h11.EndOfMessage(headers=request.trailers)) or b"")

    async def _answer(self) -> Incoming:
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self._reader.read(_READ)
                if not data and head is None and self._was_used:
                    raise UnusedError("the server closed the connection")
                if not data and head is None:
                    raise ReplayError("the server closed the connection without an answer")
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_ANSWER:
                    raise ReplayError(f"the answer is larger than {MAX_ANSWER >> 20} MiB")
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    raise ReplayError("the server switches to another protocol")
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise ReplayError("the answer is not whole")
        if head is None:
            raise ReplayError("the answer is not whole")
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        return Incoming(head.status_code, list(head.headers), bytes(body), list(event.headers))

    async def aclose(self) -> None:
        """Close it."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
