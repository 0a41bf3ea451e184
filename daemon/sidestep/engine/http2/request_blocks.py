"""Header blocks of the client: read whole, decoded, and sent to whoever gets the request.

A block is decoded in the context of the client's encoder before its request goes anywhere. What happens to it:

    new stream                  what inspection says of it, if there is any (`inspected_streams`, which may tell without
                                reading it into a `Head` that it is the app's); diverted if a rule
                                wants it; otherwise the app's, unless the app's connection is retired (then the app's
                                second one) or too many streams are open (REFUSED_STREAM)
    open diverted stream        trailers of its request
    diverted stream that ended  dropped
    any other                   trailers for the app, or what the app will refuse
    a list over `passed_list`   nobody's: 431 (RFC 6585) for a request, a reset for trailers

A block for the app passes as the bytes that came; while the app's HPACK table is not the client's, because it has not
got a block that changed that (`ToApp.in_step`), it is encoded anew.

The first request that a rule wants waits until the app has proved that it speaks HTTP/2: up to then the connection can
still become a wire.

Bounds: `header_block` (transparent) or `passed_block` (mixed) bytes and `continuations` frames for one block. What a
block that has not come whole holds above `header_block` is charged to the connection's account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.app_connection import AppConnection, AppState
from sidestep.engine.http2.head import head_of
from sidestep.engine.http2.inspected_diversion import InspectedDiversion
from sidestep.engine.http2.streams import BOTH_ENDED, CLIENT_ENDED
from sidestep.protocols.hpack import ListTooLargeError
from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_SIZE,
    PADDED,
    STREAM,
    WITH_PRIORITY,
    ErrorCode,
    Http2Error,
    rst_stream,
    split_headers,
)

if TYPE_CHECKING:
    from sidestep.engine.http2.diversion import Diversion
    from sidestep.engine.http2.feed import Http2Feed
    from sidestep.engine.http2.head import Head
    from sidestep.engine.http2.inspected_streams import InspectedStreams
    from sidestep.engine.http2.leaky_bucket import LeakyBucket
    from sidestep.engine.http2.pending_settings import PendingSettings
    from sidestep.engine.http2.request_decoder import RequestDecoder
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.http2.to_app import ToApp
    from sidestep.engine.http2.to_client import ToClient
    from sidestep.engine.inspection.judged import Judged
    from sidestep.policy.route import Rule, SteeredPort
    from sidestep.protocols.hpack import Block

_unpack = HEADER.unpack_from
_FRAGMENTED: Final = PADDED | WITH_PRIORITY
_RETIRED: Final = AppState.RETIRED
BODY_FRAMES: Final = 16
"""DATA frames of one request that are searched as one body."""
UNTIL_APP: Final = 1 << 62
"""Stands for the bytes that are missing while a block waits for the app's first frame."""


