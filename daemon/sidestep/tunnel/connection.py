"""An HTTP/2 connection of the tunnel: an asyncio shell around `h2`, for both roles.

In: bytes of a transport. Out: streams. The node daemon is the HTTP/2 client and opens streams; the CLI is the server
and serves them. The argument `serve` selects the role; everything else is common.

Invariants
  * Reading the transport never pauses. The windows of the streams bound what arrives; the window of the connection is
    credited on arrival.
  * Writing pauses. A stream writes only while fewer than `send_buffer` bytes wait in the transport. Waiting streams
    are woken in order, one frame each, so that none starves.
  * A PING is sent every `keepalive` seconds. After `silent_intervals` intervals without a byte from the peer the tunnel
    counts as broken. (Counting intervals instead of seconds avoids blaming the peer after this process was stopped.)
  * Until `mark_proved`, a peer may send `unproved_bytes` and `unproved_frames` in total, and receives no PING.
  * Unread bytes of streams count for the node's `UnreadBudget`; above its limit the fullest stream is reset.
  * A protocol error, a flood or a bug ends the connection; `closed` has the reason. A broken stream ends alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from sidestep.aio.tasks import Tasks
from sidestep.model.errors import BugError, PeerError, SidestepError
from sidestep.tunnel.errors import StreamResetError, TunnelClosedError, TunnelSilentError
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.quiet_frames import quieten
from sidestep.tunnel.stream import INTERNAL_ERROR, Headers, Stream
from sidestep.tunnel.unread_budget import UnreadBudget
from sidestep.tunnel.window import ReceiveWindow, WindowPool

Serve = Callable[[Stream], Awaitable[None]]
"""Serves one stream that the peer opened. When it returns, the stream is reset unless both directions have ended."""

UNREAD = 60.0
"""Seconds after the end of a tunnel during which received bytes can still be read."""

_CODES = h2.settings.SettingCodes

quieten()


class Connection(asyncio.Protocol):
    """One HTTP/2 connection: the server with `serve`, otherwise the client.

    `closed` resolves to None after an orderly end (`close`, GOAWAY, end of bytes between frames) and to the error
    otherwise; it never raises.
    """

    def __init__(
        self,
        *,
        serve: Serve | None = None,
        limits: TunnelLimits = DEFAULT_LIMITS,
        budget: UnreadBudget | None = None,
        proved: bool = True,
    ) -> None:
        """Create a connection. `budget` is shared by all tunnels of the node. See `mark_proved` for `proved`."""
        self._serve = serve
        self._budget = budget
        self._proved = proved
        self._unproved = 0
        """Bytes received from the peer before it proved its identity."""
        self._holding: dict[Stream, int] = {}
        """Unread bytes, by stream."""
        self._limits = limits
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=serve is None, header_encoding=None)
        )
        self._streams: dict[int, Stream] = {}
        self._pool = WindowPool(limits.window_pool) if budget is None else budget.windows(limits.window_pool)
        self._waiting: dict[int, None] = {}
        self._queue: deque[asyncio.Future[None]] = deque()
        """Callers of `wait_for_free_stream`, in order."""
        self._paused = False
        self._transport: asyncio.Transport | None = None
        self._serving = Tasks("tunnel", on_crash=self._crashed)
        self._keepalive: asyncio.TimerHandle | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._silent = 0
        self._control_frames = 0
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[SidestepError | None] = self._loop.create_future()

    # --- for the owner of the connection
    # --------------------------------------------------------------------------------

    def open(self, headers: Headers, *, end_stream: bool = False) -> Stream:
        """Open a stream with a request (client only).

        Raises TunnelClosedError when the tunnel is closed, PeerError when the limit of streams is reached.
        """
        if self._transport is None or self.closed.done():
            raise TunnelClosedError("the tunnel is closed")
        if not self._has_free_stream:
            raise PeerError(f"the session already has {self._h2.open_outbound_streams} connections open")
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, [_encoded(field) for field in headers], end_stream=end_stream)
        except h2.exceptions.H2Error as error:
            raise TunnelClosedError(f"the tunnel takes no more streams: {error}") from error
        stream = self._add(stream_id, headers)
        self._flush()
        return stream

    @property
    def _has_free_stream(self) -> bool:
        most = min(self._h2.remote_settings.max_concurrent_streams, self._limits.streams)
        return self._h2.open_outbound_streams < most

    async def wait_for_free_stream(self) -> None:
        """Wait until another stream may be opened, in order of arrival. The caller sets a deadline.

        Raises PeerError when too many callers wait.
        """
        if len(self._queue) >= self._limits.streams:
            raise PeerError(f"the session already has {self._h2.open_outbound_streams} connections open, others wait")
        behind = bool(self._queue)
        while not self.closed.done() and (behind or not self._has_free_stream):
            turn: asyncio.Future[None] = self._loop.create_future()
            self._queue.append(turn)
            behind = False
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._wake_next_waiter()  # this caller does not use the free stream
                elif turn in self._queue:
                    self._queue.remove(turn)
                raise

    def _wake_next_waiter(self) -> None:
        """Wake the caller that has waited longest, after a stream or the connection has ended.

        A cancelled future can still be in the queue, because its task runs later.
        """
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def close(self, error: SidestepError | None = None) -> None:
        """End the connection: GOAWAY, then queued bytes, then the transport. Streams fail immediately."""
        if self.closed.done():
            return
        self._finish(error)
        if self._transport is not None:
            code = h2.errors.ErrorCodes.NO_ERROR if error is None else h2.errors.ErrorCodes.PROTOCOL_ERROR
            try:
                self._h2.close_connection(code)
            except h2.exceptions.H2Error:
                pass  # h2 has terminated already and queued its own GOAWAY
            self._transport.write(self._h2.data_to_send())
            self._transport.close()
            self._farewell = self._loop.call_later(self._limits.farewell, self._transport.abort)

    def mark_proved(self) -> None:
        """Record that the peer has proved its identity: from now on the normal limits apply."""
        self._proved = True
        self._control_frames = 0

    async def wait_closed(self) -> SidestepError | None:
        """Wait for the end and for the cancellation of every stream's server. Returns the result of `closed`."""
        error = await asyncio.shield(self.closed)
        await self._serving.aclose()
        return error

    @property
    def streams(self) -> int:
        """Number of open streams."""
        return len(self._streams)

    # --- asyncio.Protocol -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send preface and settings. Also called directly when a transport is taken over after an upgrade."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._limits.send_buffer)
        limits = self._limits
        self._h2.local_settings = h2.settings.Settings(
            client=self._serve is None,
            initial_values={
                _CODES.INITIAL_WINDOW_SIZE: limits.stream_window,
                _CODES.MAX_FRAME_SIZE: limits.frame_size,
                _CODES.MAX_HEADER_LIST_SIZE: limits.header_list,
                _CODES.MAX_CONCURRENT_STREAMS: limits.streams,
                _CODES.ENABLE_PUSH: 0,
                _CODES.ENABLE_CONNECT_PROTOCOL: int(self._serve is not None),
            },
        )
        self._h2.max_inbound_frame_size = limits.frame_size
        self._h2.decoder.max_header_list_size = limits.header_list
        self._h2.initiate_connection()
        self._credit_connection()
        self._flush()
        self._keepalive = self._loop.call_later(limits.keepalive, self._tick)

    def data_received(self, data: bytes) -> None:
        """Process bytes of the peer."""
        if self.closed.done():
            return
        self._silent = 0
        if not self._proved:
            self._unproved += len(data)
            if self._unproved > self._limits.unproved_bytes:
                self.close(PeerError("the other end of the tunnel says much and proves nothing", code=0xB))
                return
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.close(PeerError(f"the other end of the tunnel broke HTTP/2: {error}", code=int(error.error_code)))
            return
        for event in events:
            if not isinstance(event, h2.events.DataReceived):
                self._control_frames += 1
            self._handle(event)
            if self.closed.done():
                return
        limits = self._limits
        if self._control_frames > (limits.control_frames if self._proved else limits.unproved_frames):
            self.close(PeerError("the other end of the tunnel floods it with control frames", code=0xB))
            return
        self._credit_connection()
        self._flush()

    def eof_received(self) -> bool:
        """The peer has closed its side; HTTP/2 has no half-closed connections."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport has ended."""
        self._finish(None if exc is None else TunnelClosedError(f"the tunnel broke: {exc}"))
        self._transport = None
        if self._farewell is not None:
            self._farewell.cancel()
        if self._holding:
            self._loop.call_later(UNREAD, self._forget_unread)

    def pause_writing(self) -> None:
        """The transport's buffer is above `send_buffer`."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._paused = False
        self._wake_writers()

    # --- StreamHost
    # -----------------------------------------------------------------------------------------------------

    def send_window(self, stream_id: int) -> int:
        """Return the bytes that the stream may send now, at most one frame. After 0 the stream is woken when that may
        change.
        """
        if stream_id not in self._streams:
            return 0
        if not self._paused:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room > 0:
                return min(room, self._limits.frame_size)
        self._waiting[stream_id] = None
        return 0

    def send_data(self, stream_id: int, data: bytes | memoryview) -> None:
        """Send one DATA frame."""
        self._h2.send_data(stream_id, data)
        self._flush()

    def send_end(self, stream_id: int) -> None:
        """Send END_STREAM."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._h2.end_stream(stream_id)
            self._flush()
            self._forget_if_over(stream)

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """Send a header block on an open stream."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._h2.send_headers(stream_id, [_encoded(field) for field in headers], end_stream=end_stream)
            self._flush()
            self._forget_if_over(stream)

    def send_reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.release()
            self._h2.reset_stream(stream_id, code)
            self._flush()
            self._wake_next_waiter()

    def credit(self, stream_id: int, size: int) -> None:
        """Enlarge the receive window of a stream by `size` bytes."""
        if stream_id in self._streams:
            self._h2.increment_flow_control_window(size, stream_id)
            self._flush()

    def unread_changed(self, stream: Stream, change: int) -> None:
        """Count `change` more (or fewer) unread bytes of a stream."""
        if self._budget is None:
            return
        size = self._holding.get(stream, 0) + change
        if size:
            self._holding[stream] = size
        else:
            self._holding.pop(stream, None)
        if change > 0:
            self._budget.add(self, change)
        else:
            self._budget.subtract(self, -change)

    def _forget_unread(self) -> None:
        for stream in tuple(self._holding):
            stream.overrun()

    def shed(self) -> None:
        """As UnreadHolder.shed: reset the stream with the most unread bytes."""
        if self._holding:
            max(self._holding, key=self._holding.__getitem__).overrun()

    # --- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                if self._serve is None:  # h2 accepts HEADERS of a server on a server-initiated stream as a request
                    self.close(PeerError("the other end of the tunnel sent a request to a client"))
                else:
                    self._accept(self._serve, self._add(event.stream_id or 0, _decoded(event.headers or [])))
            case h2.events.WindowUpdated(stream_id=0):
                self._wake_writers()
            case h2.events.RemoteSettingsChanged():
                # The peer may announce a table of up to 4 GiB, which h2 would fill stream by stream.
                table = min(self._h2.encoder.header_table_size, self._limits.header_table)
                self._h2.encoder.header_table_size = table
                self._wake_writers()
                for _ in range(len(self._queue)):
                    self._wake_next_waiter()
            case h2.events.ConnectionTerminated():
                code = int(event.error_code or 0)
                self.close(None if code == 0 else PeerError("the other end ended the tunnel", code=code))
            case _:
                stream = self._streams.get(getattr(event, "stream_id", None) or 0)
                if stream is not None:
                    self._handle_stream(event, stream)

    def _handle_stream(self, event: h2.events.Event, stream: Stream) -> None:
        match event:
            case h2.events.DataReceived():
                data = event.data or b""
                stream.feed(data, padding=(event.flow_controlled_length or 0) - len(data))
            case h2.events.TrailersReceived():
                stream.trailers = _decoded(event.headers or [])
            case h2.events.StreamEnded():
                stream.feed_eof()
                self._forget_if_over(stream)
            case h2.events.StreamReset():
                del self._streams[stream.id]
                stream.release()
                stream.fail(StreamResetError(int(event.error_code or 0)))
                self._wake_next_waiter()
            case h2.events.ResponseReceived():
                stream.feed_response(_decoded(event.headers or []))
            case h2.events.WindowUpdated():
                stream.wake_writer()
            case _:
                pass  # acknowledgements and priorities need no action; h2 answers where required

    def _accept(self, serve: Serve, stream: Stream) -> None:
        self._serving.start(self._serve_stream(serve, stream), name=f"stream {stream.id}")

    async def _serve_stream(self, serve: Serve, stream: Stream) -> None:
        try:
            await serve(stream)
        except SidestepError:
            stream.reset(INTERNAL_ERROR)
        finally:
            if not stream.over:
                stream.reset()

    def _crashed(self, task: str, error: BaseException) -> None:
        bug = BugError(f"{task} failed: {error!r}")
        bug.__cause__ = error
        self.close(bug)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _add(self, stream_id: int, headers: Headers) -> Stream:
        window = ReceiveWindow(self._pool, initial=self._limits.stream_window, maximum=self._limits.stream_window_max)
        stream = self._streams[stream_id] = Stream(self, stream_id, headers, window)
        return stream

    def _forget_if_over(self, stream: Stream) -> None:
        if stream.over and self._streams.pop(stream.id, None) is not None:
            stream.release()
            self._wake_next_waiter()

    def _wake_writers(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for stream_id in waiting:
            stream = self._streams.get(stream_id)
            if stream is not None:
                stream.wake_writer()

    def _credit_connection(self) -> None:
        window = self._h2.inbound_flow_control_window
        if window < self._limits.connection_window // 2:
            self._h2.increment_flow_control_window(self._limits.connection_window - window)

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        data = self._h2.data_to_send()
        if data:
            transport.write(data)
            if transport.get_write_buffer_size() > self._limits.send_buffer_hard:
                self._finish(PeerError("the other end of the tunnel does not read its own answers", code=0xB))
                transport.abort()

    def _tick(self) -> None:
        if not self._proved:  # the hello has a deadline of its own
            self._keepalive = self._loop.call_later(self._limits.keepalive, self._tick)
            return
        self._control_frames = 0
        if self._silent >= self._limits.silent_intervals:
            silence = self._limits.keepalive * self._limits.silent_intervals
            self._finish(TunnelSilentError(f"the other end of the tunnel was silent for {silence:g} s"))
            if self._transport is not None:
                self._transport.abort()
            return
        self._silent += 1
        self._h2.ping(b"sidestep")
        self._flush()
        self._keepalive = self._loop.call_later(self._limits.keepalive, self._tick)

    def _finish(self, error: SidestepError | None) -> None:
        """End once: resolve `closed`, stop the keepalive, fail streams, cancel their servers."""
        if self.closed.done():
            return
        self.closed.set_result(error)
        if self._keepalive is not None:
            self._keepalive.cancel()
        gone = TunnelClosedError("the tunnel is closed" if error is None else str(error))
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.release()
            stream.fail(gone)
        while self._queue:
            self._wake_next_waiter()
        self._serving.cancel()


def _encoded(field: tuple[str, str]) -> tuple[bytes, bytes]:
    return field[0].encode("latin-1"), field[1].encode("latin-1")


def _decoded(fields: list[tuple[bytes, bytes]]) -> Headers:
    return tuple((bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in fields)
