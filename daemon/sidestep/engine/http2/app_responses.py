"""Tells the mirror what the app answers: an observer of the app's bytes beside `FromApp`, which decodes nothing.

It exists only for connections whose mirror may want responses (`Mirror.hears_responses`), from their first byte on:
each header block changes the HPACK context of the next, so all are decoded, wanted or not.

    between frames   the frame header is kept until it is whole
    a whole frame    is dealt with where it is found, if nobody wants its payload: of samples only its length counts
    a whole answer   a whole header block and the DATA frame that ends the stream, one behind the other, are told as one
    in a frame       DATA of a stream that is wanted is told as it comes, without padding; header blocks are kept
                     until they are whole (`Http2Limits.passed_block`, `continuations`); everything else is skipped
    blind            a block could not be decoded, was too large, or was interrupted by another frame: no response can
                     be told any more

The events say what the app has said, whatever the relay changes on the way. Resets and ends of connections are told by
`Http2Feed.cut`. Answers of handlers and of our own are told when they are written (`ToClient`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from sidestep.engine.http2.response_decoder import ResponseDecoder
from sidestep.engine.mirror.events import Answerer
from sidestep.model.errors import PeerError
from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    PADDED,
    PUSH_PROMISE,
    STREAM,
    WITH_PRIORITY,
    Http2Error,
    Http2Limits,
    split_headers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidestep.engine.http2.samples import Http2Sample
    from sidestep.protocols.hpack import Block

_unpack = HEADER.unpack_from
_WHOLE: Final = END_HEADERS | PADDED | WITH_PRIORITY
"""Flags that say whether a frame is nothing but a whole header block."""
_LAST: Final = END_STREAM | PADDED
"""Flags that say whether a DATA frame is nothing but the end of a body."""
_PROMISED: Final = 4
"""Bytes of the promised stream's id in PUSH_PROMISE."""


class ResponseFeed(Protocol):
    """Whoever is told of answers: `Http2Feed`, or inspection."""

    @property
    def responses(self) -> Mapping[int, object]:
        """Streams whose answers are wanted."""

    @property
    def samples(self) -> Mapping[int, Http2Sample]:
        """Streams of whose answers the heads, the length and the end are wanted."""

    def whole_response(self, stream: int, block: Block, size: int) -> bool:
        """Take the whole of an answer that is wanted: its only header block, and the size of its body, which is here.
        False: nothing was taken, it is to be told in parts."""

    def response_block(self, stream: int, by: Answerer, block: Block, *, ends: bool) -> None:
        """Take a header block of an answer that is wanted."""

    def response_data(self, stream: int, data: bytes) -> None:
        """Take data of such an answer, without padding."""

    def response_end(self, stream: int) -> None:
        """Learn that such an answer is whole, without trailers."""

    def lose_responses(self) -> None:
        """Learn that no answer can be told any more."""


class AnswerSearch(Protocol):
    """Whoever searches answers before it knows whether they are wanted: inspection."""

    @property
    def asked(self) -> Mapping[int, object]:
        """The streams of these answers. None of them is in `ResponseFeed.responses`, until it is wanted."""

    def asked_block(self, stream: int, block: Block, *, ends: bool) -> None:
        """Take a header block of an answer of `asked`, which is in `responses` afterwards if it is wanted."""

    def clears_data(self, stream: int, data: bytes, *, ends: bool) -> bool:
        """Take data of such an answer, without padding; False if it has to be given to who wants it now."""

    def read_asked(self, stream: int) -> None:
        """Learn that such an answer has to be read: it comes in a way in which it is not searched."""


