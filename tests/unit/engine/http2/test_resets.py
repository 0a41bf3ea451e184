"""Resets of streams, by either side, and what is malformed on one stream."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sidestep.protocols.http2 import (
    DATA,
    DEFAULT_LIMITS,
    END_STREAM,
    GOAWAY,
    RST_STREAM,
    ErrorCode,
    Setting,
    frame,
    header_frames,
    rst_stream,
    window_update,
)
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import MATCH, request


def test_a_handler_lost_in_mid_response_resets_the_stream() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"part"))
    talk.peers.lose(talk.handlers[0])  # type: ignore[arg-type]
    talk.peers.run()
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x02")]
    assert talk.relay.idle


@pytest.mark.parametrize("bad", [(b":path", b"/"), (b"Upper", b"1"), (b"connection", b"close")])
def test_bad_trailers_reset_a_diverted_stream(bad: tuple[bytes, bytes]) -> None:
    talk = Talk()
    talk.divert(1, ends=False)
    talk.send(header_frames(1, talk.encoder.encode([bad]), end_stream=True))
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x01")]


BAD_ANSWERS = {
    "no status": ([(b"x", b"y")], True),
    "101": ([(b":status", b"101")], False),
    "informational and the end": ([(b":status", b"103")], True),
    "upper-case name": ([(b":status", b"200"), (b"Upper", b"1")], True),
    "status that is no number": ([(b":status", b"2xx")], True),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_malformed_response_resets_its_stream_only(name: str) -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.open_handler()
    fields, ends = BAD_ANSWERS[name]
    talk.from_handler(header_frames(1, talk.responses.encode(fields), end_stream=ends))
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x02")]
    assert talk.handlers[0].of(RST_STREAM, 1, skip=24) == [(0, b"\0\0\0\x01")]
    talk.from_handler(header_frames(3, talk.responses.encode([(b":status", b"204")]), end_stream=True))
    assert talk.heads(talk.client, 3) == [[(b":status", b"204")]]


def test_a_reset_of_the_handler_is_the_clients() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(rst_stream(1, ErrorCode.CANCEL))
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x08")]


def test_a_reset_after_a_complete_response_comes_after_it() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 4})
    talk.divert(1, ends=False)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, b"complete") + rst_stream(1, 8))
    assert talk.client.of(DATA, 1) == [(0, b"comp")]
    talk.send(window_update(1, 100))
    assert talk.client.of(DATA, 1) == [(0, b"comp"), (END_STREAM, b"lete")]
    assert talk.client.frames()[-1] == (RST_STREAM, 0, 1, bytes((0, 0, 0, 8)))
    assert talk.relay.idle


def test_a_reset_of_the_client_is_the_handlers() -> None:
    talk = Talk()
    talk.divert(1, ends=False)
    talk.open_handler()
    talk.send(rst_stream(1, ErrorCode.CANCEL))
    assert talk.handlers[0].of(RST_STREAM, 1, skip=24) == [(0, b"\0\0\0\x08")]
    assert talk.app.data == b""


def test_rapid_reset_ends_the_connection() -> None:
    talk = Talk(limits=replace(DEFAULT_LIMITS, resets=20))
    for stream in range(1, 43, 2):
        assert not talk.relay.done
        talk.send(talk.head(stream, request(b"/", MATCH)) + rst_stream(stream, 8))
    assert talk.relay.done
    assert talk.relay.anomaly == "h2-rapid-reset"
    assert talk.client.of(GOAWAY)[0][1][4:8] == b"\0\0\0\x0b"
