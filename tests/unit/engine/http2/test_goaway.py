"""GOAWAY, and connections that end."""

from __future__ import annotations

from sidestep.engine.leg import Ending
from sidestep.protocols.http2 import (
    ACK,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    frame,
    goaway,
)
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import request


def test_goaway_of_the_app_is_raised_to_the_diverted_streams() -> None:
    talk = Talk()
    for stream in (1, 3):
        talk.send(talk.head(stream, request(b"/")))
    talk.divert(5)
    talk.send(talk.head(7, request(b"/")))
    talk.open_handler()
    talk.from_app(goaway(2**31 - 1, 0, b"soon"))
    assert talk.client.of(GOAWAY) == [(0, b"\x7f\xff\xff\xff\0\0\0\0soon")]
    talk.from_app(goaway(1, 0, b"now"))
    assert talk.client.of(GOAWAY)[1] == (0, b"\0\0\0\x05\0\0\0\0now")
    assert talk.client.of(RST_STREAM, 3) == [(0, b"\0\0\0\x07")]
    assert talk.client.of(RST_STREAM, 7) == []  # the GOAWAY says it
    talk.divert(9)
    assert len(talk.peers.diverted) == 1
    assert talk.app_heads(9)  # above the last id: nobody's, so the app's
    talk.from_app(talk.respond(1))
    talk.peers.end(talk.relay.app)
    talk.peers.run()
    assert not talk.relay.done
    assert talk.relay.client.ending is Ending.NONE
    talk.from_handler(talk.respond(1))
    assert talk.client.of(HEADERS, 5)
    assert talk.relay.done
    assert talk.relay.client.ending is Ending.CLOSE


def test_an_app_that_ends_without_goaway_lets_diverted_streams_finish() -> None:
    for lost in (False, True):
        talk = Talk()
        talk.send(talk.head(1, request(b"/")))
        talk.divert(3)
        talk.open_handler()
        if lost:
            talk.peers.lose(talk.app)  # type: ignore[arg-type]
        else:
            talk.peers.end(talk.relay.app)
        talk.peers.run()
        assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x02")]
        assert talk.client.of(GOAWAY) == [(0, b"\0\0\0\x03\0\0\0\0")]
        talk.send(frame(PING, 0, 0, b"12345678"))
        assert talk.client.of(PING) == [(ACK, b"12345678")]
        talk.from_handler(talk.respond(1))
        assert talk.client.of(HEADERS, 3)
        assert talk.relay.done


def test_an_app_that_ends_in_mid_frame_cannot_be_completed() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.from_app(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"x" * 100)[:50])
    talk.peers.lose(talk.app)  # type: ignore[arg-type]
    assert talk.relay.done
    assert talk.peers.aborted


def test_ends_pass_while_nothing_is_diverted() -> None:
    talk = Talk()
    talk.peers.end(talk.relay.client)
    assert talk.relay.app.ending is Ending.FINISH
    assert not talk.relay.done
    talk.from_app(frame(PING, 0, 0, b"8 bytes."))
    assert talk.client.of(PING)
    talk.peers.end(talk.relay.app)
    assert talk.relay.client.ending is Ending.FINISH
    assert talk.relay.done


def test_an_incomplete_head_reaches_the_app_before_the_end() -> None:
    talk = Talk()
    data = talk.head(1, request(b"/"))[:-2]
    talk.send(data)
    assert talk.app.data == b""
    talk.peers.end(talk.relay.client)
    assert talk.app.data == data


def test_a_client_that_is_lost_takes_everything_with_it() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.peers.lose(talk.client)  # type: ignore[arg-type]
    assert talk.relay.done
    assert talk.relay.app.ending is Ending.ABORT
    assert talk.handlers[0].of(RST_STREAM, 1, skip=24)
    assert talk.peers.leg(talk.handlers[0]).ending is Ending.CLOSE  # type: ignore[arg-type]


def test_a_connection_error_after_a_diversion_is_told_with_goaway() -> None:
    talk = Talk()
    talk.divert(1)
    talk.send(frame(HEADERS, END_HEADERS, 3, b"\x80"))
    assert talk.client.of(GOAWAY) == [(0, b"\0\0\0\x01\0\0\0\x09h2-hpack")]
    assert talk.relay.done
    assert talk.relay.wired is None
    assert talk.relay.client.ending is Ending.CLOSE
    assert talk.relay.app.ending is Ending.CLOSE
