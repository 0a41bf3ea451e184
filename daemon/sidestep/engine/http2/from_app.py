"""The app's bytes on their way to the client.

Nothing is decoded: the app's header blocks go to the client as they are, before and after a diversion, because what is
injected between them leaves the client's HPACK table alone. What is read is where frames begin, which streams end, how
much of the connection window is spent, and SETTINGS, their ACK and GOAWAY. A chunk is handed on as the one object it
came in, except what must change:

    GOAWAY   once streams are diverted: the last stream id covers them; relayed streams in between are refused. Dropped
             when the app ends a connection that only looks idle
    SETTINGS once streams are diverted: an HPACK table that is larger than we follow is announced as large as we do
    DATA     that no longer fits the client's connection window, and what may not overtake it, goes to the queue

Held back for want of bytes: an incomplete frame header; a SETTINGS until it is whole; the first eight bytes of GOAWAY.
All other payloads are cut through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.app_connection import AppConnection, AppEvent, AppState
from sidestep.engine.http2.streams import APP_ENDED, BOTH_ENDED
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM,
    ErrorCode,
    Http2Error,
    Setting,
    read_settings,
    rst_stream,
    settings_frame,
)

if TYPE_CHECKING:
    from sidestep.engine.http2.feed import Http2Feed
    from sidestep.engine.http2.pending_settings import PendingSettings
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.http2.to_client import ToClient

_unpack = HEADER.unpack_from
_UNPROVEN: Final = AppState.UNPROVEN
_LEAVING: Final = frozenset(
    (ErrorCode.NO_ERROR, ErrorCode.INTERNAL_ERROR, ErrorCode.CANCEL, ErrorCode.ENHANCE_YOUR_CALM)
)
"""Codes with which apps end connections that they find idle (gRPC: INTERNAL_ERROR), and that blame no frame of the
client's."""
_BLOCKS: Final = frozenset((HEADERS, CONTINUATION, PUSH_PROMISE))