class RequestBlocks:
    """See the module. `stop` is where the block that `receive` was given last ends."""

    __slots__ = (
        "_app",
        "_decoder",
        "_diversion",
        "_feed",
        "_idle",
        "_inspection",
        "_port",
        "_settings",
        "_state",
        "_to_app",
        "_to_client",
        "charged",
        "stop",
    )

    def __init__(
        self,
        port: SteeredPort,
        state: ConnectionState,
        decoder: RequestDecoder,
        idle: LeakyBucket,
        *,
        app: AppConnection,
        settings: PendingSettings,
        diversion: Diversion,
        to_app: ToApp,
        to_client: ToClient,
        feed: Http2Feed,
        inspection: InspectedStreams | None = None,
    ) -> None:
        self._port = port
        self._state = state
        self._decoder = decoder
        self._idle = idle
        self._app = app
        self._settings = settings
        self._diversion = diversion
        self._to_app = to_app
        self._to_client = to_client
        self._feed = feed
        self._inspection = inspection
        self.charged = 0
        """Bytes of a large block in the making that the connection's account holds."""
        self.stop = 0

    def receive(self, data: bytes, start: int, position: int, stop: int, flags: int, stream: int) -> int:
        """Take the block that begins at `position`; bytes from `start` on have not been handed on yet.

        Returns where the bytes to hand on begin, or minus the number of bytes from `position` on that are needed.
        Raises Http2Error, HpackError.
        """
        state = self._state
        if stop > len(data) or not flags & END_HEADERS or stop - position > state.limits.header_block:
            stop = self._measure(data, position)
            if stop < 0:
                return stop
        self.stop = stop
        priority, fragment = b"", data[position + HEADER_SIZE : stop]
        if flags & _FRAGMENTED or not flags & END_HEADERS:
            priority, fragment = _join(data, position, stop)
        ends = flags & END_STREAM != 0
        before = data[start:position]
        try:
            block = self._decoder.decode(fragment)
        except ListTooLargeError as error:
            self._too_large(before, error, stream, ends=ends)
            return stop
        if stream > state.streams.highest and stream & 1:
            taken = 0 if self._passes(stream, block, ends=ends) else self._begin(before, stream, block, data, ends=ends)
        else:
            taken = self._continue(before, stream, block, ends=ends)
        if taken:
            return taken
        self._decoder.state = block.state
        self._idle.level = 0
        if self._to_app.in_step:
            return start
        self._to_app.write(before)
        self._to_app.write_block(stream, block, ends=ends, priority=priority)
        return stop

    def _passes(self, stream: int, block: Block, *, ends: bool) -> bool:
        """Whether a new stream is the app's, as inspection can tell from its block; it is noted then."""
        if self._inspection is None or self._app.state is _RETIRED:
            return False
        streams = self._state.streams
        if len(streams.relayed) >= self._state.limits.open_streams:
            return False
        if not self._inspection.passes(stream, block, self._port.route, ends=ends):
            return False
        streams.highest = stream
        streams.relayed[stream] = ends * CLIENT_ENDED
        return True

    def _begin(self, before: bytes, stream: int, block: Block, data: bytes, *, ends: bool) -> int:
        """Take the head of a new stream; 0 if it is the app's, otherwise as `receive`.

        `data` is the chunk in which its block ends, at `stop`.
        """
        state = self._state
        streams = state.streams
        head = head_of(block)
        decision = head.decide(self._port.route)
        if self._inspection is not None:
            diverts = decision.intercept is not None or self._app.state is _RETIRED
            body = b"" if ends else _body(data, self.stop, stream)
            fate = self._inspection.judge(stream, head, diverts=diverts, ends=ends, body=body)
            if fate is not None:
                return self._control(fate, before, stream, head, block, ends=ends)
        if decision.intercept is not None and self._may_divert(stream):
            if self._app.state is AppState.UNPROVEN:
                return -UNTIL_APP
            self._withhold(before, block)
            self._divert(stream, head, block, decision.intercept, ends=ends)
            return self.stop
        if self._app.state is _RETIRED or len(streams.relayed) >= state.limits.open_streams:
            self._not_relayed(before, stream, head, block, ends=ends)
            return self.stop
        streams.highest = stream
        streams.relayed[stream] = ends * CLIENT_ENDED
        if decision.taps:
            self._feed.begin(stream, head, block, ends=ends)
        return 0

    def _continue(self, before: bytes, stream: int, block: Block, *, ends: bool) -> int:
        """The same for a further block of a stream: its trailers."""
        state = self._state
        streams = state.streams
        self._feed.trailers(stream, block, ends=ends)
        if self._inspection is not None:
            self._inspection.trailers(stream, block)
        if state.mixed and (stream in streams.exchanges or streams.is_gone(stream)):
            self._withhold(before, block)
            exchange = streams.exchanges.get(stream)
            if exchange is not None:
                self._diversion.trailers(exchange, block, ends=ends)
            return self.stop
        if ends:
            streams.ended(stream, CLIENT_ENDED)
        return 0

    def _control(
        self, fate: Judged | ErrorCode, before: bytes, stream: int, head: Head, block: Block, *, ends: bool
    ) -> int:
        """Deal with a new stream that inspection controls, or declines. Returns as `receive`. Raises Http2Error."""
        inspection = self._inspection
        assert inspection is not None  # noqa: S101 - it is whose word this is
        if self._app.state is AppState.UNPROVEN:
            inspection.waiting[stream] = fate
            return -UNTIL_APP
        may_answer = self._may_divert(stream)
        self._withhold(before, block)
        diversion = self._diversion
        sample = inspection.controlled.pop(stream, None)
        if isinstance(fate, ErrorCode):
            diversion.decline(stream, fate)
        elif not may_answer or not isinstance(diversion, InspectedDiversion):
            diversion.decline(stream, ErrorCode.REFUSED_STREAM)
            inspection.give_up(sample)
        else:
            self._state.streams.highest = stream
            is_certain = fate.refusal is None and (ends or not fate.holds_request)
            if head.decision.is_told and is_certain:
                self._feed.begin(stream, head, block, ends=ends, diverted=True)
            diversion.divert_judged(stream, head, block, head.decision.intercept, fate, sample, ends=ends)
        return self.stop

    def _may_divert(self, stream: int) -> bool:
        """Whether a response to this new stream can still be written to the client.

        Raises Http2Error when the client's HPACK table may be larger than we follow.
        """
        if not self._settings.table_followed and not self._state.mixed:
            raise Http2Error("h2-table")
        last = self._state.streams.goaway
        is_over = self._app.state is AppState.OVER
        return not self._to_client.leg.ending and not is_over and (last is None or stream <= last)

    # --- a block that the app does not get --------------------------------------------------------------------------

    def _withhold(self, before: bytes, block: Block) -> None:
        """Hand on what is before the block, and remember what the app is owed for it."""
        self._state.mixed = True
        self._to_app.write(before)
        self._to_app.withhold(block.updates, before=self._decoder.state, after=block.state)
        self._decoder.state = block.state
        self._idle.level = 0

    def _divert(self, stream: int, head: Head, block: Block, rule: Rule | None, *, ends: bool) -> None:
        """Divert a new stream to the handler of `rule`, or to the app's second connection if that is None."""
        self._state.streams.highest = stream
        if head.decision.is_told:
            self._feed.begin(stream, head, block, ends=ends, diverted=True)
        self._diversion.divert(stream, head, block, rule, ends=ends)

    def _not_relayed(self, before: bytes, stream: int, head: Head, block: Block, *, ends: bool) -> None:
        """Deal with a new stream for an app whose connection is retired, or with one too many to be followed."""
        if not self._state.mixed:
            raise Http2Error("h2-streams", ErrorCode.ENHANCE_YOUR_CALM)
        self._withhold(before, block)
        self._feed.cut(stream)
        if self._app.state is _RETIRED:
            self._divert(stream, head, block, None, ends=ends)
        else:
            self._diversion.decline(stream, ErrorCode.REFUSED_STREAM)

    def _too_large(self, before: bytes, error: ListTooLargeError, stream: int, *, ends: bool) -> None:
        """Deal with a list that nobody gets; `before` goes to the app. Raises `error` on a transparent connection."""
        state = self._state
        if not state.mixed:
            raise error
        streams = state.streams
        self._to_app.write(before)
        self._to_app.withhold(error.updates, before=self._decoder.state, after=error.state)
        self._decoder.state = error.state
        if stream > streams.highest and stream & 1:
            self._diversion.decline_head(stream, ends=ends)
        elif stream in streams.exchanges:
            self._diversion.reset(streams.exchanges[stream], ErrorCode.ENHANCE_YOUR_CALM)
        elif stream in streams.relayed:
            self._feed.cut(stream)
            self._to_app.write(rst_stream(stream, ErrorCode.CANCEL))
            self._to_client.control(rst_stream(stream, ErrorCode.ENHANCE_YOUR_CALM))
            streams.ended(stream, BOTH_ENDED)

    # --- a block that has not come whole ----------------------------------------------------------------------------

    def _measure(self, data: bytes, position: int) -> int:
        """The end of a block with its CONTINUATIONs, or minus the number of bytes needed. Raises Http2Error."""
        limits = self._state.limits
        most = limits.passed_block if self._state.mixed else limits.header_block
        high, low, _, flags, stream = _unpack(data, position)
        stop: int = position + HEADER_SIZE + (high << 8 | low)
        count = 0
        while True:
            if stop - position > most or count > limits.continuations:
                raise Http2Error("h2-header-size", ErrorCode.ENHANCE_YOUR_CALM)
            if flags & END_HEADERS:
                break
            if len(data) - stop < HEADER_SIZE:
                return self._missing(stop + HEADER_SIZE - position)
            high, low, kind, flags, other = _unpack(data, stop)
            if kind != CONTINUATION or (other ^ stream) & STREAM:
                raise Http2Error("h2-continuation")
            stop += HEADER_SIZE + (high << 8 | low)
            count += 1
        return self._missing(stop - position) if stop > len(data) else stop

    def _missing(self, need: int) -> int:
        self.charge(need)
        return -need

    def charge(self, need: int) -> None:
        """Account for a block of `need` bytes that has not come whole. Raises Http2Error when there is no room."""
        account = self._diversion.account
        charged = max(0, need - self._state.limits.header_block)
        account.change(charged - self.charged)
        self.charged = charged
        if charged and account.budget.free < 0:
            raise Http2Error("h2-header-size", ErrorCode.ENHANCE_YOUR_CALM)


