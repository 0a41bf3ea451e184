"""An HTTP/2 connection on which the engine is the client: to a handler, or the app's second one.

It has stream ids, SETTINGS, HPACK contexts and flow control of its own. Requests go out as literals without indexing,
so there is no encoder state; responses are decoded, and re-encoded by `ToClient`.

    waiting   exchanges that have no stream here yet: the leg is not connected, the peer has not sent its SETTINGS (its
              MAX_CONCURRENT_STREAMS and whether it takes extended CONNECT are in there), or it takes no more at once
    streams   exchanges by stream id, until both sides have ended or one has reset
    ready     those of them that may have something to send

Memory. What the peer may send is bounded by windows: `stream_window` for a stream, `connection_window` for all,
given back as the client takes the bytes (`passed_on`), half a window at a time. What is sent leaves the exchange only
as the peer's windows and the leg allow; below that the exchange keeps it, where its own bound applies.

What the link learns it tells its owner: `answered` (something for the client), `peer_reset`, `refused` (not
processed, RFC 9113 sections 6.8 and 8.7: somebody else may answer; the exchange has been rewound). An error of the peer
is an Http2Error; the owner then ends the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from sidestep.engine.http2.head import status_of
from sidestep.engine.http2.link_reader import LinkReader
from sidestep.engine.relay import HIGH_WATER, Ending, Leg
from sidestep.protocols.hpack import DEFAULT_CAPACITY, size_updates
from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    FRAME,
    PREFACE,
    SETTINGS_ACK,
    STREAM,
    WINDOW,
    ErrorCode,
    Http2Error,
    Http2Limits,
    Setting,
    frame,
    header_frames,
    rst_stream,
    settings,
    window_update,
)

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.protocols.hpack import Block, Memo

_DEBUG: Final = 8
"""Bytes of a GOAWAY that are read."""


class Owner(Protocol):
    """Who is told; see the module."""

    def answered(self, exchange: Exchange) -> None:
        """Something of the response has come."""

    def peer_reset(self, exchange: Exchange, code: int) -> None:
        """The peer reset the stream."""

    def refused(self, exchange: Exchange, link: Link) -> None:
        """The peer has not processed the request, and will not."""

    def too_large(self, exchange: Exchange) -> None:
        """The peer's header block for it is over the limit; the stream has been reset."""

    def unwilling(self, exchange: Exchange, link: Link) -> None:
        """The peer will not answer this request, of which no byte of the body was consumed."""

    def unable(self, exchange: Exchange) -> None:
        """The peer does not take this kind of request."""

    def forwarded(self, exchange: Exchange, size: int) -> None:
        """So many bytes of the request's body have gone to the peer."""


