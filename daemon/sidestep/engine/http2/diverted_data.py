"""DATA of diverted streams: cut through from the client's connection to the exchange.

Payload goes to the exchange as it comes; padding is dropped. DATA never reaches the app, so its flow control is settled
here:

    stream 0       the whole payload, padding included, is given back at once (`flush_credit`)
    the stream     `room` shrinks by the payload; padding is given back at once, data when the handler takes it
    beyond `room`  the stream is reset with FLOW_CONTROL_ERROR (RFC 9113 section 6.9)

DATA of a diverted stream that is over is credited on stream 0 and dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.protocols.http2 import END_STREAM, HEADER_SIZE, PADDED, ErrorCode, Http2Error, window_update

if TYPE_CHECKING:
    from sidestep.engine.http2.diversion import Diversion
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.http2.feed import Http2Feed
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.http2.to_client import ToClient


class DivertedData:
    """The DATA frame at hand, and the credit that is due."""

    __slots__ = ("_credit", "_data", "_diversion", "_ends", "_exchange", "_feed", "_state", "_to_client")

    def __init__(self, state: ConnectionState, diversion: Diversion, to_client: ToClient, feed: Http2Feed) -> None:
        self._state = state
        self._diversion = diversion
        self._to_client = to_client
        self._feed = feed
        self._credit = 0
        self._exchange: Exchange | None = None
        """Gets the payload; None: nobody does."""
        self._data = 0
        """Bytes of data still to come; padding follows."""
        self._ends = False

    def begin(self, data: bytes, position: int, stop: int, flags: int, stream: int) -> int:
        """Take what is here of a frame. Returns how many bytes of its payload are data, -1 if its padding is not here.

        Raises Http2Error for padding that is longer than the payload.
        """
        payload = position + HEADER_SIZE
        padding = 0
        if flags & PADDED:
            if stop == payload:
                raise Http2Error("h2-padding", ErrorCode.FRAME_SIZE_ERROR)
            if len(data) == payload:
                return -1
            padding = 1 + data[payload]
            if padding > stop - payload:
                raise Http2Error("h2-padding")
        size = stop - payload
        self._credit += size
        ends = flags & END_STREAM != 0
        exchange = self._state.streams.exchanges.get(stream)
        if exchange is not None:
            exchange.room -= size
            if exchange.room < 0:
                self._diversion.exceeded(exchange)
                exchange = None
            elif padding and not ends:
                exchange.room += padding
                self._to_client.control(window_update(stream, padding))
        self._exchange = exchange
        self._data = size - padding
        self._ends = ends
        self.feed(data[payload + (padding > 0) : stop], whole=stop <= len(data))
        return size - padding

    def feed(self, data: bytes, *, whole: bool) -> None:
        """Take payload of that frame, what exceeds its data being padding; `whole` when the frame ends here."""
        size = min(len(data), self._data)
        self._data -= size
        exchange = self._exchange
        if exchange is not None and exchange.stream in self._state.streams.exchanges:
            ends = whole and self._ends
            if exchange.stream in self._feed.requests:
                self._feed.body(exchange.stream, data[:size], ends=ends)
            self._diversion.body(exchange, data[:size], ends=ends)

    def flush_credit(self) -> None:
        """Give back the connection's window for the DATA that was taken."""
        if self._credit:
            self._to_client.control(window_update(0, self._credit))
            self._credit = 0