class FromApp:
    """The reading end of the app's connection; `pending` is what was taken and not handed on yet."""

    __slots__ = ("_app", "_block", "_feed", "_queued", "_rest", "_settings", "_state", "_to_client", "pending")

    def __init__(
        self,
        state: ConnectionState,
        *,
        app: AppConnection,
        settings: PendingSettings,
        to_client: ToClient,
        feed: Http2Feed,
    ) -> None:
        self._state = state
        self._app = app
        self._settings = settings
        self._to_client = to_client
        self._feed = feed
        self._rest = 0
        """Payload bytes still to come of a frame whose beginning was handed on."""
        self._queued = False
        """They go to the queue."""
        self._block = 0
        """The stream whose header block is being continued."""
        self.pending = b""

    def receive(self, data: bytes) -> None:  # noqa: C901 - hot path: one loop, no call per frame
        """Take a chunk. Raises Http2Error; before a diversion all of `pending` is then still to be handed on."""
        if self.pending:
            data = self.pending + data
            self.pending = b""
        end = len(data)
        start = position = 0
        if self._rest:
            if self._rest >= end:
                self._continue(data, end)
                return
            position = self._rest
            if self._queued:
                self._continue(data[:position], position)
                start = position
            self._rest = 0
        state = self._state
        if not state.mixed:
            self.pending = data  # nothing is handed on before the loop is through
        to_client = self._to_client
        boundary = -1 if self._block else position  # the last place at which frames of ours may stand
        if self._app.state is _UNPROVEN and end >= HEADER_SIZE and (data[3] != SETTINGS or data[4] & ACK):
            raise Http2Error("h2-app-not-http2")
        while end - position >= HEADER_SIZE:
            high, low, kind, flags, stream = _unpack(data, position)
            length = high << 8 | low
            stop = position + HEADER_SIZE + length
            stream &= STREAM
            if kind != CONTINUATION:
                boundary = position
            if (self._block or kind == CONTINUATION) and (kind != CONTINUATION or stream != self._block):
                raise Http2Error("h2-continuation")
            if kind == DATA:
                if state.mixed and self._waits(length, stream):
                    self._write(data[start:position])
                    start = self._enqueue(data, position, kind, flags, stream, length)
                else:
                    to_client.window -= length
                if flags & END_STREAM:
                    state.streams.ended(stream, APP_ENDED)
            elif kind in _BLOCKS:
                if self._block_waits(kind, flags, stream):
                    self._write(data[start:position])
                    start = self._enqueue(data, position, kind, flags, stream, length)
                if flags & END_STREAM and kind == HEADERS:
                    state.streams.ended(stream, APP_ENDED)
            else:
                taken = self._other(data, start, position, stop, kind, flags, stream)
                if taken < 0:
                    break
                start = taken
            position = stop
        self._hand_on(data, start, position, boundary)

    def _hand_on(self, data: bytes, start: int, position: int, boundary: int) -> None:
        """Write what the loop passed over; keep what it could not read."""
        state = self._state
        end = len(data)
        if position > end:
            self._rest = position - end
            if state.mixed and start <= boundary and not self._block and self._to_client.wants_boundary:
                # A long download ends each chunk in the middle of a frame: use the last boundary before it.
                self._to_client.pass_on(data[start:boundary], middle=False)
                self._to_client.pump()
                start = boundary
            self.pending = b""
            self._to_client.pass_on(data[start:] if start else data, middle=not self._queued)
            return
        self._queued = False
        self.pending = data[position:]
        self._to_client.pass_on(data if start == 0 and position == end else data[start:position], middle=self._inside)

    @property
    def _inside(self) -> bool:
        """Whether the client has the beginning of a header block and not its end."""
        return self._block != 0 and not self._to_client.queue.is_open

    def _continue(self, data: bytes, size: int) -> None:
        """Payload of the frame at hand, no more."""
        self._rest -= size
        if self._queued:
            self._to_client.queue.feed(data)
            if not self._rest:
                self._queued = False
        else:
            self._to_client.pass_on(data, middle=self._rest > 0 or self._inside)

    def _write(self, data: bytes) -> None:
        """Write what stands before a frame that is not handed on as it is."""
        if data:
            self._to_client.leg.write(data)

    # --- the queue --------------------------------------------------------------------------------------------------

    def _waits(self, length: int, stream: int) -> bool:
        to_client = self._to_client
        if length > to_client.window or to_client.queue:
            return length > 0 or to_client.queue.takes(DATA, stream)
        return False

    def _block_waits(self, kind: int, flags: int, stream: int) -> bool:
        """Keep track of an open header block; tell whether this frame of it goes to the queue."""
        to_client = self._to_client
        begins = not self._block
        self._block = 0 if flags & END_HEADERS else stream
        if not begins:
            return to_client.queue.is_open
        if stream in self._state.streams.exchanges:
            raise Http2Error("h2-app-stream")  # it has never seen this id
        if to_client.queue and to_client.queue.takes(kind, stream):
            return True
        to_client.block_begins()
        return False

    def _enqueue(self, data: bytes, position: int, kind: int, flags: int, stream: int, length: int) -> int:
        """Put a frame, or the part of it that is here, into the queue; the position after that part."""
        queue = self._to_client.queue
        queue.begin(kind, flags, stream, length)
        begin = position + HEADER_SIZE
        stop = begin + length
        queue.feed(data[begin:stop])
        self._queued = stop > len(data)
        return min(stop, len(data))

    # --- everything else --------------------------------------------------------------------------------------------

    def _other(self, data: bytes, start: int, position: int, stop: int, kind: int, flags: int, stream: int) -> int:
        """A frame that is neither DATA nor part of a header block: where the bytes to hand on begin, -1 to wait."""
        state = self._state
        payload = position + HEADER_SIZE
        if kind == SETTINGS:
            if flags & ACK:
                if self._to_client.queue:
                    self._write(data[start:position])
                    return self._enqueue(data, position, kind, flags, stream, stop - payload)
                self._to_client.app_acknowledged()
                return start
            if stop - payload > state.limits.settings or stream:
                raise Http2Error("h2-settings", ErrorCode.FRAME_SIZE_ERROR)
            if stop > len(data):
                return -1
            entries = read_settings(data[payload:stop])
            if state.mixed and (bounded := _bounded(entries, state.limits.table)) != entries:
                self._to_client.leg.write(data[start:position] + settings_frame(bounded))
                entries, start = bounded, stop
            self._settings.app_sent(entries)
            self._app.on(AppEvent.SETTINGS)
            return start
        if kind == RST_STREAM:
            state.streams.ended(stream, BOTH_ENDED)
            self._feed.cut(stream)
            if self._to_client.queue.takes(kind, stream):
                self._write(data[start:position])
                return self._enqueue(data, position, kind, flags, stream, stop - payload)
        elif kind == GOAWAY:
            if stop - payload < 8:
                raise Http2Error("h2-goaway", ErrorCode.FRAME_SIZE_ERROR)
            if len(data) < payload + 8:
                return -1
            code = int.from_bytes(data[payload + 4 : payload + 8], "big")
            if code in _LEAVING and self._app.only_looks_idle:
                self._app.retire()
                return -1  # what follows is not read any more
            return self._goaway(data, start, position)
        return start

    def _goaway(self, data: bytes, start: int, position: int) -> int:
        """Raise the last stream id to cover the diverted streams, and refuse the relayed ones in between."""
        state = self._state
        streams = state.streams
        payload = position + HEADER_SIZE
        last = int.from_bytes(data[payload : payload + 4], "big") & STREAM
        shown = max(last, streams.highest_diverted)
        if streams.goaway is not None:
            shown = min(shown, streams.goaway)  # it must not rise (RFC 9113 section 6.8)
        streams.goaway = shown
        if shown == last:
            return start
        leg = self._to_client.leg
        self._write(data[start:position])
        for stream in [each for each in streams.relayed if last < each <= shown]:
            del streams.relayed[stream]
            self._feed.cut(stream)
            leg.write(rst_stream(stream, ErrorCode.REFUSED_STREAM))
        leg.write(data[position:payload])
        leg.write(shown.to_bytes(4, "big"))
        return payload + 4


def _bounded(entries: tuple[tuple[int, int], ...], table: int) -> tuple[tuple[int, int], ...]:
    """SETTINGS with a HEADER_TABLE_SIZE of at most `table`."""
    return tuple((key, min(value, table) if key == Setting.HEADER_TABLE_SIZE else value) for key, value in entries)
