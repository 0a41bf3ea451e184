"""Reads the frames of an HTTP/2 server to which a `Link` is the client, and gives them to a `FrameHandler`.

DATA is cut through: pieces go to their exchange as they come, padding is dropped. Every other frame is read whole; none
may exceed 16 KiB, the size that our SETTINGS leave at its default (RFC 9113 section 4.2). Anything a server may not
send is an Http2Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from sidestep.protocols.hpack import INITIAL, ListTooLargeError, Memo, State
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    PADDED,
    PING,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    Http2Limits,
    frame,
    read_settings,
    split_headers,
)

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.protocols.hpack import Block

_unpack = HEADER.unpack_from
_USEFUL: Final = frozenset((WINDOW_UPDATE, PING))
"""Frames that do not count as idle: an upload or a quiet connection brings them.

PINGs are bounded by the queue of their answers."""


class FrameHandler(Protocol):
    """Whoever acts on the frames (`link.Link`). Every method may raise Http2Error."""

    has_settings: bool
    """The peer's first SETTINGS have come."""

    def find(self, stream: int) -> Exchange | None:
        """The exchange of a stream; None when it is over."""

    def write(self, data: bytes) -> None:
        """Write a control frame."""

    def on_data(self, exchange: Exchange | None, length: int, padding: int) -> None:
        """Take a DATA frame with `length` bytes of payload, `padding` of them padding, off the windows."""

    def on_piece(self, exchange: Exchange | None, piece: bytes, *, ends: bool) -> None:
        """Take data of a response, possibly empty; `ends` with END_STREAM."""

    def on_block(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        """Take a header block of a response; `ends` with END_STREAM."""

    def on_large_block(self, exchange: Exchange) -> None:
        """Deal with a header block of a response that decodes to more than the limit."""

    def on_settings(self, entries: tuple[tuple[int, int], ...]) -> None:
        """Take SETTINGS."""

    def on_window_update(self, stream: int, payload: bytes) -> None:
        """Take a WINDOW_UPDATE."""

    def on_reset(self, stream: int, code: int) -> None:
        """Take a RST_STREAM."""

    def on_goaway(self, payload: bytes) -> None:
        """Take a GOAWAY."""


class LinkReader:
    """The reading end of a link."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_frames",
        "_block_size",
        "_block_stream",
        "_idle",
        "_limits",
        "_link",
        "_memo",
        "_pad",
        "_payload",
        "_pending",
        "_sink",
        "_sink_ends",
        "_state",
    )

    def __init__(self, link: FrameHandler, memo: Memo, limits: Http2Limits) -> None:
        self._link = link
        self._memo = memo
        self._limits = limits
        self._state: State = INITIAL
        self._pending = b""
        self._payload = 0
        """Bytes of the DATA frame at hand still to come, then `_pad` bytes of padding."""
        self._pad = 0
        self._sink: Exchange | None = None
        self._sink_ends = False
        self._block: list[bytes] = []
        self._block_size = 0
        self._block_flags = 0
        self._block_frames = 0
        self._block_stream = 0
        self._idle = 0

    def receive(self, data: bytes) -> None:
        """Take bytes of the server. Raises Http2Error, HpackError."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        position = 0
        end = len(data)
        while True:
            position = self._data(data, position)
            if end - position < HEADER_SIZE:
                break
            high, low, kind, flags, stream = _unpack(data, position)
            length = high << 8 | low
            stream &= STREAM
            if not self._link.has_settings and (kind != SETTINGS or flags & ACK):
                raise Http2Error("h2-handler-not-http2")
            if length > FRAME:
                raise Http2Error("h2-handler-frame-size", ErrorCode.FRAME_SIZE_ERROR)
            if (self._block_stream or kind == CONTINUATION) and (kind != CONTINUATION or stream != self._block_stream):
                raise Http2Error("h2-handler-continuation")
            payload = position + HEADER_SIZE
            if kind == DATA:
                if flags & PADDED and end == payload:
                    break
                position = self._begin_data(data, payload, length, flags, stream)
                continue
            if end - payload < length:
                break
            position = payload + length
            self._frame(kind, flags, stream, data[payload:position])
        self._pending = data[position:]

    def _begin_data(self, data: bytes, payload: int, length: int, flags: int, stream: int) -> int:
        """Account for a DATA frame. Returns the position of its data."""
        padding = 0
        if flags & PADDED:
            padding = 1 + data[payload] if length else 1
            if padding > length:
                raise Http2Error("h2-handler-padding")
        exchange = self._link.find(stream)
        if exchange is not None and (not exchange.has_final_head or exchange.response_ended):
            raise Http2Error("h2-handler-data")
        self._link.on_data(exchange, length, padding)
        ends = flags & END_STREAM != 0
        self._payload = length - padding
        self._pad = max(padding - 1, 0)
        self._sink = exchange
        self._sink_ends = ends
        if self._payload:
            self._idle = 0
        else:
            self._count_idle()
            if ends:
                self._link.on_piece(exchange, b"", ends=True)
        return payload + (padding > 0)

    def _data(self, data: bytes, position: int) -> int:
        """Take payload of the DATA frame at hand. Returns the position after it."""
        if self._payload and position < len(data):
            piece = data[position : position + self._payload]
            position += len(piece)
            self._payload -= len(piece)
            self._link.on_piece(self._sink, piece, ends=self._sink_ends and not self._payload)
        if self._pad and not self._payload:
            taken = min(self._pad, len(data) - position)
            self._pad -= taken
            position += taken
        return position

    def _count_idle(self) -> None:
        self._idle += 1
        if self._idle > self._limits.idle_frames:
            raise Http2Error("h2-handler-flood", ErrorCode.ENHANCE_YOUR_CALM)

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Take a whole frame of any kind but DATA."""
        link = self._link
        if kind == HEADERS:
            self._block_flags = flags
            self._block_frames = self._block_size = 0
            self._continue(split_headers(payload, flags)[1], flags, stream)
            return
        if kind == CONTINUATION:
            self._continue(payload, flags, stream)
            return
        if kind not in _USEFUL:
            self._count_idle()
        if kind == SETTINGS:
            if not flags & ACK:
                link.on_settings(read_settings(payload))
        elif kind == PING:
            if not flags & ACK:
                link.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            link.on_window_update(stream, payload)
        elif kind == RST_STREAM:
            link.on_reset(stream, int.from_bytes(payload[:4], "big"))
        elif kind == GOAWAY:
            link.on_goaway(payload)
        elif kind == PUSH_PROMISE:
            raise Http2Error("h2-handler-push")

    def _continue(self, fragment: bytes, flags: int, stream: int) -> None:
        """Take a part of a header block; the last one completes it."""
        limits = self._limits
        self._block.append(fragment)
        self._block_size += len(fragment)
        self._block_frames += 1
        if self._block_frames > limits.continuations or self._block_size > limits.passed_block:
            raise Http2Error("h2-handler-header-size", ErrorCode.ENHANCE_YOUR_CALM)
        if not flags & END_HEADERS:
            self._block_stream = stream
            return
        self._block_stream = 0
        self._idle = 0
        data = b"".join(self._block)
        self._block = []
        exchange = self._link.find(stream)
        try:
            block = self._memo.decode(self._state, data, list_limit=limits.passed_list, table_limit=limits.table)
        except ListTooLargeError as error:
            self._state = error.state
            if exchange is not None:
                self._link.on_large_block(exchange)
            return
        self._state = block.state
        if exchange is not None:
            self._link.on_block(exchange, block, ends=self._block_flags & END_STREAM != 0)
