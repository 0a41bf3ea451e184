"""One stream of the tunnel: bytes in both directions, each of which ends by itself.

A stream has at most one reader and one writer at a time. Received bytes wait in `_inbox`, bounded by the receive window
(`window.ReceiveWindow`). Reading returns window to the peer, so a stalled reader stalls its own sender. The connection
counts unread bytes for the node's sum (`unread_budget`).

Ends: END_STREAM ends one direction. A reset ends both, but bytes that arrived before it can still be read, as with a
TCP socket: a handler that answers early and closes without reading the body resets its connection *after* its answer. A
reset with NO_ERROR after END_STREAM (RFC 9113 section 8.1) is an orderly end: its sender accepts no more.
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
"""Bytes. Received data of up to SMALL bytes is joined to pieces of up to PIECE bytes."""

Headers = tuple[tuple[str, str], ...]


class StreamHost(Protocol):
    """The operations that a stream needs of its connection."""

    def send_window(self, stream_id: int) -> int:
        """Return the bytes that may be sent on the stream now; 0 when it has to wait."""

    def send_data(self, stream_id: int, data: bytes | memoryview) -> None:
        """Send data of at most `send_window` bytes."""

    def send_end(self, stream_id: int) -> None:
        """Send END_STREAM."""

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """Send a header block."""

    def send_reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM and forget the stream."""

    def credit(self, stream_id: int, size: int) -> None:
        """Enlarge the receive window of the stream by `size` bytes."""

    def unread_changed(self, stream: Stream, change: int) -> None:
        """Record that the stream has `change` more (or fewer) unread bytes."""


class Stream:
    """One stream. `headers` are those of the request, at both ends."""

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
        """Trailers of the peer; valid once `read` has returned b""."""
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

    # --- for the user of the stream
    # -------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Return the next bytes; b"" once the peer has finished.

        Raises StreamResetError or TunnelClosedError after the received bytes have been returned.
        """
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
        """Send bytes; waits for window and transport. Raises StreamResetError or TunnelClosedError."""
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
        """Finish this direction; the other continues. Raises as `write` does; repeating it has no effect."""
        if self._error is not None:
            raise self._error
        if not self._ended:
            self._ended = True
            self._port.send_end(self.id)

    def finish_with(self, trailers: Headers) -> None:
        """Finish this direction with trailers."""
        if self._error is None and not self._ended:
            self._ended = True
            self._port.send_headers(self.id, trailers, end_stream=True)

    def respond(self, status: int, headers: Headers = (), *, end_stream: bool = False) -> None:
        """Answer the request (CLI's end), after any number of 1xx. Has no effect on a stream that has failed."""
        if self._error is None:
            self._ended = self._ended or end_stream
            self._port.send_headers(self.id, ((":status", str(status)), *headers), end_stream=end_stream)

    async def response(self) -> Headers:
        """Wait for the headers of the answer (daemon's end). Raises as `read` does."""
        return await asyncio.shield(self._response_future())

    async def until_broken(self) -> PeerError:
        """Wait until the stream is reset or the tunnel ends; returns the error."""
        if self._error is None:
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.append(watcher)
            try:
                await watcher
            finally:
                self._watchers.remove(watcher)
        assert self._error is not None  # noqa: S101 - set before the watcher wakes
        return self._error

    def reset(self, code: int = CANCEL) -> None:
        """End both directions immediately and drop received bytes. Has no effect on the peer when the stream is
        over.
        """
        self.discard()
        if self._error is None:
            self._port.send_reset(self.id, code)
            self.fail(StreamResetError(code))

    def discard(self) -> None:
        """Drop received bytes."""
        self._inbox.clear()
        self._hold(-self._unread)

    def overrun(self) -> None:
        """Drop unread bytes and reset the stream; the next read raises StreamResetError."""
        self.reset(ENHANCE_YOUR_CALM)
        self._peer_ended = False

    @property
    def at_end(self) -> bool:
        """Whether the peer has finished and everything was read."""
        return self._peer_ended and not self._inbox

    @property
    def over(self) -> bool:
        """Whether both directions have ended, or the stream failed."""
        return self._error is not None or (self._ended and self._peer_ended)

    # --- for the connection
    # ---------------------------------------------------------------------------------------------

    def feed(self, data: bytes, *, padding: int) -> None:
        """Add received bytes. `padding` bytes of window are returned to the peer at once."""
        if data:
            # Small frames are joined: a separate bytes object costs about fifty bytes more.
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
        """Record END_STREAM."""
        self._peer_ended = True
        _wake(self._readable)

    def feed_response(self, headers: Headers) -> None:
        """Record the headers of the answer."""
        future = self._response_future()
        if not future.done():
            future.set_result(headers)

    def fail(self, error: PeerError) -> None:
        """End the stream with an error, which later reads and writes raise."""
        if self._error is not None:
            return
        self._error = error
        future = self._response_future()
        if not future.done():
            future.set_exception(error)
            future.exception()  # retrieved, because there may be no waiter
        for waiter in (self._readable, self._writable, *self._watchers):
            _wake(waiter)

    def wake_writer(self) -> None:
        """Wake the writer, because it may have room again."""
        _wake(self._writable)

    def release(self) -> None:
        """Return this stream's share of the window pool, after the connection has removed the stream."""
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
