"""The client's bytes on their way to the app, or to a diverted stream.

`FromClient` finds the frames of a chunk and deals with those that carry neither header block nor DATA; `RequestBlocks`
deals with header blocks, `DivertedData` with DATA of diverted streams, `MirroredData` with DATA that is mirrored. On a
transparent connection a chunk is handed on as the one object it came in; on a mixed one these frames are kept from the
app or changed:

    HEADERS, CONTINUATION          withheld, or encoded anew where the app's HPACK table is another (`RequestBlocks`)
    DATA of a diverted stream      withheld (`DivertedData`)
    WINDOW_UPDATE, RST_STREAM, PRIORITY of a diverted stream      withheld, also after it has ended
    WINDOW_UPDATE on stream 0      pays the debt first (`ToClient`); the app gets the rest, nothing if that is 0
    SETTINGS                       acknowledged here when the app's connection has ended
    PING                           answered here when no stream is the app's, when the app's connection has ended, or
                                   when it may be an answer to bytes of ours: a gRPC server that sees PINGs and no calls
                                   ends the connection ("too_many_pings")

Held back for want of bytes: the preface, a frame header, a header block, a whole SETTINGS, PRIORITY, RST_STREAM,
WINDOW_UPDATE and (mixed) PING, the padding length of DATA that is diverted or mirrored. All other payloads are cut
through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.diverted_data import DivertedData
from sidestep.engine.http2.leaky_bucket import LeakyBucket
from sidestep.engine.http2.mirrored_data import MirroredData
from sidestep.engine.http2.request_blocks import UNTIL_APP, RequestBlocks
from sidestep.engine.http2.streams import BOTH_ENDED, CLIENT_ENDED
from sidestep.engine.leg import queue
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADER,
    HEADER_SIZE,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    frame,
    read_settings,
    window_update,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidestep.engine.http2.app_connection import AppConnection
    from sidestep.engine.http2.diversion import Diversion
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.http2.feed import Http2Feed
    from sidestep.engine.http2.inspected_streams import InspectedStreams
    from sidestep.engine.http2.pending_settings import PendingSettings
    from sidestep.engine.http2.request_decoder import RequestDecoder
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.http2.to_app import ToApp
    from sidestep.engine.http2.to_client import ToClient
    from sidestep.policy.route import SteeredPort

_unpack = HEADER.unpack_from
_SIZES: Final = {PRIORITY: 5, RST_STREAM: 4, WINDOW_UPDATE: 4}
_PING_SIZE: Final = 8


class FromClient:
    """The reading end of the client's connection."""

    __slots__ = (
        "_app",
        "_blocks",
        "_diversion",
        "_diverted",
        "_feed",
        "_held",
        "_held_size",
        "_inspected",
        "_is_diverted",
        "_mirrored",
        "_need",
        "_rest",
        "_rewrites",
        "_settings",
        "_started",
        "_state",
        "_to_app",
        "_to_client",
        "_to_inspect",
        "idle",
        "waits",
    )

    def __init__(
        self,
        port: SteeredPort,
        state: ConnectionState,
        decoder: RequestDecoder,
        *,
        app: AppConnection,
        settings: PendingSettings,
        diversion: Diversion,
        to_app: ToApp,
        to_client: ToClient,
        feed: Http2Feed,
        rewrites: bool,
        inspection: InspectedStreams | None = None,
    ) -> None:
        self._state = state
        self._app = app
        self._settings = settings
        self._diversion = diversion
        self._to_app = to_app
        self._to_client = to_client
        self._feed = feed
        self._rewrites = rewrites
        self.idle = LeakyBucket(state.limits.idle_frames, state.limits.idle_rate)
        """Frames without use since the client's last useful one or the app's last bytes."""
        self._blocks = RequestBlocks(
            port,
            state,
            decoder,
            self.idle,
            app=app,
            settings=settings,
            diversion=diversion,
            to_app=to_app,
            to_client=to_client,
            feed=feed,
            inspection=inspection,
        )
        self._diverted = DivertedData(state, diversion, to_client, feed)
        self._mirrored = MirroredData(feed)
        self._to_inspect: Mapping[int, object] = {} if inspection is None else inspection.requests
        self._inspected = MirroredData(feed if inspection is None else inspection)
        self._started = False
        """The preface has come."""
        self.waits = False
        """A request that would be diverted waits for the app's first frame."""
        self._held: list[bytes] = []
        """Bytes taken and not handed on: at most a header block and a frame header, or what came while waiting."""
        self._held_size = 0
        self._need = 0
        """Bytes of `_held` below which nothing can be done."""
        self._rest = 0
        """Payload bytes still to come of the DATA or unknown frame at hand."""
        self._is_diverted = False
        """They go to `_diverted`, not to the app."""

    @property
    def pending(self) -> bytes:
        """What was taken and not handed on; of use on a transparent connection only."""
        return b"".join(self._held)

    def resume(self) -> None:
        """Go on after the app has proved that it speaks HTTP/2. Raises Http2Error, HpackError."""
        if self.waits:
            self.waits = False
            self._need = 0
            self.receive(b"")

    def receive(self, data: bytes) -> None:
        """Take a chunk. Raises Http2Error, HpackError; while transparent, `pending` is then still to be handed on."""
        if self._held:
            queue(self._held, data)
            self._held_size += len(data)
            if self._held_size < self._need:
                return
            data = b"".join(self._held)
            self._held = []
            if self._blocks.charged:
                self._blocks.charge(0)
        start = position = 0
        if self._rest:
            start, position = self._continue(data)
            if self._rest:
                self._to_app.write(data[start:])
                return
        if not self._state.mixed:
            self._held = [data]  # nothing is handed on before all frames of the chunk have been read
        if not self._started:
            if not self._preface(data):
                return
            position = len(PREFACE)
        self._frames(data, start, position)

    def _continue(self, data: bytes) -> tuple[int, int]:
        """Take payload of the frame at hand: where the bytes to hand on begin, and where the next frame does."""
        size = min(self._rest, len(data))
        self._rest -= size
        if self._is_diverted:
            self._diverted.feed(data[:size], whole=not self._rest)
            return size, size
        if self._mirrored.stream:
            self._mirrored.feed(data[:size], whole=not self._rest)
        if self._inspected.stream:
            self._inspected.feed(data[:size], whole=not self._rest)
        return 0, size

    def _frames(self, data: bytes, start: int, position: int) -> None:
        """Read the frames from `position` on; bytes from `start` on have not been handed on."""
        state = self._state
        streams = state.streams
        exchanges = streams.exchanges
        mirrored = self._feed.requests
        inspected = self._to_inspect
        self._need = HEADER_SIZE
        end = len(data)
        while end - position >= HEADER_SIZE:
            high, low, kind, flags, stream = _unpack(data, position)
            stop = position + HEADER_SIZE + (high << 8 | low)
            stream &= STREAM
            if kind == HEADERS:
                taken = self._blocks.receive(data, start, position, stop, flags, stream)
                stop = self._blocks.stop
            elif kind != DATA:
                taken = self._other(data, start, position, stop, kind, flags, stream)
            elif state.mixed and (stream in exchanges or streams.is_gone(stream)):
                taken = self._diverted_data(data, start, position, stop, flags, stream)
            elif (mirrored or inspected) and not self._told(data, position, stop, flags, stream):
                taken = -HEADER_SIZE - 1
            else:
                taken = start
                if flags & END_STREAM:
                    streams.ended(stream, CLIENT_ENDED)
                elif stop - position > HEADER_SIZE:
                    self.idle.level = 0
                else:
                    self._count_idle()
            if taken < 0:
                self._need = -taken
                self.waits = taken == -UNTIL_APP
                break
            start = taken
            position = stop
        self._hand_on(data, start, position)

    def _told(self, data: bytes, position: int, stop: int, flags: int, stream: int) -> bool:
        """Tell who listens of DATA for the app; False when the length of its padding has not come yet."""
        told = stream not in self._feed.requests or self._mirrored.begin(data, position, stop, flags, stream)
        return told and (stream not in self._to_inspect or self._inspected.begin(data, position, stop, flags, stream))

    def _preface(self, data: bytes) -> bool:
        """Check the client preface (RFC 9113 section 3.4); False when it has not come whole. Raises Http2Error."""
        if not data.startswith(PREFACE):
            if not PREFACE.startswith(data):
                raise Http2Error("h2-preface")
            self._held = [data]
            self._held_size = len(data)
            self._need = len(PREFACE)
            return False
        self._started = True
        if self._rewrites:
            self._state.mixed = True
        return True

    def _hand_on(self, data: bytes, start: int, position: int) -> None:
        """Write what the loop passed over; keep what it could not read."""
        end = len(data)
        if position >= end:
            self._held = []
            self._rest = position - end
            if start < end:
                self._is_diverted = False
                self._to_app.write(data[start:] if start else data)
        else:
            self._held = [data[position:]]
            self._held_size = end - position
            self._to_app.write(data[start:position])
        self._diverted.flush_credit()

    def _count_idle(self) -> None:
        if self.idle.count():
            raise Http2Error("h2-flood", ErrorCode.ENHANCE_YOUR_CALM)

    def _diverted_data(self, data: bytes, start: int, position: int, stop: int, flags: int, stream: int) -> int:
        """DATA that is not for the app: where the bytes to hand on begin, or minus the number of bytes needed."""
        size = self._diverted.begin(data, position, stop, flags, stream)
        if size < 0:
            return -HEADER_SIZE - 1
        self._to_app.write(data[start:position])
        self._is_diverted = True
        if size:
            self.idle.level = 0
        else:
            self._count_idle()
        return min(stop, len(data))

    # --- frames without header block or data ------------------------------------------------------------------------

    def _other(self, data: bytes, start: int, position: int, stop: int, kind: int, flags: int, stream: int) -> int:
        """Any other frame: where the bytes to hand on begin, or minus the number of bytes needed."""
        if kind == CONTINUATION:
            raise Http2Error("h2-continuation")
        size = stop - position - HEADER_SIZE
        if kind in _SIZES:
            if size != _SIZES[kind] and not (kind == PRIORITY and stream):
                raise Http2Error("h2-frame-size", ErrorCode.FRAME_SIZE_ERROR)
            if stop > len(data):
                return position - stop
            if kind != WINDOW_UPDATE:
                self._count_idle()
            return self._of_stream(data, start, position, stop, kind, stream)
        self._count_idle()
        if kind == SETTINGS:
            return self._on_settings(data, start, position, stop, flags, stream)
        if kind == PING and not flags & ACK and size == _PING_SIZE and self._answers_ping:
            if stop > len(data):
                return position - stop
            self._to_client.injected = False
            self._to_app.write(data[start:position])
            self._to_client.control(frame(PING, ACK, 0, data[position + HEADER_SIZE : stop]))
            return stop
        return start

    @property
    def _answers_ping(self) -> bool:
        """Whether PINGs of the client are answered here."""
        state = self._state
        return state.mixed and (self._app.has_ended or self._to_client.injected or not state.streams.relayed)

    def _on_settings(self, data: bytes, start: int, position: int, stop: int, flags: int, stream: int) -> int:
        payload = position + HEADER_SIZE
        if flags & ACK:
            self._settings.acknowledged_by_client()
        elif stop - payload > self._state.limits.settings or stream:
            raise Http2Error("h2-settings", ErrorCode.FRAME_SIZE_ERROR)
        elif stop > len(data):
            return position - stop
        else:
            self._settings.client_sent(read_settings(data[payload:stop]))
            if self._app.has_ended:
                self._app.acknowledge_for_app()
        return start

    def _of_stream(self, data: bytes, start: int, position: int, stop: int, kind: int, stream: int) -> int:
        """A whole PRIORITY, RST_STREAM or WINDOW_UPDATE."""
        streams = self._state.streams
        if kind == WINDOW_UPDATE and not stream:
            return self._on_credit(data, start, position, stop)
        if kind == RST_STREAM:
            self._feed.cut(stream)
        if self._state.mixed:
            exchange = streams.exchanges.get(stream)
            if exchange is not None or streams.is_gone(stream):
                self._to_app.write(data[start:position])
                if exchange is not None:
                    self._on_exchange(exchange, kind, int.from_bytes(data[stop - 4 : stop], "big"))
                return stop
        if kind == RST_STREAM:
            streams.ended(stream, BOTH_ENDED)
        return start

    def _on_credit(self, data: bytes, start: int, position: int, stop: int) -> int:
        """A WINDOW_UPDATE of the connection."""
        to_client = self._to_client
        increment = int.from_bytes(data[stop - 4 : stop], "big") & STREAM
        passed = to_client.credit(increment)
        if not self._state.mixed or passed == increment:
            return start
        if to_client.window > STREAM:
            raise Http2Error("h2-window", ErrorCode.FLOW_CONTROL_ERROR)
        self._to_app.write(data[start:position])
        if passed:
            self._to_app.write(window_update(0, passed))
        return stop

    def _on_exchange(self, exchange: Exchange, kind: int, value: int) -> None:
        """A control frame of a diverted stream; `value` is its last four bytes."""
        diversion = self._diversion
        if kind == RST_STREAM:
            diversion.client_reset(exchange, value)
        elif kind == WINDOW_UPDATE:
            increment = value & STREAM
            if not increment:
                diversion.reset(exchange, ErrorCode.PROTOCOL_ERROR)
            elif exchange.window + increment > STREAM:
                diversion.reset(exchange, ErrorCode.FLOW_CONTROL_ERROR)
            else:
                self._to_client.credit_stream(exchange, increment)
