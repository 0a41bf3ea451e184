"""A link alone: what it sends, what its owner is told, what it takes for an error of the peer."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.http2.head import Head
from sidestep.engine.http2.link import Link
from sidestep.engine.leg import HIGH_WATER, Ending, Leg, Role
from sidestep.protocols.hpack import INITIAL, NONE, Block, Memo
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_LIMITS,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS_ACK,
    WINDOW,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    Http2Limits,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
    window_update,
)

OK = b"\x88"
CONNECT = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":authority", b"shop"))


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def response_progressed(self, exchange: Exchange) -> None:
        self.told.append(("response", exchange.stream))

    def peer_reset(self, exchange: Exchange, code: int) -> None:
        self.told.append(("reset", exchange.stream, code))

    def refused(self, exchange: Exchange, link: Link) -> None:
        self.told.append(("refused", exchange.stream))

    def response_head_too_large(self, exchange: Exchange) -> None:
        self.told.append(("too large", exchange.stream))

    def declined(self, exchange: Exchange, link: Link) -> None:
        self.told.append(("declined", exchange.stream))

    def connect_unsupported(self, exchange: Exchange) -> None:
        self.told.append(("unsupported", exchange.stream))

    def body_sent(self, exchange: Exchange, size: int) -> None:
        self.told.append(("sent", exchange.stream, size))


class Scene:
    def __init__(self, *, usable: bool = True, limits: Http2Limits = DEFAULT_LIMITS) -> None:
        self.leg = Leg(Role.HANDLER)
        self.owner = Owner()
        self.link = Link(self.leg, self.owner, Memo(1 << 16), limits, is_app=False)
        self.limits = limits
        if usable:
            self.usable()

    def usable(self, values: dict[Setting, int] | None = None) -> None:
        self.leg.open = self.link.opened = True
        self.link.receive(settings(values or {}))
        self.written()

    def written(self) -> bytes:
        data = b"".join(self.leg.out)
        self.leg.out.clear()
        self.leg.queued = 0
        return data

    def carry(
        self, stream: int, body: bytes = b"", *, ends: bool = True, fields: tuple[tuple[bytes, bytes], ...] = ()
    ) -> Exchange:
        fields = fields or ((b":method", b"POST"), (b":path", b"/"))
        made = Exchange(stream, Head(fields), Block(fields, NONE, None, INITIAL), None, window=100)
        made.replay = 1000
        if body:
            made.add_body(body)
        if ends:
            made.end_request()
        self.link.assign(made)
        self.link.pump()
        return made

    def told(self) -> list[tuple[object, ...]]:
        told, self.owner.told = self.owner.told, []
        return told


def test_it_begins_with_preface_settings_and_window() -> None:
    scene = Scene(usable=False)
    ours = {Setting.ENABLE_PUSH: 0, Setting.INITIAL_WINDOW_SIZE: scene.limits.stream_window}
    assert scene.written() == PREFACE + settings(ours) + window_update(0, scene.limits.connection_window - WINDOW)
    small = Scene(usable=False, limits=replace(DEFAULT_LIMITS, connection_window=WINDOW))
    assert small.written() == PREFACE + settings(ours)


def test_requests_wait_for_connection_and_settings() -> None:
    scene = Scene(usable=False)
    scene.written()
    one = scene.carry(1)
    assert (scene.written(), one.link_stream, scene.link.waiting) == (b"", 0, {one: None})
    scene.leg.open = scene.link.opened = True
    scene.link.pump()
    assert scene.written() == b""
    scene.link.receive(settings({}))
    scene.link.pump()
    assert scene.written() == SETTINGS_ACK + header_frames(1, one.block.literal, end_stream=True)
    assert (one.link_stream, one.request_sent, scene.link.waiting) == (1, True, {})


def test_a_body_goes_out_as_windows_allow_a_frame_of_each_in_turn() -> None:
    scene = Scene(usable=False)
    scene.usable({Setting.INITIAL_WINDOW_SIZE: 6})
    one = scene.carry(1, b"12345678")
    two = scene.carry(3, b"abcd")
    data = scene.written()
    assert frame(DATA, 0, 1, b"123456") in data
    assert frame(DATA, END_STREAM, 3, b"abcd") in data
    assert scene.told() == [("sent", 1, 6), ("sent", 3, 4)]
    assert (one.request_sent, two.request_sent) == (False, True)
    scene.link.receive(window_update(1, 10))
    scene.link.pump()
    assert scene.written() == frame(DATA, END_STREAM, 1, b"78")
    assert one.request_sent


def test_a_connection_window_that_is_spent_keeps_exchanges_ready() -> None:
    scene = Scene(usable=False)
    scene.usable({Setting.INITIAL_WINDOW_SIZE: 1 << 20})
    one = scene.carry(1, b"x" * (WINDOW + 1))
    scene.written()
    assert scene.link.ready == {one: None}
    scene.link.receive(window_update(0, 5))
    scene.link.pump()
    assert scene.written() == frame(DATA, END_STREAM, 1, b"x")


def test_a_congested_leg_gets_no_more() -> None:
    scene = Scene()
    scene.leg.queued = HIGH_WATER + 1
    one = scene.carry(1, b"data")
    assert scene.link.ready == {one: None}
    assert scene.told() == []


def test_trailers_and_a_late_end() -> None:
    scene = Scene()
    one = scene.carry(1, b"data", ends=False)
    assert scene.written().endswith(frame(DATA, 0, 1, b"data"))
    assert not scene.link.ready
    one.trailers = Block(((b"x-sum", b"1"),), NONE, None, INITIAL)
    one.end_request()
    scene.link.wake(one)
    scene.link.pump()
    assert scene.written() == header_frames(1, one.trailers.literal, end_stream=True)
    two = scene.carry(3, ends=False)
    scene.written()
    two.end_request()
    scene.link.wake(two)
    scene.link.pump()
    assert scene.written() == frame(DATA, END_STREAM, 3)


def test_a_lower_table_size_is_announced_once_before_the_next_block() -> None:
    scene = Scene(usable=False)
    scene.usable({Setting.HEADER_TABLE_SIZE: 100})
    one = scene.carry(1)
    assert scene.written() == header_frames(1, b"\x3f\x45" + one.block.literal, end_stream=True)
    scene.link.receive(settings({Setting.HEADER_TABLE_SIZE: 4096}))
    scene.written()
    scene.carry(3)
    assert scene.written() == header_frames(3, one.block.literal, end_stream=True)


def test_extended_connect_needs_a_peer_that_takes_it() -> None:
    scene = Scene()
    scene.carry(1, fields=CONNECT)
    assert (scene.told(), scene.written()) == ([("unsupported", 1)], b"")
    scene.link.receive(settings({Setting.ENABLE_CONNECT_PROTOCOL: 1}))
    scene.carry(3, fields=CONNECT)
    assert scene.told() == []


def test_no_more_streams_at_once_than_the_peer_allows() -> None:
    scene = Scene(usable=False)
    scene.usable({Setting.MAX_CONCURRENT_STREAMS: 1})
    assert scene.link.free_streams == 1
    one, two = scene.carry(1), scene.carry(3)
    assert (one.link_stream, two.link_stream, scene.link.free_streams) == (1, 0, -1)
    scene.link.receive(header_frames(1, OK, end_stream=True))
    scene.link.pump()
    assert two.link_stream == 3


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (header_frames(1, OK, end_stream=False) + frame(DATA, END_STREAM, 1, b"x"), [("response", 1)] * 2),
        (header_frames(1, b"\x48\x03103", end_stream=False), [("response", 1)]),
        (rst_stream(1, ErrorCode.CANCEL), [("reset", 1, ErrorCode.CANCEL)]),
        (rst_stream(1, ErrorCode.REFUSED_STREAM), [("refused", 1)]),
        (rst_stream(1, ErrorCode.HTTP_1_1_REQUIRED), [("declined", 1)]),
        (goaway(0, 0), [("refused", 1)]),
        (goaway(1, 0), []),
        (header_frames(1, b"\x48\x03101", end_stream=False), [("reset", 1, ErrorCode.INTERNAL_ERROR)]),
        (header_frames(1, b"\x48\x03103", end_stream=True), [("reset", 1, ErrorCode.INTERNAL_ERROR)]),
        (frame(PING, ACK, 0, b"8 bytes.") + SETTINGS_ACK, []),
        (frame(0xFF, 0, 1, b"unknown"), []),
    ],
)
def test_the_owner_is_told_what_the_peer_does(data: bytes, told: list[tuple[object, ...]]) -> None:
    scene = Scene()
    scene.carry(1)
    scene.link.receive(data)
    assert scene.told() == told


def test_frames_of_a_stream_that_is_over_are_dropped_and_given_back() -> None:
    scene = Scene(limits=replace(DEFAULT_LIMITS, connection_window=WINDOW))
    one = scene.carry(1)
    scene.link.cancel(one, ErrorCode.CANCEL)
    assert scene.written().endswith(rst_stream(1, ErrorCode.CANCEL))
    scene.link.receive(header_frames(1, OK, end_stream=False) + rst_stream(1, 0) + window_update(1, 5))
    scene.link.receive(frame(DATA, PADDED, 1, b"\x05" + b"x" * 16_000) * 3)
    assert scene.told() == []
    given = scene.written()
    assert given.count(window_update(0, 1)[:9]) == 1
    assert scene.link.unread == 0


def test_the_windows_of_a_response_are_given_back_half_at_a_time() -> None:
    scene = Scene(limits=replace(DEFAULT_LIMITS, stream_window=1000, connection_window=WINDOW))
    one = scene.carry(1)
    scene.written()
    scene.link.receive(header_frames(1, OK, end_stream=False) + frame(DATA, 0, 1, b"x" * 1000))
    assert scene.link.unread == 1000
    scene.link.passed_on(one, 499)
    assert scene.written() == b""
    scene.link.passed_on(one, 1)
    assert scene.written() == window_update(1, 500)
    assert scene.link.unread == 500


def test_a_peer_that_leaves_gets_no_new_stream() -> None:
    scene = Scene()
    scene.carry(1)
    scene.link.receive(goaway(1, 0))
    assert (scene.link.leaving, scene.link.accepts_streams, scene.link.is_idle) == (True, False, False)
    scene.link.receive(header_frames(1, OK, end_stream=True))
    assert scene.link.is_idle


def test_nothing_is_written_to_a_leg_that_ends() -> None:
    scene = Scene()
    one = scene.carry(1, ends=False)
    scene.written()
    scene.link.end(Ending.CLOSE)
    scene.link.write(SETTINGS_ACK)
    scene.link.cancel(one, ErrorCode.CANCEL)
    scene.link.pump()
    assert scene.written() == b""
    assert not scene.link.accepts_streams


BAD = {
    "a push": frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2\x82"),
    "a frame beyond 16 KiB": frame(DATA, 0, 1, b"x" * 16_385),
    "a stream that never was": header_frames(3, OK, end_stream=True),
    "an even stream": header_frames(2, OK, end_stream=True),
    "data before a head": frame(DATA, 0, 1, b"x"),
    "data after the end": header_frames(1, OK, end_stream=True) + frame(DATA, 0, 1, b"x"),
    "padding beyond the frame": header_frames(1, OK, end_stream=False) + frame(DATA, PADDED, 1, b"\x05xx"),
    "a lone continuation": frame(CONTINUATION, END_HEADERS, 1, OK),
    "a frame in a block": frame(HEADERS, 0, 1, OK) + frame(PING, 0, 0, b"8 bytes."),
    "a continuation of another": frame(HEADERS, 0, 1, OK) + frame(CONTINUATION, END_HEADERS, 3, OK),
    "a window update of a bad size": frame(WINDOW_UPDATE, 0, 0, b"123"),
    "a window update of nothing": window_update(0, 0),
    "a connection window beyond 2^31": window_update(0, 0x7FFFFFFF),
    "a stream window beyond 2^31": window_update(1, 0x7FFFFFFF),
    "an initial window beyond 2^31": window_update(1, 0x7FFF0000) + settings({Setting.INITIAL_WINDOW_SIZE: 0x7FFF0000}),
    "a short GOAWAY": frame(GOAWAY, 0, 0, b"1234"),
    "a flood": frame(RST_STREAM, 0, 1, bytes(4)) * 10_001,
    "more than the window": header_frames(1, OK, end_stream=False) + frame(DATA, 0, 1, b"x" * 16_000) * 17,
}


@pytest.mark.parametrize("name", [name for name in BAD if name != "data after the end"])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_what_no_server_may_send_is_an_error(name: str, chunk: int) -> None:
    scene = Scene()
    scene.carry(1, ends=False)
    data = BAD[name]
    with pytest.raises(Http2Error):
        for at in range(0, len(data), chunk):
            scene.link.receive(data[at : at + chunk])


def test_data_after_the_end_is_an_error_while_the_request_goes_on() -> None:
    scene = Scene()
    scene.carry(1, ends=False)
    with pytest.raises(Http2Error):
        scene.link.receive(BAD["data after the end"])


def test_settings_come_first() -> None:
    scene = Scene(usable=False)
    scene.link.opened = True
    with pytest.raises(Http2Error) as raised:
        scene.link.receive(SETTINGS_ACK)
    assert raised.value.label == "h2-handler-not-http2"


def test_a_response_head_beyond_the_limit_is_cancelled() -> None:
    scene = Scene(limits=replace(DEFAULT_LIMITS, passed_list=100))
    scene.carry(1)
    scene.written()
    scene.link.receive(header_frames(1, OK + b"\x00\x01x\x64" + b"l" * 100, end_stream=True))
    assert scene.told() == [("too large", 1)]
    assert scene.written() == rst_stream(1, ErrorCode.CANCEL)