class AppResponses:
    """See the module."""

    __slots__ = (
        "_asked",
        "_blind",
        "_block",
        "_block_size",
        "_block_stream",
        "_decoder",
        "_ends",
        "_feed",
        "_kept",
        "_limits",
        "_need",
        "_padding",
        "_promises",
        "_rest",
        "_search",
        "_stream",
    )

    def __init__(self, feed: ResponseFeed, limits: Http2Limits, search: AnswerSearch | None = None) -> None:
        self._feed = feed
        self._search = search
        self._asked: Mapping[int, object] = {} if search is None else search.asked
        self._limits = limits
        self._decoder = ResponseDecoder(limits)
        self._blind = False
        self._kept = bytearray()
        """The beginning of a frame that is read whole, or of its header."""
        self._need = HEADER_SIZE
        """Bytes of `_kept` below which nothing can be done."""
        self._rest = 0
        """Bytes still to come of a frame that is cut through, ..."""
        self._stream = 0
        """... the stream to which its DATA is told; 0: it is skipped, ..."""
        self._padding = 0
        """... and how many of these bytes, the last ones, are padding."""
        self._ends = False
        """END_STREAM of the frame or header block at hand."""
        self._block: list[bytes] | None = None
        """Fragments of a header block that is being continued, ..."""
        self._block_size = 0
        """... their bytes, ..."""
        self._block_stream = 0
        """... and its stream."""
        self._promises = False
        """That block is of a PUSH_PROMISE."""

    def receive(self, data: bytes) -> None:
        """Take bytes of the app. Never raises for what they are."""
        if self._blind:
            return
        if self._rest:
            size = min(self._rest, len(data))
            self._cut_through(data[:size])
            data = data[size:]
        if self._kept:
            self._kept += data
            if len(self._kept) < self._need:
                return
            data = bytes(self._kept)
            self._kept.clear()
        try:
            self._kept += self._read(data)
        except PeerError:
            self._go_blind()

    def _go_blind(self) -> None:
        self._blind = True
        self._kept.clear()
        self._block = None
        self._feed.lose_responses()

    def _read(self, data: bytes) -> bytes:  # noqa: C901 - hot path: one loop, no call per frame
        """Read frames; what could not be read is returned. Raises Http2Error, HpackError."""
        position, end = 0, len(data)
        feed, asked, search, decode = self._feed, self._asked, self._search, self._decoder.decode
        responses, samples = feed.responses, feed.samples
        self._need = HEADER_SIZE
        while end - position >= HEADER_SIZE:
            high, low, kind, flags, stream = _unpack(data, position)
            stream &= STREAM
            payload = position + HEADER_SIZE
            stop = payload + (high << 8 | low)
            if self._block is not None and (kind != CONTINUATION or stream != self._block_stream):
                raise Http2Error("h2-continuation")
            if kind == DATA:
                if (
                    stop <= end
                    and not flags & PADDED
                    and stream not in responses
                    and (
                        stream not in asked
                        or search is None
                        or search.clears_data(stream, data[payload:stop], ends=bool(flags & END_STREAM))
                    )
                ):
                    sample = samples.get(stream)
                    if sample is not None:
                        if sample.length is not None:
                            sample.length += stop - payload
                        if flags & END_STREAM:
                            feed.response_end(stream)
                    position = stop
                    continue
                if flags & PADDED and payload == end and stop > payload:
                    self._need = HEADER_SIZE + 1
                    break
                self._begin_data(data, payload, stop, flags, stream)
                position = min(stop, end)
                continue
            if kind in (HEADERS, CONTINUATION, PUSH_PROMISE):
                if stop - position > self._limits.passed_block:
                    raise Http2Error("h2-header-size")
                if stop > end:
                    self._need = stop - position
                    break
                if kind == HEADERS and flags & _WHOLE == END_HEADERS:
                    sample = samples.get(stream)
                    if sample is None or stream in responses or stream in asked:
                        stop = self._decode_whole(data, payload, stop, stream, ends=bool(flags & END_STREAM))
                    else:  # as `_decode`, without its call: nearly all answers of a port that logs
                        sample.answers(decode(data[payload:stop]))
                        if flags & END_STREAM:
                            feed.response_end(stream)
                    position = stop
                    continue
                self._on_block(kind, flags, stream, data[payload:stop])
            elif stop > end:
                self._stream, self._padding, self._rest = 0, 0, stop - end
                return b""
            position = min(stop, end)
        return data[position:]

    # --- DATA -------------------------------------------------------------------------------------------------------

    def _begin_data(self, data: bytes, payload: int, stop: int, flags: int, stream: int) -> None:
        padding = 0
        if flags & PADDED and stop > payload:
            padding = data[payload]
            payload += 1
        self._padding = min(padding, stop - payload)
        if self._search is not None and stream in self._asked:
            self._search.read_asked(stream)
        self._stream = stream if stream in self._feed.responses or stream in self._feed.samples else 0
        self._ends = bool(flags & END_STREAM)
        self._rest = stop - payload
        self._cut_through(data[payload:stop])

    def _cut_through(self, data: bytes) -> None:
        """Payload of the frame at hand, no more."""
        size = min(len(data), max(0, self._rest - self._padding))
        self._rest -= len(data)
        if self._stream:
            if size:
                self._feed.response_data(self._stream, data[:size])
            if not self._rest and self._ends:
                self._feed.response_end(self._stream)

    # --- header blocks ----------------------------------------------------------------------------------------------

    def _on_block(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == CONTINUATION:
            if self._block is None:
                raise Http2Error("h2-continuation")
            self._block.append(payload)
            self._block_size += len(payload)
        else:
            _, fragment = split_headers(payload, flags)
            self._promises = kind == PUSH_PROMISE
            self._block = [fragment[_PROMISED:] if self._promises else fragment]
            self._block_size = len(fragment)
            self._block_stream = stream
            self._ends = kind == HEADERS and bool(flags & END_STREAM)
        if self._block_size > self._limits.passed_block or len(self._block) > self._limits.continuations + 1:
            raise Http2Error("h2-header-size")
        if flags & END_HEADERS:
            fragments, self._block = self._block, None
            self._decode(0 if self._promises else stream, b"".join(fragments), ends=self._ends)

    def _decode_whole(self, data: bytes, payload: int, stop: int, stream: int, *, ends: bool) -> int:
        """Decode the block from `payload` to `stop`; return the position up to which was told of the answer."""
        block = self._decoder.decode(data[payload:stop])
        feed = self._feed
        if stream in feed.responses and stream not in self._asked:
            if ends:
                if feed.whole_response(stream, block, 0):
                    return stop
            elif len(data) - stop >= HEADER_SIZE:
                high, low, kind, flags, other = _unpack(data, stop)
                end: int = stop + HEADER_SIZE + (high << 8 | low)
                if (
                    kind == DATA
                    and flags & _LAST == END_STREAM
                    and other & STREAM == stream
                    and end <= len(data)
                    and feed.whole_response(stream, block, end - stop - HEADER_SIZE)
                ):
                    return end
        self._tell(stream, block, ends=ends)
        return stop

    def _decode(self, stream: int, fragment: bytes, *, ends: bool) -> None:
        """Decode a whole block; it is told unless the stream is 0."""
        self._tell(stream, self._decoder.decode(fragment), ends=ends)

    def _tell(self, stream: int, block: Block, *, ends: bool) -> None:
        feed = self._feed
        if self._search is not None and stream in self._asked:
            self._search.asked_block(stream, block, ends=ends)
        if stream in feed.responses:
            feed.response_block(stream, Answerer.APP, block, ends=ends)
        elif (sample := feed.samples.get(stream)) is not None:
            sample.answers(block)
            if ends:
                feed.response_end(stream)
