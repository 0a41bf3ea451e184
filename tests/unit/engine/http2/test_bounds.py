"""Once streams are diverted every bound concerns one stream, or delays its sender; floods end with GOAWAY."""

from __future__ import annotations

import struct

import hpack
import pytest
from msgspec.structs import replace

from sidestep.engine.http2.diversion import LINGER
from sidestep.engine.memory_budget import Account, Budget
from sidestep.engine.mirror.ledger import Ledger
from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    DEFAULT_LIMITS,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    ErrorCode,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
    window_update,
)
from tests.unit.engine.http2.talk import Talk, goes_on, mixed, ticks
from tests.unit.engine.http2_peers import MATCH, request

PIECE = b"x" * 16_384


MIB = 1 << 20


@pytest.mark.parametrize("size", [70_000, 300_000, 900_000])
@pytest.mark.parametrize("match", [False, True])
def test_a_large_head_goes_to_the_app_and_nobody_notices(size: int, match: bool) -> None:
    talk = mixed()
    large = request(b"/large", (b"x-large", b"l" * size), *([MATCH] if match else []))
    block = talk.encoder.encode(large.head, huffman=False)
    frames = frame(HEADERS, END_STREAM, 5, block[:16_384])
    rest = [block[at : at + 16_384] for at in range(16_384, len(block), 16_384)]
    frames += b"".join(frame(CONTINUATION, 0, 5, piece) for piece in rest[:-1])
    talk.send(frames + frame(CONTINUATION, END_HEADERS, 5, rest[-1]))
    assert [tuple(field) for field in talk.app_heads(5)[0]] == large.head
    assert goes_on(talk)
    assert talk.relay._connection.budget.held < 20_000


@pytest.mark.parametrize("ends", [True, False])
def test_a_list_beyond_all_bounds_is_answered_alone_and_keeps_the_compression_context(*, ends: bool) -> None:
    talk = mixed()
    cookie = (b"cookie", b"c" * 3000)
    talk.send(talk.head(5, request(b"/", cookie)))
    bomb = talk.encoder.encode([*request(b"/bomb").head, *[cookie] * 400])
    assert len(bomb) < 1000
    talk.send(header_frames(7, bomb, end_stream=False))
    assert [fields[0] for fields in talk.heads(talk.client, 7)] == [(b":status", b"431")]
    assert not talk.app.of(HEADERS, 7)
    talk.send(frame(DATA, END_STREAM if ends else 0, 7, b"late") + window_update(7, 5))
    assert not talk.app.of(DATA, 7)
    ticks(talk, LINGER)
    assert not talk.client.of(RST_STREAM, 7)
    ticks(talk, 1)
    assert talk.client.of(RST_STREAM, 7) == ([] if ends else [(0, bytes(4))])
    assert 7 not in talk.relay._connection.state.streams.exchanges
    talk.send(talk.head(9, request(b"/", cookie)))
    assert talk.app_heads(9)[0][-1] == cookie
    assert goes_on(talk)


@pytest.mark.parametrize("ends", [True, False])
def test_a_list_beyond_all_bounds_is_answered_without_room_too(*, ends: bool) -> None:
    """A client sends a stream again that is refused, and this one would be."""
    talk = mixed()
    talk.relay._connection.state.limits = replace(talk.relay._connection.state.limits, diverted_streams=0)
    bomb = talk.encoder.encode([*request(b"/bomb").head, *[(b"cookie", b"c" * 3000)] * 400])
    talk.send(header_frames(5, bomb, end_stream=ends))
    assert [fields[0] for fields in talk.heads(talk.client, 5)] == [(b":status", b"431")]
    assert talk.client.of(RST_STREAM, 5) == ([] if ends else [(0, bytes(4))])
    assert 5 not in talk.relay._connection.state.streams.exchanges
    assert goes_on(talk)


@pytest.mark.parametrize("stream", [1, 3])
def test_trailers_beyond_all_bounds_end_their_stream_alone(stream: int) -> None:
    talk = mixed()
    cookie = (b"cookie", b"c" * 3000)
    talk.send(talk.head(5, request(b"/", cookie), ends=False))
    talk.send(header_frames(stream, talk.encoder.encode([cookie] * 400), end_stream=True))
    assert talk.client.of(RST_STREAM, stream) == [(0, b"\0\0\0\x0b")]
    assert bool(talk.app.of(RST_STREAM, stream)) is (stream == 3)
    assert not talk.client.of(GOAWAY)
    talk.send(frame(DATA, 0, 5, b"on"))
    assert talk.app.of(DATA, 5)


def test_a_flood_of_continuations_is_an_attack() -> None:
    talk = mixed()
    talk.send(frame(HEADERS, 0, 5, b"\x82") + frame(CONTINUATION, 0, 5) * 300)
    assert talk.client.of(GOAWAY)[0][1][4:8] == b"\0\0\0\x0b"


def test_large_heads_in_the_making_count() -> None:
    ledger = Ledger(budget=Budget(100_000))
    talk = Talk()
    talk.relay._connection.diversion.account = Account(ledger.budget)
    talk.divert(1)
    talk.send(frame(HEADERS, 0, 3, b"\x00\x01x\x7f" + b"l" * 10_000) + frame(CONTINUATION, 0, 3, PIECE) * 13)
    assert talk.client.of(GOAWAY)
    assert ledger.budget.held <= 0 or talk.relay.done


