"""An HTTP/2 connection on which the relay is the client: to a handler, or the app's second one.

A link has stream ids, SETTINGS, HPACK contexts and flow control of its own. Requests are encoded as literals without
indexing, so there is no encoder state; responses are decoded, and encoded anew by `ToClient`.

States of a link:

    connecting     `opened` is False; nothing is sent but the preface, SETTINGS and a WINDOW_UPDATE
    connected      `opened` is True and `has_settings` False: the link waits for the peer's SETTINGS, which say how many
                   streams it takes (MAX_CONCURRENT_STREAMS) and whether it takes extended CONNECT (RFC 8441)
    usable         `has_settings` is True: exchanges get streams
    leaving        the peer has sent GOAWAY, or `end` was called: streams finish, none is added

An exchange on a link is first in `waiting` (it has no stream yet), then in `streams` until both sides have ended or one
has reset the stream, and in `ready` while it may have something to send.

Memory. What the peer may send is bounded by windows: `stream_window` bytes for a stream, `connection_window` bytes for
all, given back as the client takes the bytes (`passed_on`), half a window at a time. What is sent leaves the exchange
only as the peer's windows and the leg allow.

`LinkOwner` is told what the peer does. Errors of the peer are Http2Errors; the owner then ends the link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from sidestep.engine.http2.exchange import RequestState
from sidestep.engine.http2.head import status_of
from sidestep.engine.http2.link_reader import LinkReader
from sidestep.engine.leg import HIGH_WATER, Ending, Leg
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
"""Bytes of a GOAWAY that are read: last stream id and error code (RFC 9113 section 6.8)."""


class LinkOwner(Protocol):
    """Whoever gave the exchanges to the link, and learns what becomes of them."""

    def response_progressed(self, exchange: Exchange) -> None:
        """Learn that a part of the response, or its end, has come."""

    def peer_reset(self, exchange: Exchange, code: int) -> None:
        """Learn that the peer has reset the stream with this error code."""

    def refused(self, exchange: Exchange, link: Link) -> None:
        """Learn that the peer has not processed the request and will not (RFC 9113 sections 6.8, 8.7).

        The exchange has been rewound: somebody else may answer it.
        """

    def response_head_too_large(self, exchange: Exchange) -> None:
        """Learn that the head of the response is over the limit; the stream has been reset."""

    def declined(self, exchange: Exchange, link: Link) -> None:
        """Learn that the peer demands HTTP/1.1 for a request of which no byte of the body was consumed."""

    def connect_unsupported(self, exchange: Exchange) -> None:
        """Learn that the peer does not take extended CONNECT."""

    def body_sent(self, exchange: Exchange, size: int) -> None:
        """Learn that `size` bytes of the request's body have gone to the peer."""


