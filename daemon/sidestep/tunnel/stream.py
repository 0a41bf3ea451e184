"""One stream of the tunnel: bytes both ways, each direction with an end of its own.

A stream has at most one reader and one writer at a time. Received bytes wait in `_inbox`, which the receive window
bounds (`window.ReceiveWindow`); reading them gives the window back, so a reader that stalls stalls its own sender. The
connection counts them, for the node's sum (`budget`).

Ends: END_STREAM is the end of one direction. A reset ends both, but what arrived before it is still read, as it is from
a TCP socket: a handler that answers early and closes with a body unread resets its connection *after* its answer. A
reset with NO_ERROR that follows END_STREAM (RFC 9113 section 8.1) is an orderly end: its sender takes no more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Protocol

from sidestep.model.errors import BugError
from sidestep.tunnel.errors import StreamResetError

if TYPE_CHECKING:
    from sidestep.model.errors import PeerError
    from sidestep.tunnel.window import ReceiveWindow

NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
REFUSED_STREAM = 0x7
HTTP_1_1_REQUIRED = 0xD
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB

SMALL, PIECE = 1024, 16 * 1024
"""Bytes: received data up to the first is put together, to pieces of the second."""

Headers = tuple[tuple[str, str], ...]


class StreamHost(Protocol):
    """What a stream needs of its connection."""

    def send_window(self, stream_id: int) -> int:
        """Bytes that may be sent on the stream now; 0 when it has to wait."""

    def send_data(self, stream_id: int, data: bytes | memoryview) -> None:
        """Send at most `send_window` bytes."""

    def send_end(self, stream_id: int) -> None:
        """Send END_STREAM."""

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """Send a header block."""

    def send_reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM and forget the stream."""

    def credit(self, stream_id: int, size: int) -> None:
        """Widen the receive window of the stream by `size` bytes."""

    def unread_changed(self, stream: Stream, change: int) -> None:
        """The stream has so many bytes more, or less, that nobody has read."""