def test_a_large_answer_passes_and_one_beyond_all_bounds_is_a_502() -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.open_handler()
    talk.from_handler(talk.respond(1, (b"x-large", b"l" * 100_000)))
    sent = b"".join(payload for kind, _, stream, payload in talk.client.frames() if stream == 1)
    assert hpack.Decoder(max_header_list_size=MIB).decode(sent, raw=True)[1] == (b"x-large", b"l" * 100_000)
    bomb = [(b":status", b"200"), *[(b"x-c", b"c" * 3000)] * 400]
    talk.from_handler(header_frames(3, talk.responses.encode(bomb), end_stream=True))
    assert talk.heads(talk.client, 3)[0][0] == (b":status", b"502")
    assert b"larger than" in talk.client.of(DATA, 3)[0][1]
    talk.divert(5)
    talk.from_handler(talk.respond(5))
    assert talk.heads(talk.client, 5)[0][0] == (b":status", b"200")


def test_too_many_streams_of_the_app_are_refused_alone() -> None:
    talk = mixed(open_streams=2)
    talk.send(talk.head(5, request(b"/"), ends=False) + talk.head(7, request(b"/"), ends=False))
    assert talk.client.of(RST_STREAM, 7) == [(0, b"\0\0\0\x07")]
    assert talk.app.of(HEADERS, 5)
    talk.send(frame(DATA, END_STREAM, 7, b"late"))
    assert not talk.app.of(DATA, 7)
    assert goes_on(talk)
    talk.from_app(goaway(3, 0))
    assert talk.client.of(GOAWAY)[0][1][:4] == b"\0\0\0\x07"


def test_settings_that_nobody_acknowledges_are_not_read_on() -> None:
    talk = mixed()
    talk.peers.stands = True
    for _ in range(66):
        talk.send(settings({}))
    assert not talk.relay.reads(talk.relay.client)
    talk.from_app(SETTINGS_ACK * 10)
    assert talk.relay.reads(talk.relay.client)
    for _ in range(66):
        talk.from_app(settings({}))
    assert not talk.relay.reads(talk.relay.app)
    talk.send(SETTINGS_ACK * 10)
    assert talk.relay.reads(talk.relay.app)
    assert not talk.relay.done


def test_large_settings_pass() -> None:
    talk = mixed()
    large = frame(SETTINGS, 0, 0, struct.pack(">HI", 0xAAAA, 1) * 2000)
    talk.send(large)
    talk.from_app(large)
    assert talk.app.of(SETTINGS)
    assert talk.client.of(SETTINGS)


def test_a_table_larger_than_we_follow_is_announced_as_large_as_we_do() -> None:
    talk = mixed()
    talk.from_app(settings({Setting.HEADER_TABLE_SIZE: 1 << 30, Setting.INITIAL_WINDOW_SIZE: 5}))
    entries = dict(struct.iter_unpack(">HI", talk.client.of(SETTINGS)[0][1]))
    assert entries == {Setting.HEADER_TABLE_SIZE: DEFAULT_LIMITS.table, Setting.INITIAL_WINDOW_SIZE: 5}


def test_a_connection_whose_table_we_cannot_follow_is_a_wire() -> None:
    talk = Talk(app={Setting.HEADER_TABLE_SIZE: 1 << 30})
    data = talk.head(1, request(b"/", MATCH))
    talk.send(data)
    assert talk.relay.anomaly == "h2-table"
    assert talk.app.data == data


def test_a_priority_of_a_wrong_size_is_not_the_connections_end() -> None:
    talk = mixed()
    talk.send(frame(PRIORITY, 0, 3, b"four") + frame(PRIORITY, 0, 1, b"four"))
    assert talk.app.of(PRIORITY, 3)
    assert goes_on(talk)


def test_watches_that_were_answered_may_be_cancelled_for_ever() -> None:
    talk = Talk(limits=replace(DEFAULT_LIMITS, resets=50))
    for number in range(200):
        stream = 1 + 2 * number
        talk.divert(stream)
        if not number:
            talk.open_handler()
        talk.from_handler(talk.respond(stream, ends=False))
        talk.send(rst_stream(stream, ErrorCode.CANCEL))
    assert not talk.relay.done
    assert len(talk.handlers[0].of(RST_STREAM, skip=24)) == 200


def test_polls_cancelled_before_an_answer_are_judged_by_their_rate() -> None:
    limits = replace(DEFAULT_LIMITS, resets=50, reset_rate=20)
    talk = Talk(limits=limits)
    stream = 1
    for _ in range(20):
        for _ in range(20):
            talk.send(talk.head(stream, request(b"/", MATCH)) + rst_stream(stream, 8))
            stream += 2
        ticks(talk, 1)
    assert not talk.relay.done
    for _ in range(60):
        talk.send(talk.head(stream, request(b"/", MATCH)) + rst_stream(stream, 8))
        stream += 2
    assert talk.relay.anomaly == "h2-rapid-reset"


def test_idle_frames_are_judged_by_their_rate() -> None:
    talk = mixed(idle_frames=100, idle_rate=30)
    for _ in range(20):
        talk.send(frame(PRIORITY, 0, 1, b"12345") * 30)
        ticks(talk, 1)
    assert not talk.relay.done
    talk.send(frame(PRIORITY, 0, 1, b"12345") * 101)
    assert talk.relay.anomaly == "h2-flood"