class Link:
    """See the module. `is_app` marks a second connection to the app."""

    __slots__ = (
        "_credit",
        "_initial",
        "_limits",
        "_max_streams",
        "_may_connect",
        "_next",
        "_owes_update",
        "_owner",
        "_reader",
        "_refused_above",
        "_room",
        "_table",
        "_window",
        "age",
        "has_settings",
        "is_app",
        "leaving",
        "leg",
        "opened",
        "ready",
        "served",
        "streams",
        "waiting",
    )

    def __init__(self, leg: Leg, owner: LinkOwner, memo: Memo, limits: Http2Limits, *, is_app: bool) -> None:
        self.leg = leg
        self.is_app = is_app
        self.opened = False
        self.leaving = False
        """No new streams: GOAWAY has come, or the link was ended."""
        self.streams: dict[int, Exchange] = {}
        self.waiting: dict[Exchange, None] = {}
        self.ready: dict[Exchange, None] = {}
        self.age = 0
        """Ticks for which the link has waited for SETTINGS, or has had nothing to do; the pool counts them."""
        self.served = False
        """The peer has processed a request."""
        self._owner = owner
        self._limits = limits
        self._next = 1
        # what the peer said
        self.has_settings = False
        """The peer's SETTINGS have come."""
        self._initial = WINDOW
        self._max_streams = STREAM
        self._refused_above = STREAM
        """Streams that were open when the peer refused one more."""
        self._may_connect = False
        self._window = WINDOW
        self._table = DEFAULT_CAPACITY
        """Bytes that the peer allows our encoder's table, which stays empty; not announced yet while `_owes_update`."""
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
    def accepts_streams(self) -> bool:
        """Whether new exchanges may be given to this link."""
        return not self.leaving and not self.leg.ending and self._next < STREAM

    @property
    def free_streams(self) -> int:
        """How many more streams the peer takes at the same time; negative after it has lowered its limit."""
        return min(self._max_streams, self._refused_above) - len(self.streams) - len(self.waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no exchange is on this link."""
        return not self.streams and not self.waiting

    @property
    def unread(self) -> int:
        """Bytes of responses that are buffered because the client has not taken them yet."""
        return self._limits.connection_window - self._room - self._credit

    def assign(self, exchange: Exchange) -> None:
        """Carry this exchange."""
        exchange.link = self
        self.waiting[exchange] = None

    def pump(self) -> None:
        """Give waiting exchanges their streams; send what windows and leg allow, a frame of each exchange in turn."""
        if not self.has_settings or not self.opened or self.leg.ending:
            return
        if self.waiting:
            most = min(self._max_streams, self._refused_above)
            for exchange in [*self.waiting]:
                if len(self.streams) >= most:
                    break
                self._send_head(exchange)
        progress = bool(self.ready)
        while progress:
            progress = False
            for exchange in [*self.ready]:
                if self.leg.queued > HIGH_WATER:
                    return
                progress |= self._send_frame(exchange)

    def _send_head(self, exchange: Exchange) -> None:
        """Send the request head."""
        del self.waiting[exchange]
        if exchange.head.is_extended_connect and not self._may_connect:
            self._owner.connect_unsupported(exchange)
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
        if ends:
            exchange.request_state = RequestState.SENT
        if not ends:
            self.ready[exchange] = None

    def _send_frame(self, exchange: Exchange) -> bool:
        """Send one frame; False when the exchange has none that may be sent. It stays ready while we hold it back."""
        body = exchange.body
        if body:
            free = exchange.body_size - exchange.body_held
            size = min(self._window, exchange.link_window, FRAME, free)
            if size <= 0:
                if exchange.link_window <= 0 or free <= 0:
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
            exchange.body_sent(piece)
            self._owner.body_sent(exchange, size)
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
            exchange.request_state = RequestState.SENT
            del self.ready[exchange]
            self._release_if_done(exchange)
        return True

    def _write_block(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        data = block.literal
        if self._owes_update:
            self._owes_update = False
            data = size_updates(self._table, self._table) + data
        self.leg.write(header_frames(exchange.link_stream, data, end_stream=ends))

    def wake(self, exchange: Exchange) -> None:
        """Learn that the exchange has more to send."""
        if exchange.link_stream and not exchange.request_sent:
            self.ready[exchange] = None

    def cancel(self, exchange: Exchange, code: int) -> None:
        """Reset the exchange's stream with this error code: nobody wants the response any more."""
        self.waiting.pop(exchange, None)
        stream = exchange.link_stream
        if self.streams.pop(stream, None) is not None:
            self.ready.pop(exchange, None)
            if not self.leg.ending:
                self.leg.write(rst_stream(stream, code))

    def passed_on(self, exchange: Exchange, size: int) -> None:
        """Give back window for `size` bytes of the response that have gone to the client, half a window at a time."""
        self.discarded(size)
        exchange.credit += size
        if exchange.credit * 2 >= self._limits.stream_window:
            credit, exchange.credit = exchange.credit, 0
            if self.streams.get(exchange.link_stream) is exchange and not exchange.response_ended:
                exchange.link_room += credit
                self.write(window_update(exchange.link_stream, credit))

    def discarded(self, size: int) -> None:
        """Give back the connection's window for `size` bytes of DATA that are not in memory any more."""
        self._credit += size
        if self._credit * 2 >= self._limits.connection_window:
            self._room += self._credit
            self.write(window_update(0, self._credit))
            self._credit = 0

    def write(self, data: bytes) -> None:
        """Write a control frame, unless the leg is ending."""
        if not self.leg.ending:
            self.leg.write(data)

    def end(self, ending: Ending) -> None:
        """End the connection in this way."""
        self.leaving = True
        self.leg.end(ending)

    def _release_if_done(self, exchange: Exchange) -> None:
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
        """Take a DATA frame with `length` bytes of payload, `padding` of them padding, off the windows."""
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
        """Take data of a response, possibly empty."""
        if exchange is None or self.streams.get(exchange.link_stream) is not exchange:
            self.discarded(len(piece))
            return
        if piece:
            exchange.add_response(piece)
        if ends:
            self._ended(exchange)
        self._owner.response_progressed(exchange)

    def on_block(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        """Take a header block of a response: informational, final, or trailers (RFC 9113 section 8.1)."""
        status = status_of(block)
        if exchange.has_final_head:
            is_valid = status == 0 and ends and not exchange.response_ended
        else:
            is_valid = status >= 200 or (status >= 100 and status != 101 and not ends)
        if not is_valid:
            self.cancel(exchange, ErrorCode.PROTOCOL_ERROR)
            self._owner.peer_reset(exchange, ErrorCode.INTERNAL_ERROR)
            return
        self.served = True
        exchange.forget_kept()
        exchange.head_came(is_final=status >= 200)
        exchange.add_block(block)
        if ends:
            self._ended(exchange)
        self._owner.response_progressed(exchange)

    def on_large_block(self, exchange: Exchange) -> None:
        """Cancel an exchange whose response has a header block that decodes to more than the limit."""
        self.cancel(exchange, ErrorCode.CANCEL)
        self._owner.response_head_too_large(exchange)

    def _ended(self, exchange: Exchange) -> None:
        exchange.end_response()
        self._release_if_done(exchange)

    def on_settings(self, entries: tuple[tuple[int, int], ...]) -> None:
        """Apply the peer's SETTINGS and acknowledge them. Raises Http2Error on a window overflow."""
        for key, value in entries:
            if key == Setting.INITIAL_WINDOW_SIZE:
                change = value - self._initial
                self._initial = value
                for exchange in self.streams.values():
                    self._change_window(exchange, change)
            elif key == Setting.HEADER_TABLE_SIZE:
                if value < self._table:
                    self._table = value
                    self._owes_update = True
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self._max_streams = value
            elif key == Setting.ENABLE_CONNECT_PROTOCOL:
                self._may_connect = value == 1
        self.has_settings = True
        self.write(SETTINGS_ACK)

    def on_window_update(self, stream: int, payload: bytes) -> None:
        """Widen a window of the peer. Raises Http2Error for a bad size or an overflow."""
        if len(payload) != 4:
            raise Http2Error("h2-handler-frame-size", ErrorCode.FRAME_SIZE_ERROR)
        increment = int.from_bytes(payload, "big") & STREAM
        if not stream:
            self._window += increment
            if not increment or self._window > STREAM:
                raise Http2Error("h2-handler-window", ErrorCode.FLOW_CONTROL_ERROR)
        elif stream in self.streams:
            self._change_window(self.streams[stream], increment)

    def _change_window(self, exchange: Exchange, change: int) -> None:
        exchange.link_window += change
        if exchange.link_window > STREAM:
            raise Http2Error("h2-handler-window", ErrorCode.FLOW_CONTROL_ERROR)
        self.wake(exchange)

    def on_reset(self, stream: int, code: int) -> None:
        """End the stream that the peer resets."""
        exchange = self.find(stream)
        if exchange is None:
            return
        del self.streams[stream]
        self.ready.pop(exchange, None)
        if code == ErrorCode.REFUSED_STREAM and exchange.replayable:
            if self.streams:
                self._refused_above = len(self.streams)
            exchange.attempts += 1
            exchange.rewind()
            self._owner.refused(exchange, self)
        elif code == ErrorCode.HTTP_1_1_REQUIRED and exchange.movable:
            self._owner.declined(exchange, self)
        else:
            self._owner.peer_reset(exchange, code)

    def on_goaway(self, payload: bytes) -> None:
        """Stop adding streams; give back those above the last one that the peer processes. Raises Http2Error."""
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
