"""PINGs, and an app that ends its connection because it sees no requests: handlers answer them."""

from __future__ import annotations

import pytest

from sidestep.engine.leg import Ending
from sidestep.protocols.http2 import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    Setting,
    frame,
    goaway,
    settings,
)
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import request


def test_pings_are_answered_here_while_no_stream_is_the_apps() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    for number in range(5):
        talk.send(frame(PING, 0, 0, b"ping %03d" % number))
    assert talk.client.of(PING) == [(ACK, b"ping %03d" % number) for number in range(5)]
    talk.from_handler(talk.respond(1))
    talk.send(frame(PING, 0, 0, b"the last"))  # what a client measures with after the answer
    assert (ACK, b"the last") in talk.client.of(PING)
    assert not talk.app.data


def test_pings_reach_an_app_that_sees_calls_unless_they_follow_bytes_of_ours() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.open_handler()
    talk.app.data.clear()
    talk.send(frame(PING, 0, 0, b"12345678"))
    assert talk.app.of(PING) == [(0, b"12345678")]
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"much data"))
    talk.send(frame(PING, 0, 0, b"measures"))
    assert (ACK, b"measures") in talk.client.of(PING)
    talk.send(frame(PING, 0, 0, b"again..."))
    assert talk.app.of(PING) == [(0, b"12345678"), (0, b"again...")]
    talk.from_app(frame(PING, 0, 0, b"from app"))
    assert (0, b"from app") in talk.client.of(PING)
    talk.send(frame(PING, ACK, 0, b"from app"))
    assert (ACK, b"from app") in talk.app.of(PING)


GOODBYES = {
    "no word": b"",
    "GOAWAY in two steps": goaway(2**31 - 1, 0) + frame(PING, 0, 0, bytes(8)),
    "GOAWAY with a text": goaway(0, 0, b"max_age"),
    "GOAWAY of a gRPC server": goaway(2**31 - 1, ErrorCode.INTERNAL_ERROR, b"connection idle"),
    "too many PINGs": goaway(0, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings"),
}


def leave(talk: Talk, how: str, data: bytes = b"") -> None:
    """The app says `data` and ends its connection in one of three ways."""
    app = talk.relay.app
    if data:
        talk.from_app(data)
    if how == "lost":
        talk.peers.lose(talk.app)  # type: ignore[arg-type]
    elif how == "closed":
        talk.peers.end(app)
    talk.peers.run()


@pytest.mark.parametrize("data", GOODBYES.values(), ids=GOODBYES)
@pytest.mark.parametrize("ends", [False, True], ids=["in mid request", "between requests"])
@pytest.mark.parametrize("how", ["closed", "lost", "left open"])
def test_an_app_that_leaves_because_handlers_answer_is_replaced_and_the_client_is_not_told(
    data: bytes, ends: bool, how: str
) -> None:
    if how == "left open" and not data:
        return
    talk = Talk()
    talk.divert(1, ends=ends)
    talk.open_handler()
    if ends:
        talk.from_handler(talk.respond(1))
    leave(talk, how, data)
    assert talk.relay.client.ending is Ending.NONE
    assert not talk.client.of(GOAWAY)
    talk.send(frame(PING, 0, 0, b"anybody?") + settings({}))
    assert (ACK, b"anybody?") in talk.client.of(PING)
    assert talk.client.of(SETTINGS) == [(ACK, b"")]
    if not ends:
        talk.send(frame(DATA, END_STREAM, 1, b"up"))
        talk.from_handler(talk.respond(1))
    assert (talk.relay.idle, talk.relay.is_orphaned) == (True, True)
    talk.divert(3)
    talk.from_handler(talk.respond(3))
    assert talk.client.of(HEADERS, 3)
    talk.send(talk.head(5, request(b"/"), ends=False) + frame(DATA, END_STREAM, 5, b"for the app"))
    second = talk.seconds[0]
    second.out += settings({})
    talk.peers.run()
    assert second.of(DATA, 1, skip=24)[0][1] == b"for the app"
    second.out += talk.respond(1)
    talk.peers.run()
    assert talk.client.of(HEADERS, 5)
    assert not talk.client.of(RST_STREAM)
    assert talk.relay.idle


def test_settings_that_the_app_owed_are_acknowledged_when_it_leaves() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    before = len(talk.client.of(SETTINGS))
    talk.send(settings({Setting.INITIAL_WINDOW_SIZE: 1}))
    assert len(talk.client.of(SETTINGS)) == before
    leave(talk, "closed")
    assert talk.client.of(SETTINGS)[before:] == [(ACK, b"")]


def test_an_app_that_is_gone_when_it_is_asked_again_ends_the_connection_in_an_orderly_way() -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    leave(talk, "closed")
    talk.second_is_there = False
    talk.send(talk.head(5, request(b"/")))
    assert talk.client.of(RST_STREAM, 5) == [(0, bytes((0, 0, 0, ErrorCode.REFUSED_STREAM)))]
    assert talk.client.of(GOAWAY) == [(0, b"\0\0\0\x05\0\0\0\0")]
    assert not talk.relay.done
    talk.from_handler(talk.respond(3))
    assert talk.client.of(HEADERS, 3)
    assert talk.relay.done


@pytest.mark.parametrize("how", ["closed", "lost"])
def test_an_app_that_leaves_after_it_was_asked_last_ends_the_connection_as_without_us(how: str) -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    talk.send(talk.head(3, request(b"/")))
    talk.from_app(talk.respond(3))
    leave(talk, how)
    assert talk.client.of(GOAWAY) == [(0, b"\0\0\0\x03\0\0\0\0")]
    assert talk.relay.done


def test_an_app_that_blames_the_client_is_heard() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    talk.from_app(goaway(0, ErrorCode.PROTOCOL_ERROR))
    assert talk.client.of(GOAWAY)[0][1][4:8] == bytes((0, 0, 0, ErrorCode.PROTOCOL_ERROR))