def _body(data: bytes, position: int, stream: int) -> bytes:
    """The body of a request whose head ends at `position`, if it is in frames right behind that, and whole; or b"".

    Several frames are usual: many clients end a stream with an empty one.
    """
    pieces: list[bytes] = []
    while len(data) - position >= HEADER_SIZE and len(pieces) < BODY_FRAMES:
        high, low, kind, flags, other = _unpack(data, position)
        stop = position + HEADER_SIZE + (high << 8 | low)
        if kind != DATA or flags & PADDED or other & STREAM != stream or stop > len(data):
            break
        pieces.append(data[position + HEADER_SIZE : stop])
        if flags & END_STREAM:
            return b"".join(pieces)
        position = stop
    return b""


def _join(data: bytes, position: int, stop: int) -> tuple[bytes, bytes]:
    """(priority, block) of a header block that is padded, prioritised or continued. Raises Http2Error."""
    high, low, _, flags, _ = _unpack(data, position)
    position += HEADER_SIZE
    end = position + (high << 8 | low)
    priority, fragment = split_headers(data[position:end], flags)
    fragments = [fragment]
    while end < stop:
        high, low, _, _, _ = _unpack(data, end)
        position = end + HEADER_SIZE
        end = position + (high << 8 | low)
        fragments.append(data[position:end])
    return priority, b"".join(fragments)