class Stream:
    """One stream. `headers` are those of the request, on both ends."""

    __slots__ = (
        "_ended",
        "_error",
        "_inbox",
        "_peer_ended",
        "_port",
        "_readable",
        "_response",
        "_unread",
        "_watchers",
        "_window",
        "_writable",
        "headers",
        "id",
        "trailers",
    )

    def __init__(self, port: StreamHost, stream_id: int, headers: Headers, window: ReceiveWindow) -> None:
        self.id = stream_id
        self.headers = headers
        self.trailers: Headers = ()
        """What the peer sent after its last byte; there to be read once `read` has returned b""."""
        self._port = port
        self._inbox: deque[bytes | bytearray] = deque()
        self._unread = 0
        self._window = window
        self._ended = False
        self._peer_ended = False
        self._error: PeerError | None = None
        self._readable: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._watchers: list[asyncio.Future[None]] = []
        self._response: asyncio.Future[Headers] | None = None

    # --- for its user -----------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Return the next bytes, b"" once the peer finished. After them raises StreamResetError, TunnelClosedError."""
        while not self._inbox:
            if self._peer_ended:
                return b""
            if self._error is not None:
                raise self._error
            self._readable = asyncio.get_running_loop().create_future()
            await self._readable
        data = self._inbox.popleft()
        self._hold(-len(data))
        self._consume(len(data))
        return bytes(data)

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting for window and transport. Raises StreamResetError or TunnelClosedError."""
        if self._ended:
            raise BugError(f"stream {self.id} was written to after its end")
        sent, size = 0, len(data)
        view = memoryview(data)
        while sent < size:
            if self._error is not None:
                raise self._error
            room = self._port.send_window(self.id)
            if room <= 0:
                self._writable = asyncio.get_running_loop().create_future()
                await self._writable
                continue
            whole = sent == 0 and room >= size
            self._port.send_data(self.id, data if whole else view[sent : sent + room])
            sent += room

    async def write_eof(self) -> None:
        """Finish this direction; the other goes on. Raises as `write` does; doing it twice is harmless."""
        if self._error is not None:
            raise self._error
        if not self._ended:
            self._ended = True
            self._port.send_end(self.id)

    def finish_with(self, trailers: Headers) -> None:
        """Finish this direction with a header block."""
        if self._error is None and not self._ended:
            self._ended = True
            self._port.send_headers(self.id, trailers, end_stream=True)

    def respond(self, status: int, headers: Headers = (), *, end_stream: bool = False) -> None:
        """Answer the request (the CLI's end), after any number of 1xx. A stream that is gone takes none, silently."""
        if self._error is None:
            self._ended = self._ended or end_stream
            self._port.send_headers(self.id, ((":status", str(status)), *headers), end_stream=end_stream)

    async def response(self) -> Headers:
        """Wait for the answer's header block (the daemon's end). Raises as `read` does."""
        return await asyncio.shield(self._response_future())

    async def until_broken(self) -> PeerError:
        """Wait until the stream is reset or the tunnel is gone."""
        if self._error is None:
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append(watcher)
            try:
                await watcher
            finally:
                self._watchers.remove(watcher)
        assert self._error is not None  # noqa: S101 - told so by the watcher
        return self._error

    def reset(self, code: int = CANCEL) -> None:
        """End both directions at once; what has arrived is not read any more. Harmless on a stream that is over."""
        self.discard()
        if self._error is None:
            self._port.send_reset(self.id, code)
            self.fail(StreamResetError(code))

    def discard(self) -> None:
        """Nobody will read what has arrived."""
        self._inbox.clear()
        self._hold(-self._unread)

    def overrun(self) -> None:
        """Too much has arrived that nobody reads: it is thrown away, and who reads next is told so."""
        self.reset(ENHANCE_YOUR_CALM)
        self._peer_ended = False

    @property
    def at_end(self) -> bool:
        """Whether the peer has finished its direction and all of it was read."""
        return self._peer_ended and not self._inbox

    @property
    def over(self) -> bool:
        """Whether both directions have ended, or the stream broke."""
        return self._error is not None or (self._ended and self._peer_ended)

    # --- for its connection -----------------------------------------------------------------------------------------

    def feed(self, data: bytes, *, padding: int) -> None:
        """Take received bytes; `padding` bytes of window came with them and are given back at once."""
        if data:
            # Small frames are put together: each piece by itself takes some fifty bytes more.
            last = self._inbox[-1] if self._inbox else b""
            if len(data) > SMALL or not 0 < len(last) < PIECE:
                self._inbox.append(data)
            elif isinstance(last, bytearray):
                last += data
            else:
                self._inbox[-1] = bytearray(last + data)
            _wake(self._readable)
            self._hold(len(data))
        if padding:
            self._consume(padding)

    def feed_eof(self) -> None:
        """Take END_STREAM."""
        self._peer_ended = True
        _wake(self._readable)

    def feed_response(self, headers: Headers) -> None:
        """Take the answer's header block."""
        future = self._response_future()
        if not future.done():
            future.set_result(headers)

    def fail(self, error: PeerError) -> None:
        """The stream is over, with this error for whoever reads or writes from now on."""
        if self._error is not None:
            return
        self._error = error
        future = self._response_future()
        if not future.done():
            future.set_exception(error)
            future.exception()  # retrieved: nobody has to be waiting for it
        for waiter in (self._readable, self._writable, *self._watchers):
            _wake(waiter)

    def wake_writer(self) -> None:
        """There may be room to write again."""
        _wake(self._writable)

    def release(self) -> None:
        """The connection has forgotten the stream; its share of the window pool is free again."""
        self._window.release()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _response_future(self) -> asyncio.Future[Headers]:
        if self._response is None:
            self._response = asyncio.get_running_loop().create_future()
        return self._response

    def _hold(self, change: int) -> None:
        if change:
            self._unread += change
            self._port.unread_changed(self, change)

    def _consume(self, size: int) -> None:
        increment = self._window.consumed(size)
        if increment and not self._peer_ended and self._error is None:
            self._port.credit(self.id, increment)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
