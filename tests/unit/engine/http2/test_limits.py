"""Few objects for many small pieces, windows given back as bytes are taken, floods."""

from __future__ import annotations

import struct

import pytest
from msgspec.structs import replace

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import HIGH_WATER
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http2 import (
    DATA,
    DEFAULT_LIMITS,
    GOAWAY,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Setting,
    frame,
    rst_stream,
    settings,
    window_update,
)
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import request


def test_a_body_in_tiny_pieces_is_kept_in_few_objects() -> None:
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: 1 << 20})
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    relay = talk.relay
    body = bytes(range(250)) * 400
    relay.receive(relay.client, b"".join(frame(DATA, 0, 1, body[at : at + 2]) for at in range(0, len(body), 2)), 0.0)
    exchange = relay._connection.state.streams.exchanges[1]
    assert b"".join(exchange.body) == body
    assert len(exchange.body) < 100
    talk.from_handler(window_update(1, len(body)))
    talk.from_handler(window_update(0, len(body)))
    assert b"".join(payload for _, payload in talk.handlers[-1].of(DATA, 1, skip=len(PREFACE))) == body


def test_a_header_block_in_tiny_pieces_is_kept_in_few_objects() -> None:
    talk = Talk()
    head = talk.head(1, request(b"/" + b"a" * 30_000))
    pieces = [head[at : at + 2] for at in range(0, len(head), 2)]
    for piece in pieces[:-1]:
        talk.relay.receive(talk.relay.client, piece, 0.0)
    assert len(talk.relay._connection.from_client._held) < 50
    talk.send(pieces[-1])
    assert bytes(talk.app.data) == head


def test_the_handler_is_given_back_only_what_the_client_has_taken() -> None:
    limits = replace(DEFAULT_LIMITS, stream_window=1000, connection_window=3000)
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 600}, limits=limits)
    talk.divert(1)
    talk.open_handler()
    handler = talk.handlers[0]
    announced = dict(struct.iter_unpack(">HI", handler.of(SETTINGS, 0, skip=24)[0][1]))
    assert announced[Setting.INITIAL_WINDOW_SIZE] == 1000
    assert announced[Setting.ENABLE_PUSH] == 0
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"x" * 1000))
    assert handler.of(WINDOW_UPDATE, 1, skip=24) == [(0, struct.pack(">I", 600))]
    talk.send(window_update(1, 600))
    talk.from_handler(frame(DATA, 0, 1, b"x" * 600))
    talk.from_handler(frame(DATA, 0, 1, b"x" * 1000))  # more than it may: the link ends, the stream with it
    assert handler.of(GOAWAY, 0, skip=24)[0][1][4:8] == b"\0\0\0\x03"
    assert talk.client.of(RST_STREAM, 1)


def test_a_congested_handler_leg_gets_no_more_than_the_high_water_mark() -> None:
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: 1 << 24})
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 1 << 30})
    talk.from_handler(window_update(0, 1 << 29))
    leg = talk.peers.leg(talk.handlers[0])  # type: ignore[arg-type]
    relay = talk.relay
    for _ in range(40):
        relay.receive(relay.client, frame(DATA, 0, 1, b"x" * 16_384), 0.0)
    assert HIGH_WATER < leg.queued < HIGH_WATER + 20_000
    assert relay.reads(relay.client)  # other streams go on
    leg.out.clear()
    leg.queued = 0
    relay.drained(leg, 0.0)
    assert leg.queued > HIGH_WATER


def test_too_many_diverted_streams_are_refused() -> None:
    talk = Talk(limits=replace(DEFAULT_LIMITS, diverted_streams=2))
    for stream in (1, 3, 5):
        talk.divert(stream)
    assert talk.client.of(RST_STREAM, 5) == [(0, b"\0\0\0\x07")]
    assert not talk.client.of(RST_STREAM, 1)


@pytest.mark.parametrize(
    "flood",
    [
        frame(DATA, 0, 1),
        frame(PING, 0, 0, b"8 bytes."),
        frame(PRIORITY, 0, 1, b"12345"),
        frame(DATA, PADDED, 1, b"\x02\0\0"),
        frame(0x42, 0, 0, b"unknown"),
    ],
    ids=["empty DATA", "PING", "PRIORITY", "padding", "unknown"],
)
def test_floods_of_idle_frames_end_a_mixed_connection(flood: bytes) -> None:
    talk = Talk(limits=replace(DEFAULT_LIMITS, idle_frames=100))
    talk.divert(1, ends=False)
    talk.send(flood * 100)
    assert not talk.relay.done
    talk.send(flood)
    assert talk.relay.done
    assert talk.relay.anomaly == "h2-flood"


def test_floods_of_the_handler_end_its_connection_only() -> None:
    for flood in (settings({}), frame(DATA, 0, 1), frame(0x42, 0, 0, b"unknown")):
        talk = Talk(limits=replace(DEFAULT_LIMITS, idle_frames=100))
        talk.divert(1)
        talk.open_handler()
        talk.from_handler(talk.respond(1, ends=False) + flood * 101)
        assert talk.client.of(RST_STREAM, 1)
        assert not talk.relay.done


def test_answers_to_pings_of_the_handler_are_bounded_by_their_queue() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    leg = talk.peers.leg(talk.handlers[0])  # type: ignore[arg-type]
    pings = frame(PING, 0, 0, b"8 bytes.") * 1000
    rounds = 0
    while talk.relay.reads(leg):
        talk.relay.receive(leg, pings, 0.0)
        rounds += 1
    assert rounds < 20
    assert leg.queued < HIGH_WATER + 2 * len(pings)


def test_late_frames_of_forgotten_streams_stay_away_from_the_app() -> None:
    talk = Talk(limits=replace(DEFAULT_LIMITS, remembered=2))
    for stream in (1, 3, 5, 7):
        talk.divert(stream)
        talk.send(rst_stream(stream, 8))
    talk.send(talk.head(9, request(b"/")))
    talk.app.data.clear()
    for stream in (1, 3, 5, 7):
        talk.send(window_update(stream, 1) + frame(DATA, 0, stream, b"late"))
    assert talk.app.data == b""
    talk.send(window_update(9, 1))
    assert talk.app.of(WINDOW_UPDATE, 9)


def test_a_tick_is_an_input_at_a_time_of_its_own():
    """What a tick brings about, such as another deadline, is reckoned from its time, not from that of older bytes."""
    relay = Http2Relay(SteeredPort(8080, Route()), tls=False)
    relay.expired(7.0)
    assert relay.now == 7.0