class Link:
    """See the module. `is_app`: the second connection to the app."""

    __slots__ = (
        "_credit",
        "_initial",
        "_limited",
        "_limits",
        "_maximum",
        "_may_connect",
        "_next",
        "_owes_update",
        "_owner",
        "_reader",
        "_room",
        "_table",
        "_window",
        "age",
        "is_app",
        "leaving",
        "leg",
        "opened",
        "ready",
        "served",
        "settled",
        "streams",
        "waiting",
    )

    def __init__(self, leg: Leg, owner: Owner, memo: Memo, limits: Http2Limits, *, is_app: bool) -> None:
        self.leg = leg
        self.is_app = is_app
        self.opened = False
        self.leaving = False
        """GOAWAY has come, or ids are used up: no new streams."""
        self.streams: dict[int, Exchange] = {}
        self.waiting: dict[Exchange, None] = {}
        self.ready: dict[Exchange, None] = {}
        self.age = 0
        """For the owner: ticks for which it has waited for something."""
        self.served = False
        """The peer has processed a request."""
        self._owner = owner
        self._limits = limits
        self._next = 1
        # what the peer said
        self.settled = False
        """SETTINGS have come."""
        self._initial = WINDOW
        self._maximum = STREAM
        self._limited = STREAM
        """How many streams were open when the peer refused one more."""
        self._may_connect = False
        self._window = WINDOW
        self._table = DEFAULT_CAPACITY
        """Capacity of our encoder's table, which stays empty; lower than announced while `_owes_update`."""
        self._owes_update = False
        # what we gave and have to give back
        self._room = limits.connection_window
        self._credit = 0
        self._reader = LinkReader(self, memo, limits)
        leg.write(PREFACE + settings({Setting.ENABLE_PUSH: 0, Setting.INITIAL_WINDOW_SIZE: limits.stream_window}))
        if limits.connection_window > WINDOW:
            leg.write(window_update(0, limits.connection_window - WINDOW))

    # --- sending ----------------------------------------------------------------------------------------------------

    @property
    def takes_more(self) -> bool:
        """Whether new exchanges may be given to this link."""
        return not self.leaving and not self.leg.ending and self._next < STREAM

    @property
    def vacancies(self) -> int:
        """How many more streams the peer takes at once."""
        return min(self._maximum, self._limited) - len(self.streams) - len(self.waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no exchange is on this link."""
        return not self.streams and not self.waiting

    @property
    def unread(self) -> int:
        """Bytes of responses that the client has not taken yet."""
        return self._limits.connection_window - self._room - self._credit

    def take(self, exchange: Exchange) -> None:
        """Answer this exchange here."""
        exchange.link = self
        self.waiting[exchange] = None

    def pump(self) -> None:
        """Give waiting exchanges their streams, and send what the windows and the leg take, a frame each in turn."""
        if not self.settled or not self.opened or self.leg.ending:
            return
        if self.waiting:
            most = min(self._maximum, self._limited)
            for exchange in [*self.waiting]:
                if len(self.streams) >= most:
                    break
                self._begin(exchange)
        progress = bool(self.ready)
        while progress:
            progress = False
            for exchange in [*self.ready]:
                if self.leg.queued > HIGH_WATER:
                    return
                progress |= self._send(exchange)

    def _begin(self, exchange: Exchange) -> None:
        """Send the request head."""
        del self.waiting[exchange]
        if exchange.head.is_extended_connect and not self._may_connect:
            self._owner.unable(exchange)
            return
        stream = self._next
        self._next += 2
        self.streams[stream] = exchange
        exchange.link_stream = stream
        exchange.link_window = self._initial
        exchange.link_room = self._limits.stream_window
        exchange.credit = 0
        ends = exchange.request_ended and not exchange.body and exchange.trailers is None
        self._write_block(exchange, exchange.block, ends=ends)
        exchange.request_sent = ends
        if not ends:
            self.ready[exchange] = None

    def _send(self, exchange: Exchange) -> bool:
        """Send one frame; False when the exchange has none that may be sent. It stays ready while we hold it back."""
        body = exchange.body
        if body:
            size = min(self._window, exchange.link_window, FRAME)
            if size <= 0:
                if exchange.link_window <= 0:
                    del self.ready[exchange]
                return False
            piece = body[0]
            if len(piece) <= size:
                body.popleft()
                size = len(piece)
            else:
                body[0] = piece[size:]
                piece = piece[:size]
            ends = exchange.request_ended and not body and exchange.trailers is None
            self.leg.write(frame(DATA, END_STREAM if ends else 0, exchange.link_stream, piece))
            self._window -= size
            exchange.link_window -= size
            exchange.sent(piece)
            self._owner.forwarded(exchange, size)
        else:
            ends = exchange.request_ended
            if not ends:
                del self.ready[exchange]
                return False
            if exchange.trailers is not None:
                self._write_block(exchange, exchange.trailers, ends=True)
            else:
                self.leg.write(frame(DATA, END_STREAM, exchange.link_stream))
        if ends:
            exchange.request_sent = True
            del self.ready[exchange]
            self._maybe_over(exchange)
        return True

    def _write_block(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        data = block.literal
        if self._owes_update:
            self._owes_update = False
            data = size_updates(self._table, self._table) + data
        self.leg.write(header_frames(exchange.link_stream, data, end_stream=ends))

    def wake(self, exchange: Exchange) -> None:
        """The exchange has more to send."""
        if exchange.link_stream and not exchange.request_sent:
            self.ready[exchange] = None

    def cancel(self, exchange: Exchange, code: int) -> None:
        """Nobody wants the answer any more."""
        self.waiting.pop(exchange, None)
        stream = exchange.link_stream
        if self.streams.pop(stream, None) is not None:
            self.ready.pop(exchange, None)
            if not self.leg.ending:
                self.leg.write(rst_stream(stream, code))

    def passed_on(self, exchange: Exchange, size: int) -> None:
        """So many bytes of the response have gone to the client: give window back, half of it at a time."""
        self.discarded(size)
        exchange.credit += size
        if exchange.credit * 2 >= self._limits.stream_window:
            credit, exchange.credit = exchange.credit, 0
            if self.streams.get(exchange.link_stream) is exchange and not exchange.response_ended:
                exchange.link_room += credit
                self.write(window_update(exchange.link_stream, credit))

    def discarded(self, size: int) -> None:
        """So many bytes of DATA are not in memory any more."""
        self._credit += size
        if self._credit * 2 >= self._limits.connection_window:
            self._room += self._credit
            self.write(window_update(0, self._credit))
            self._credit = 0

    def write(self, data: bytes) -> None:
        """Write a control frame."""
        if not self.leg.ending:
            self.leg.write(data)

    def end(self, ending: Ending) -> None:
        """End the connection."""
        self.leaving = True
        self.leg.end(ending)

    def _maybe_over(self, exchange: Exchange) -> None:
        """Release the stream once both sides have ended."""
        if exchange.request_sent and exchange.response_ended:
            self.streams.pop(exchange.link_stream, None)
            self.ready.pop(exchange, None)

    # --- receiving (called by the reader) ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take bytes of the peer. Raises Http2Error or HpackError."""
        self._reader.receive(data)

    def find(self, stream: int) -> Exchange | None:
        """The exchange of a stream, None when it is over. Raises Http2Error for a stream that never was."""
        exchange = self.streams.get(stream)
        if exchange is None and (stream >= self._next or not stream & 1):
            raise Http2Error("h2-handler-stream")
        return exchange

    def on_data(self, exchange: Exchange | None, length: int, padding: int) -> None:
        """A DATA frame of so many bytes, padding included, begins: take it off the windows."""
        self._room -= length
        if exchange is not None:
            exchange.link_room -= length
        if self._room < 0 or (exchange is not None and exchange.link_room < 0):
            raise Http2Error("h2-handler-window", ErrorCode.FLOW_CONTROL_ERROR)
        if padding:
            self.discarded(padding)
            if exchange is not None:
                exchange.credit += padding

    def on_piece(self, exchange: Exchange | None, piece: bytes, *, ends: bool) -> None:
        """Data of a response, possibly empty."""
        if exchange is None or self.streams.get(exchange.link_stream) is not exchange:
            self.discarded(len(piece))
            return
        if piece:
            exchange.add_response(piece)
        if ends:
            self._ended(exchange)
        self._owner.answered(exchange)

    def on_block(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        """A header block of a response: informational, final, or trailers (RFC 9113 section 8.1)."""
        status = status_of(block)
        if exchange.final:
            sound = status == 0 and ends and not exchange.response_ended
        else:
            sound = status >= 200 or (status >= 100 and status != 101 and not ends)
        if not sound:
            self.cancel(exchange, ErrorCode.PROTOCOL_ERROR)
            self._owner.peer_reset(exchange, ErrorCode.INTERNAL_ERROR)
            return
        self.served = exchange.response_started = True
        exchange.forget_kept()
        exchange.final = exchange.final or status >= 200
        exchange.response.append(block)
        if ends:
            self._ended(exchange)
        self._owner.answered(exchange)

    def on_large_block(self, exchange: Exchange) -> None:
        """A header block of a response that decodes to more than the limit."""
        self.cancel(exchange, ErrorCode.CANCEL)
        self._owner.too_large(exchange)

    def _ended(self, exchange: Exchange) -> None:
        exchange.response_ended = True
        self._maybe_over(exchange)

    def on_settings(self, entries: tuple[tuple[int, int], ...]) -> None:
        """SETTINGS of the peer; acknowledged at once."""
        for key, value in entries:
            if key == Setting.INITIAL_WINDOW_SIZE:
                change = value - self._initial
                self._initial = value
                for exchange in self.streams.values():
                    self._widen(exchange, change)
            elif key == Setting.HEADER_TABLE_SIZE:
                if value < self._table:
                    self._table = value
                    self._owes_update = True
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self._maximum = value
            elif key == Setting.ENABLE_CONNECT_PROTOCOL:
                self._may_connect = value == 1
        self.settled = True
        self.write(SETTINGS_ACK)

    def on_window_update(self, stream: int, payload: bytes) -> None:
        """The peer gives window."""
        if len(payload) != 4:
            raise Http2Error("h2-handler-frame-size", ErrorCode.FRAME_SIZE_ERROR)
        increment = int.from_bytes(payload, "big") & STREAM
        if not stream:
            self._window += increment
            if not increment or self._window > STREAM:
                raise Http2Error("h2-handler-window", ErrorCode.FLOW_CONTROL_ERROR)
        elif stream in self.streams:
            self._widen(self.streams[stream], increment)

    def _widen(self, exchange: Exchange, change: int) -> None:
        exchange.link_window += change
        if exchange.link_window > STREAM:
            raise Http2Error("h2-handler-window", ErrorCode.FLOW_CONTROL_ERROR)
        self.wake(exchange)

    def on_reset(self, stream: int, code: int) -> None:
        """The peer resets a stream."""
        exchange = self.find(stream)
        if exchange is None:
            return
        del self.streams[stream]
        self.ready.pop(exchange, None)
        if code == ErrorCode.REFUSED_STREAM and exchange.replayable:
            if self.streams:
                self._limited = len(self.streams)
            exchange.attempts += 1
            exchange.rewind()
            self._owner.refused(exchange, self)
        elif code == ErrorCode.HTTP_1_1_REQUIRED and exchange.movable:
            self._owner.unwilling(exchange, self)
        else:
            self._owner.peer_reset(exchange, code)

    def on_goaway(self, payload: bytes) -> None:
        """The peer takes no more streams, and leaves out those above its last."""
        if len(payload) < _DEBUG:
            raise Http2Error("h2-handler-frame-size", ErrorCode.FRAME_SIZE_ERROR)
        last = int.from_bytes(payload[:4], "big") & STREAM
        self.leaving = True
        self.served |= 0 < last < self._next
        left = [exchange for stream, exchange in self.streams.items() if stream > last]
        left += self.waiting
        self.waiting.clear()
        for exchange in left:
            self.streams.pop(exchange.link_stream, None)
            self.ready.pop(exchange, None)
            if exchange.replayable:
                if exchange.link_stream and not self.served:
                    exchange.attempts += 1
                exchange.rewind()
                self._owner.refused(exchange, self)
            else:
                self._owner.peer_reset(exchange, ErrorCode.REFUSED_STREAM)
