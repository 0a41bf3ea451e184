"""The client's bytes on their way to the app, or to an exchange.

A header block is read whole before its request goes anywhere, and decoded in the context of the client's encoder
(`_state`; limited by what the app's SETTINGS allow, from the client's ACK on). Until a stream of the connection is
diverted the original bytes go on, chunk by chunk as they came: the app's decoder sees what ours sees. From the first
diversion on the app has missed blocks, so every block for it is written anew as literals without indexing, which need
no context. Size updates at the head of a block go with it; those of a block that the app does not get are owed to it
(`_owed`) and begin the next one.

    DATA of an exchange            credited on stream 0 at once, payload to the exchange as it comes, padding dropped;
                                   beyond the stream's window the stream is reset with FLOW_CONTROL_ERROR
    WINDOW_UPDATE, RST_STREAM, PRIORITY of an exchange or of one that is over      kept from the app
    WINDOW_UPDATE on stream 0      pays the debt first (`ToClient`); the app gets the rest, nothing if that is 0
    a new stream beyond a bound    refused or, when its head is too large, answered with 431 (RFC 6585)
    PING                           is answered here, once diverted, when no stream is the app's or when it may be an
                                   answer to bytes of ours: a gRPC server that sees PINGs and no calls ends the
                                   connection ("too_many_pings")
    everything else                goes on as it is

The first request that a rule wants waits until the app has proved that it speaks HTTP/2 (`waits`): up to then the
connection can still become a wire, afterwards not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.head import head_of
from sidestep.engine.http2.streams import BOTH_ENDED, CLIENT_ENDED
from sidestep.engine.relay import queue
from sidestep.protocols.hpack import INITIAL, Block, ListTooLargeError, State, size_updates
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    STREAM,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    Http2Error,
    frame,
    header_frames,
    read_settings,
    rst_stream,
    split_headers,
    window_update,
)

if TYPE_CHECKING:
    from sidestep.engine.http2.connection import Connection
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.http2.head import Head
    from sidestep.policy.route import Rule

_unpack = HEADER.unpack_from
_FRAGMENTED: Final = PADDED | WITH_PRIORITY
_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, WINDOW_UPDATE: 4}
_FOREVER: Final = 1 << 62
PING_SIZE: Final = 8


class FromClient:
    """The reading end of the client's connection."""

    __slots__ = (
        "_charged",
        "_connection",
        "_credit",
        "_held",
        "_held_size",
        "_need",
        "_owed",
        "_rest",
        "_sink",
        "_sink_data",
        "_sink_ends",
        "_started",
        "_state",
        "_stop",
        "_tap",
        "_tap_data",
        "_tap_ends",
        "_through",
        "idle",
        "waits",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._state: State = INITIAL
        self._owed: tuple[int, int] | None = None
        self._started = False
        self.waits = False
        """A request that would be diverted waits for the app's first frame."""
        self._held: list[bytes] = []
        """Bytes taken and not handed on: at most a header block and a frame header, or what came while waiting."""
        self._held_size = 0
        self._need = 0
        """Bytes of `_held` below which nothing can be done."""
        self._charged = 0
        """What of a large header block the connection's account holds."""
        self._rest = 0
        """Payload bytes still to come of the DATA or unknown frame at hand ..."""
        self._through = True
        """... which are the app's, or else those of `_sink`, or nobody's."""
        self._sink: Exchange | None = None
        self._sink_data = 0
        """How many of them are data; padding follows."""
        self._sink_ends = False
        self._tap = 0
        """The stream with copies whose DATA frame is at hand, on its way to the app ..."""
        self._tap_data = 0
        """... and how many bytes of data, after which padding follows, are still to be copied."""
        self._tap_ends = False
        self._credit = 0
        """Bytes of DATA to give back on stream 0."""
        self.idle = 0
        """Frames without use since the client's last useful one or the app's last bytes."""
        self._stop = 0

    @property
    def pending(self) -> bytes:
        """What was taken and not handed on."""
        return b"".join(self._held)

    def allow(self, table: int) -> None:
        """The client has acknowledged the app's SETTINGS_HEADER_TABLE_SIZE."""
        self._state = self._connection.memo.with_allowed(self._state, table)

    @property
    def wants_time(self) -> bool:
        """Whether ticks are needed: idle frames are a rate."""
        return self.idle * 4 > self._connection.limits.idle_frames

    def tick(self) -> None:
        """A tick has passed."""
        self.idle = max(0, self.idle - self._connection.limits.idle_rate)

    def resume(self) -> None:
        """The app has proved to speak HTTP/2. Raises Http2Error, HpackError."""
        if self.waits:
            self.waits = False
            self._need = 0
            self.receive(b"")

    def receive(self, data: bytes) -> None:  # noqa: C901 - hot path: one loop, one call per header block
        """Take a chunk. Raises Http2Error or HpackError; before a diversion `pending` is then still to be handed on."""
        if self._held:
            queue(self._held, data)
            self._held_size += len(data)
            if self._held_size < self._need:
                return
            data = b"".join(self._held)
            self._held = []
            if self._charged:
                self._charge(0)
        connection = self._connection
        start = position = 0
        end = len(data)
        if self._rest:
            position = min(self._rest, end)
            self._rest -= position
            if not self._through:
                self._deliver(data[:position], whole=not self._rest)
                start = position
            elif self._tap:
                self._copy(data[:position], whole=not self._rest)
            if self._rest:
                connection.to_app(data[start:])
                return
        if not connection.mixed:
            self._held = [data]  # nothing is handed on before the loop is through
        if not self._started:
            if not self._preface(data):
                return
            position = len(PREFACE)
        exchanges = connection.streams.exchanges
        tapped = connection.taps.streams
        self._need = HEADER_SIZE
        while end - position >= HEADER_SIZE:
            high, low, kind, flags, stream = _unpack(data, position)
            stop = position + HEADER_SIZE + (high << 8 | low)
            stream &= STREAM
            if kind == HEADERS:
                taken = self._headers(data, start, position, stop, flags, stream)
                stop = self._stop
            elif kind != DATA:
                taken = self._other(data, start, position, stop, kind, flags, stream)
            elif connection.mixed and (stream in exchanges or connection.streams.is_gone(stream)):
                taken = self._own_data(data, start, position, stop, flags, stream)
            elif tapped and stream in tapped and not self._copied(data, position, stop, flags, stream):
                break
            else:
                taken = start
                if flags & END_STREAM:
                    connection.streams.ended(stream, CLIENT_ENDED)
                elif stop - position > HEADER_SIZE:
                    self.idle = 0
                else:
                    self._count_idle()
            if taken < 0:
                break
            start = taken
            position = stop
        self._hand_on(data, start, position)

    def _preface(self, data: bytes) -> bool:
        """Check the client preface (RFC 9113 section 3.4); False when it has not come whole. Raises Http2Error."""
        if not data.startswith(PREFACE):
            if not PREFACE.startswith(data):
                raise Http2Error("h2-preface")
            self._held_size = len(data)
            self._need = len(PREFACE)
            return False
        self._started = True
        if self._connection.rewrites:
            self._connection.mixed = True
            self._held = []
        return True

    def _hand_on(self, data: bytes, start: int, position: int) -> None:
        """Write what the loop passed over; keep what it could not read."""
        connection = self._connection
        end = len(data)
        if position >= end:
            self._held = []
            self._rest = position - end
            if start < end:
                self._through = True
                connection.to_app(data[start:] if start else data)
        else:
            self._held = [data[position:]]
            self._held_size = end - position
            connection.to_app(data[start:position])
        if self._credit:
            connection.to_client.control(window_update(0, self._credit))
            self._credit = 0

    def _count_idle(self) -> None:
        self.idle += 1
        if self.idle > self._connection.limits.idle_frames:
            raise Http2Error("h2-flood", ErrorCode.ENHANCE_YOUR_CALM)

    # --- header blocks ----------------------------------------------------------------------------------------------

    def _headers(self, data: bytes, start: int, position: int, stop: int, flags: int, stream: int) -> int:
        """A header block begins: where the bytes to hand on begin, -1 to wait. `_stop` is where the block ends."""
        connection = self._connection
        limits = connection.limits
        if stop > len(data) or not flags & END_HEADERS or stop - position > limits.header_block:
            stop = self._measure(data, position)
            if stop < 0:
                return -1
        self._stop = stop
        priority, fragment = b"", data[position + HEADER_SIZE : stop]
        if flags & _FRAGMENTED or not flags & END_HEADERS:
            priority, fragment = _join(data, position, stop)
        streams = connection.streams
        ends = flags & END_STREAM != 0
        try:
            block = connection.memo.decode(
                self._state, fragment, list_limit=limits.passed_list, table_limit=limits.table
            )
        except ListTooLargeError as error:
            return self._too_large(data[start:position], error, stream, ends=ends)
        if stream > streams.highest and stream & 1:
            head = head_of(block)
            decision = head.decide(connection.port.route)
            if decision.intercept is not None and connection.may_divert(stream):
                if not connection.from_app.is_http2:
                    self.waits = True
                    self._need = _FOREVER
                    return -1
                self._divert_from_here(data, start, position, block)
                self._divert(stream, head, block, decision.intercept, decision.taps, ends=ends)
                return stop
            if connection.retired or len(streams.relayed) >= limits.open_streams:
                return self._not_relayed(data[start:position], stream, head, block, decision.taps, ends=ends)
            streams.highest = stream
            streams.relayed[stream] = ends * CLIENT_ENDED
            if decision.taps:
                connection.taps.begin(stream, head, block, decision.taps, ends=ends)
        elif connection.mixed and stream in streams.exchanges:
            connection.taps.trailers(stream, block, ends=ends)
            self._divert_from_here(data, start, position, block)
            connection.diversion.trailers(streams.exchanges[stream], block, ends=ends)
            return stop
        elif connection.mixed and streams.is_gone(stream):
            self._divert_from_here(data, start, position, block)
            return stop
        else:
            connection.taps.trailers(stream, block, ends=ends)
            if ends:
                streams.ended(stream, CLIENT_ENDED)
        self._state = block.state
        self.idle = 0
        if not connection.mixed:
            return start
        connection.to_app(data[start:position])
        connection.to_app(self._rewrite(stream, block, ends=ends, priority=priority))
        return stop

    def _divert(
        self, stream: int, head: Head, block: Block, rule: Rule | None, taps: tuple[Rule, ...], *, ends: bool
    ) -> None:
        """A new stream that `rule` wants; None: that is for an app whose connection is retired."""
        connection = self._connection
        connection.streams.highest = stream
        if taps:
            connection.taps.begin(stream, head, block, taps, ends=ends)
        connection.diversion.divert(stream, head, block, rule, ends=ends)

    def _measure(self, data: bytes, position: int) -> int:
        """The end of a header block with its CONTINUATIONs, -1 when more bytes are needed. Raises Http2Error."""
        limits = self._connection.limits
        most = limits.passed_block if self._connection.mixed else limits.header_block
        high, low, _, flags, stream = _unpack(data, position)
        stop: int = position + HEADER_SIZE + (high << 8 | low)
        count = 0
        while True:
            if stop - position > most or count > limits.continuations:
                raise Http2Error("h2-header-size", ErrorCode.ENHANCE_YOUR_CALM)
            if flags & END_HEADERS:
                break
            if len(data) - stop < HEADER_SIZE:
                self._need = stop + HEADER_SIZE - position
                self._charge(self._need)
                return -1
            high, low, kind, flags, other = _unpack(data, stop)
            if kind != CONTINUATION or (other ^ stream) & STREAM:
                raise Http2Error("h2-continuation")
            stop += HEADER_SIZE + (high << 8 | low)
            count += 1
        if stop > len(data):
            self._need = stop - position
            self._charge(self._need)
            return -1
        return stop

    def _charge(self, need: int) -> None:
        """Count a header block of so many bytes that has not come whole. Raises Http2Error when there is no room."""
        account = self._connection.diversion.account
        charged = max(0, need - self._connection.limits.header_block)
        account.change(charged - self._charged)
        self._charged = charged
        if charged and account.budget.free < 0:
            raise Http2Error("h2-header-size", ErrorCode.ENHANCE_YOUR_CALM)

    def _not_relayed(
        self, before: bytes, stream: int, head: Head, block: Block, taps: tuple[Rule, ...], *, ends: bool
    ) -> int:
        """A new stream for an app whose connection is retired, or one too many to be followed.

        `before` goes to the app. Returns where the block ends.
        """
        connection = self._connection
        if not connection.mixed:
            raise Http2Error("h2-streams", ErrorCode.ENHANCE_YOUR_CALM)
        self._divert_from_here(before, 0, len(before), block)
        if connection.retired:
            self._divert(stream, head, block, None, taps, ends=ends)
        else:
            connection.diversion.decline(stream, ErrorCode.REFUSED_STREAM, ends=True)
        return self._stop

    def _too_large(self, before: bytes, error: ListTooLargeError, stream: int, *, ends: bool) -> int:
        """A header block with a list that nobody gets; `before` goes to the app. Returns where the block ends."""
        connection = self._connection
        if not connection.mixed:
            raise error
        streams = connection.streams
        connection.to_app(before)
        self._state = error.state
        self._owed = _merge(self._owed, error.updates)
        if stream > streams.highest and stream & 1:
            connection.diversion.decline(stream, ErrorCode.NO_ERROR, ends=ends)
        elif stream in streams.exchanges:
            connection.diversion.reset(streams.exchanges[stream], ErrorCode.ENHANCE_YOUR_CALM)
        elif stream in streams.relayed:
            connection.taps.cut(stream)
            connection.to_app(rst_stream(stream, ErrorCode.CANCEL))
            connection.to_client.control(rst_stream(stream, ErrorCode.ENHANCE_YOUR_CALM))
            streams.ended(stream, BOTH_ENDED)
        return self._stop

    def _divert_from_here(self, data: bytes, start: int, position: int, block: Block) -> None:
        """The app does not get this block: hand on what is before it, and remember what the app is owed."""
        connection = self._connection
        connection.mixed = True
        self._held = []
        connection.to_app(data[start:position])
        self._state = block.state
        self.idle = 0
        self._owed = _merge(self._owed, block.updates)

    def _rewrite(self, stream: int, block: Block, *, ends: bool, priority: bytes) -> bytes:
        """The block for an app whose decoder has missed others."""
        literal = block.literal
        owed = _merge(self._owed, block.updates)
        if owed is not None:
            self._owed = None
            literal = size_updates(*owed) + literal
        return header_frames(stream, literal, end_stream=ends, priority=priority)

    # --- DATA of diverted streams -----------------------------------------------------------------------------------

    def _own_data(self, data: bytes, start: int, position: int, stop: int, flags: int, stream: int) -> int:
        """DATA that is not for the app: where the bytes to hand on begin, -1 to wait."""
        connection = self._connection
        end = len(data)
        payload = position + HEADER_SIZE
        padding = 0
        if flags & PADDED:
            if stop == payload:
                raise Http2Error("h2-padding", ErrorCode.FRAME_SIZE_ERROR)
            if end == payload:
                self._need = HEADER_SIZE + 1
                return -1
            padding = 1 + data[payload]
            if padding > stop - payload:
                raise Http2Error("h2-padding")
        connection.to_app(data[start:position])
        self._credit += stop - payload
        ends = flags & END_STREAM != 0
        exchange = connection.streams.exchanges.get(stream)
        if exchange is not None:
            exchange.room -= stop - payload
            if exchange.room < 0:
                connection.diversion.exceeded(exchange)
                exchange = None
        if stop - payload > padding:
            self.idle = 0
        else:
            self._count_idle()
        if exchange is not None and padding and not ends:
            exchange.room += padding
            connection.to_client.control(window_update(stream, padding))
        self._through = False
        self._sink = exchange
        self._sink_data = stop - payload - padding
        self._sink_ends = ends
        taken = min(stop, end)
        self._deliver(data[payload + (padding > 0) : taken], whole=stop <= end)
        return taken

    def _deliver(self, data: bytes, *, whole: bool) -> None:
        """Payload for the exchange at hand, what exceeds its data being padding; `whole` when the frame ends here."""
        size = min(len(data), self._sink_data)
        self._sink_data -= size
        sink = self._sink
        if sink is not None and sink.stream in self._connection.streams.exchanges:
            ends = whole and self._sink_ends
            if sink.stream in self._connection.taps.streams:
                self._connection.taps.body(sink.stream, data[:size], ends=ends)
            self._connection.diversion.body(sink, data[:size], ends=ends)

    # --- DATA that is copied ----------------------------------------------------------------------------------------

    def _copied(self, data: bytes, position: int, stop: int, flags: int, stream: int) -> bool:
        """Copy what is here of a DATA frame for the app; False to wait for more bytes."""
        payload = position + HEADER_SIZE
        padding = 0
        if flags & PADDED:
            if stop > payload == len(data):
                self._need = HEADER_SIZE + 1
                return False
            padding = 1 + data[payload] if stop > payload else 1
        if padding > stop - payload:
            self._connection.taps.cut(stream)  # the app will say what it thinks of that
            return True
        self._tap = stream
        self._tap_data = stop - payload - padding
        self._tap_ends = flags & END_STREAM != 0
        self._copy(data[payload + (padding > 0) : stop], whole=stop <= len(data))
        return True

    def _copy(self, data: bytes, *, whole: bool) -> None:
        """Payload of that frame, what exceeds its data being padding; `whole` when the frame ends here."""
        stream = self._tap
        size = min(len(data), self._tap_data)
        self._tap_data -= size
        if whole:
            self._tap = 0
        if stream in self._connection.taps.streams:
            self._connection.taps.body(stream, data[:size], ends=whole and self._tap_ends)

    # --- everything else --------------------------------------------------------------------------------------------

    def _other(self, data: bytes, start: int, position: int, stop: int, kind: int, flags: int, stream: int) -> int:
        """A frame without header block or data: where the bytes to hand on begin, -1 to wait."""
        if kind == CONTINUATION:
            raise Http2Error("h2-continuation")
        connection = self._connection
        payload = position + HEADER_SIZE
        if kind in _SIZES:
            if stop - payload != _SIZES[kind] and not (kind == PRIORITY and stream):
                raise Http2Error("h2-frame-size", ErrorCode.FRAME_SIZE_ERROR)
            if stop > len(data):
                self._need = stop - position
                return -1
            if kind != WINDOW_UPDATE:
                self._count_idle()
            return self._of_stream(data, start, position, stop, kind, stream)
        self._count_idle()
        if kind == SETTINGS:
            if flags & ACK:
                connection.client_acknowledged()
            elif stop - payload > connection.limits.settings or stream:
                raise Http2Error("h2-settings", ErrorCode.FRAME_SIZE_ERROR)
            elif stop > len(data):
                self._need = stop - position
                return -1
            else:
                connection.client_settings(read_settings(data[payload:stop]))
                if connection.app_over:
                    connection.to_client.control(SETTINGS_ACK)
                    connection.app_acknowledged()
        elif kind == PING and connection.mixed and not flags & ACK and stop - payload == PING_SIZE:
            to_client = connection.to_client
            if connection.app_over or to_client.injected or not connection.streams.relayed:
                if stop > len(data):
                    self._need = stop - position
                    return -1
                to_client.injected = False
                connection.to_app(data[start:position])
                to_client.control(frame(PING, ACK, 0, data[payload:stop]))
                return stop
        return start

    def _of_stream(self, data: bytes, start: int, position: int, stop: int, kind: int, stream: int) -> int:
        """A whole PRIORITY, RST_STREAM or WINDOW_UPDATE."""
        connection = self._connection
        if kind == WINDOW_UPDATE and not stream:
            return self._credited(data, start, position, stop)
        if kind == RST_STREAM:
            connection.taps.cut(stream)
        if connection.mixed:
            exchange = connection.streams.exchanges.get(stream)
            if exchange is not None or connection.streams.is_gone(stream):
                connection.to_app(data[start:position])
                if exchange is not None:
                    self._on_exchange(exchange, kind, int.from_bytes(data[stop - 4 : stop], "big"))
                return stop
        if kind == RST_STREAM:
            connection.streams.ended(stream, BOTH_ENDED)
        return start

    def _credited(self, data: bytes, start: int, position: int, stop: int) -> int:
        """A WINDOW_UPDATE of the connection."""
        connection = self._connection
        to_client = connection.to_client
        increment = int.from_bytes(data[stop - 4 : stop], "big") & STREAM
        passed = to_client.credit(increment)
        if not connection.mixed or passed == increment:
            return start
        if to_client.window > STREAM:
            raise Http2Error("h2-window", ErrorCode.FLOW_CONTROL_ERROR)
        connection.to_app(data[start:position])
        if passed:
            connection.to_app(window_update(0, passed))
        return stop

    def _on_exchange(self, exchange: Exchange, kind: int, value: int) -> None:
        """A control frame of a diverted stream."""
        connection = self._connection
        if kind == RST_STREAM:
            connection.diversion.client_reset(exchange, value)
        elif kind == WINDOW_UPDATE:
            increment = value & STREAM
            if not increment:
                connection.diversion.reset(exchange, ErrorCode.PROTOCOL_ERROR)
            elif exchange.window + increment > STREAM:
                connection.diversion.reset(exchange, ErrorCode.FLOW_CONTROL_ERROR)
            else:
                connection.to_client.credit_stream(exchange, increment)


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


def _merge(owed: tuple[int, int] | None, updates: tuple[int, int] | None) -> tuple[int, int] | None:
    """Size updates (smallest, last) of two blocks, the first of which was never sent."""
    if owed is None or updates is None:
        return owed or updates
    return min(owed[0], updates[0]), updates[1]
