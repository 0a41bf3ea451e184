"""What the peers asks of an HTTP/2 relay: which legs are read, opened, over, idle."""

from __future__ import annotations

import struct

import hpack
import pytest

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import HIGH_WATER, Ending, Leg, Role
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http2 import (
    DATA,
    PREFACE,
    SETTINGS_ACK,
    ErrorCode,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
)
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import MATCH, request, rule


def test_drain_and_idle_follow_the_open_streams() -> None:
    talk = Talk()
    assert talk.relay.idle
    talk.send(talk.head(1, request(b"/")))
    assert not talk.relay.drain
    talk.send(talk.head(3, request(b"/")))
    assert talk.relay.drain
    talk.from_app(talk.respond(1) + rst_stream(3, 1))
    assert not talk.relay.drain
    assert talk.relay.idle


@pytest.mark.parametrize("mixed", [False, True])
def test_an_idle_connection_that_we_end_says_which_requests_were_seen(mixed: bool) -> None:
    talk = Talk()
    talk.send(talk.head(1, request()))
    talk.from_app(talk.respond(1))
    if mixed:
        talk.divert(3)
        talk.open_handler()
        talk.from_handler(talk.respond(1))
    assert talk.relay.idle
    talk.client.data.clear()
    talk.relay.close_idle()
    assert b"".join(talk.relay.client.out) == goaway(3 if mixed else 1, ErrorCode.NO_ERROR)
    assert talk.relay.client.ending is Ending.CLOSE
    assert talk.relay.app.ending is Ending.CLOSE


def test_before_the_app_has_spoken_we_end_without_a_word() -> None:
    talk = Talk(begin=False)
    talk.send(PREFACE + settings({}))
    talk.relay.close_idle()
    assert not talk.relay.client.out


def test_an_upgraded_connection_begins_with_stream_1_at_the_app() -> None:
    port = SteeredPort(80, Route((rule(),)))
    values = struct.pack(">HI", Setting.INITIAL_WINDOW_SIZE, 3)
    relay = Http2Relay(port, tls=False, upgrade_settings=values)
    relay.app.open = True
    relay.receive(relay.app, settings({}) + header_frames(1, b"\x88", end_stream=True), 0.0)
    assert relay.idle
    relay.receive(relay.client, PREFACE + settings({}) + SETTINGS_ACK, 0.0)
    block = hpack.Encoder().encode(request(b"/", MATCH).head)
    relay.receive(relay.client, header_frames(3, block, end_stream=True), 0.0)
    [leg] = relay.opening
    assert leg.role is Role.HANDLER
    relay.opened(leg, 0.0)
    relay.receive(leg, settings({}), 0.0)
    answer = header_frames(1, b"\x88", end_stream=False) + frame(DATA, 0, 1, b"12345")
    relay.receive(leg, answer, 0.0)
    assert frame(DATA, 0, 3, b"123") in b"".join(relay.client.out)


def test_the_app_leg_is_opened_with_the_first_bytes_unless_it_is_open() -> None:
    port = SteeredPort(80)
    relay = Http2Relay(port, tls=False)
    relay.receive(relay.client, PREFACE[:3], 0.0)
    assert relay.opening == [relay.app]
    relay.opening.clear()
    relay.receive(relay.client, PREFACE[3:], 0.0)
    assert not relay.opening
    relay = Http2Relay(port, tls=True)
    relay.app.open = True
    relay.receive(relay.client, PREFACE, 0.0)
    assert not relay.opening


def test_back_pressure_follows_the_queues() -> None:
    talk = Talk()
    talk.divert(1)
    relay = talk.relay
    leg = talk.peers.leg(talk.handlers[0])  # type: ignore[arg-type]
    assert relay.reads(relay.client)
    assert relay.reads(relay.app)
    assert relay.reads(leg)
    relay.app.queued = HIGH_WATER + 1
    assert not relay.reads(relay.client)
    relay.app.queued = 0
    relay.client.queued = HIGH_WATER + 1
    assert not relay.reads(relay.app)
    assert not relay.reads(leg)
    assert relay.reads(relay.client)


@pytest.mark.parametrize("there", [True, False])
def test_legs_that_are_over_do_not_pile_up(there: bool) -> None:
    talk = Talk()
    talk.handler_is_there = there
    for stream in range(1, 41, 2):
        talk.divert(stream)
        if there:
            talk.peers.lose(talk.handlers[-1])  # type: ignore[arg-type]
        talk.peers.run()
    assert len(talk.relay.legs) <= 6
    assert isinstance(talk.relay.legs[0], Leg)
