"""Who answers when the handler does not."""

from __future__ import annotations

import pytest

from sidestep.engine.http2.diversion import LINGER, LINGERING
from sidestep.engine.leg import Ending
from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    DEFAULT_LIMITS,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    ErrorCode,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
    window_update,
)
from tests.unit.engine.http2.talk import Talk, ticks
from tests.unit.engine.http2_peers import MATCH, Endpoint, Peers, reply, request

GRPC = (b"content-type", b"application/grpc")


def test_a_refused_handler_leaves_the_request_to_the_app_on_a_second_connection() -> None:
    client = Endpoint()
    app = Endpoint(answer=reply(b"app"))
    second = Endpoint(answer=reply(b"second", b"x" * 50_000))
    peers = Peers(client, app, second=lambda: second)
    client.send(request(b"/1"))
    client.send(request(b"/2", MATCH))
    client.send(request(b"/3", MATCH, method=b"POST", body=b"b" * 60_000))
    peers.run()
    assert [dict(client.seen[stream].head)[b"server"] for stream in (1, 3, 5)] == [b"app", b"second", b"second"]
    assert sorted((m.body for m in second.seen.values()), key=len) == [b"", b"b" * 60_000]
    assert len(client.seen[5].body) == 50_000
    assert peers.relay.idle


@pytest.mark.parametrize("how", ["lost", "end of file", "garbage", "REFUSED_STREAM", "GOAWAY", "HTTP_1_1_REQUIRED"])
def test_a_handler_that_goes_before_it_answers_leaves_an_unconsumed_request_to_the_app(how: str) -> None:
    talk = Talk()
    talk.divert(1)
    handler, leg = talk.handlers[0], talk.peers.leg(talk.handlers[0])  # type: ignore[arg-type]
    if how == "lost":
        talk.peers.lose(handler)  # type: ignore[arg-type]
    elif how == "end of file":
        talk.peers.end(leg)
    elif how == "garbage":
        talk.from_handler(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    elif how == "GOAWAY":
        for _ in range(DEFAULT_LIMITS.attempts):
            talk.open_handler()
            talk.from_handler(goaway(0, 0))
    else:
        talk.open_handler()
        for attempt in range(DEFAULT_LIMITS.attempts if how == "REFUSED_STREAM" else 1):
            talk.from_handler(rst_stream(1 + 2 * attempt, ErrorCode[how]))
    talk.peers.run()
    [second] = talk.seconds
    second.out += settings({})
    talk.peers.run()
    assert talk.heads(second, 1, skip=24) == [request(b"/d", MATCH).head]
    assert talk.client.of(RST_STREAM) == []
    second.out += talk.respond(1)
    talk.peers.run()
    assert talk.heads(talk.client, 1) == [[(b":status", b"200")]]
    assert talk.relay.idle
    assert leg.ending is not Ending.NONE or how in ("REFUSED_STREAM", "HTTP_1_1_REQUIRED")


@pytest.mark.parametrize("grpc", [False, True])
def test_a_consumed_request_is_answered_for_the_lost_handler(grpc: bool) -> None:
    talk = Talk()
    talk.divert(1, *((GRPC,) if grpc else ()), ends=False)
    talk.open_handler()
    talk.send(frame(DATA, 0, 1, b"consumed"))
    talk.peers.lose(talk.handlers[0])  # type: ignore[arg-type]
    talk.peers.run()
    assert not talk.seconds
    [fields] = talk.heads(talk.client, 1)
    if grpc:
        assert dict(fields)[b"grpc-status"] == b"14"
        assert dict(fields)[b":status"] == b"200"
        assert dict(fields)[b"grpc-message"].startswith(b"sidestep: intercept shop/u1")
        assert talk.client.of(DATA, 1) == []
    else:
        assert dict(fields)[b":status"] == b"502"
        [(flags, body)] = talk.client.of(DATA, 1)
        assert flags == END_STREAM
        assert body.startswith(b"sidestep: intercept shop/u1")
        assert dict(fields)[b"content-length"] == b"%d" % len(body)
    # the client's body is not wanted any more (RFC 9113 section 8.1); curl 7.88 loses an answer with a reset behind it
    if not grpc:
        assert talk.client.of(RST_STREAM, 1) == []
        talk.send(frame(DATA, 0, 1, b"dropped"))
        ticks(talk, LINGER)
        assert talk.client.of(RST_STREAM, 1) == []
        ticks(talk, 1)
    assert talk.client.of(RST_STREAM, 1) == [(0, bytes(4))]
    assert talk.relay.idle
    ticks(talk, 1)
    assert talk.relay.deadline is None


@pytest.mark.parametrize("is_lost", [False, True])
def test_an_answer_is_read_by_a_client_that_is_still_sending_what_its_handler_takes_no_more(is_lost: bool) -> None:
    talk = Talk()
    talk.divert(1, ends=False)
    talk.open_handler()
    talk.send(frame(DATA, 0, 1, b"consumed"))
    talk.from_handler(talk.respond(1))
    if is_lost:
        talk.peers.lose(talk.handlers[0])  # type: ignore[arg-type]
        talk.peers.run()
    else:
        talk.from_handler(rst_stream(1, ErrorCode.NO_ERROR))
    assert talk.heads(talk.client, 1) == [[(b":status", b"200")]]
    talk.send(frame(DATA, 0, 1, b"dropped"))
    ticks(talk, LINGER)
    assert talk.client.of(RST_STREAM, 1) == []
    ticks(talk, 1)
    assert talk.client.of(RST_STREAM, 1) == [(0, bytes(4))]
    assert talk.relay.idle
    ticks(talk, 1)
    assert talk.relay.deadline is None


def test_a_client_that_ends_its_request_after_an_answer_of_ours_is_not_reset() -> None:
    talk = Talk()
    talk.divert(1, ends=False)
    talk.open_handler()
    talk.send(frame(DATA, 0, 1, b"consumed"))
    talk.peers.lose(talk.handlers[0])  # type: ignore[arg-type]
    talk.peers.run()
    talk.send(frame(DATA, END_STREAM, 1, b"the rest"))
    assert talk.relay.idle
    ticks(talk, LINGER + 2)
    assert talk.client.of(RST_STREAM, 1) == []
    assert talk.relay.deadline is None


def test_no_more_than_a_few_streams_wait_for_the_end_of_what_nobody_takes() -> None:
    talk = Talk()
    streams = range(1, 2 * LINGERING + 7, 2)
    for stream in streams:
        talk.divert(stream, ends=False)
    talk.open_handler()
    for stream in streams:
        talk.send(frame(DATA, 0, stream, b"consumed"))
    talk.peers.lose(talk.handlers[0])  # type: ignore[arg-type]
    talk.peers.run()
    assert all(talk.heads(talk.client, stream)[0][0] == (b":status", b"502") for stream in streams)
    assert len([stream for stream in streams if talk.client.of(RST_STREAM, stream)]) == 3
    ticks(talk, LINGER + 1)
    assert all(talk.client.of(RST_STREAM, stream) for stream in streams)
    assert talk.relay.idle


def test_an_answer_that_the_client_does_not_take_wants_no_ticks() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 0})
    talk.divert(1, ends=False)
    talk.open_handler()
    talk.send(frame(DATA, 0, 1, b"consumed"))
    talk.peers.lose(talk.handlers[0])  # type: ignore[arg-type]
    talk.peers.run()
    assert talk.heads(talk.client, 1)[0][0] == (b":status", b"502")
    ticks(talk, LINGER + 2)
    assert talk.relay.deadline is None
    talk.send(window_update(1, 1000))
    assert talk.client.of(DATA, 1)
    ticks(talk, LINGER + 1)
    assert talk.client.of(RST_STREAM, 1)


def test_when_the_second_connection_fails_too_the_client_may_try_again() -> None:
    talk = Talk()
    talk.handler_is_there = talk.second_is_there = False
    talk.divert(1)
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x07")]
    assert talk.relay.idle
    assert not talk.relay.done


@pytest.mark.parametrize("how", ["REFUSED_STREAM", "GOAWAY", "lost"])
def test_an_app_that_refuses_on_the_second_connection_is_asked_a_few_times(how: str) -> None:
    talk = Talk()
    talk.handler_is_there = False
    talk.divert(1)
    for attempt in range(1 if how == "lost" else DEFAULT_LIMITS.attempts):
        second = talk.seconds[-1]
        if how == "lost":
            talk.peers.lose(second)  # type: ignore[arg-type]
        elif how == "GOAWAY":
            second.out += settings({})
            talk.peers.run()
            second.out += goaway(0, 0)
        else:
            second.out += b"" if attempt else settings({})
            talk.peers.run()
            second.out += rst_stream(1 + 2 * attempt, ErrorCode.REFUSED_STREAM)
        talk.peers.run()
    assert len(talk.seconds) == (DEFAULT_LIMITS.attempts if how == "GOAWAY" else 1)
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x07")]
    assert talk.relay.idle


BAD_HANDLERS = {
    "a push": frame(5, END_HEADERS, 1, b"\0\0\0\x02\x88"),
    "a large frame": b"\x00\x40\x01\x00\x00\x00\x00\x00\x01",
    "an idle stream": frame(HEADERS, END_HEADERS, 9, b"\x88"),
    "an even stream": frame(RST_STREAM, 0, 2, bytes(4)),
    "DATA before HEADERS": frame(DATA, 0, 1, b"x"),
    "an interrupted block": frame(HEADERS, 0, 1, b"\x88") + frame(PING, 0, 0, bytes(8)),
    "a stray CONTINUATION": frame(CONTINUATION, END_HEADERS, 1, b"\x88"),
    "a bad block": frame(HEADERS, END_HEADERS, 1, b"\x80"),
    "a window overflow": window_update(0, 2**31 - 1) + window_update(0, 1),
    "a window of nothing": window_update(0, 0),
    "an endless block": frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, 0, 1) * 300,
    "padding longer than its frame": frame(DATA, PADDED, 1, b"\x09x"),
    "a short GOAWAY": frame(GOAWAY, 0, 0, b"1234"),
}


@pytest.mark.parametrize("name", BAD_HANDLERS)
def test_a_handler_that_breaks_the_protocol_loses_its_connection_only(name: str) -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(BAD_HANDLERS[name])
    assert talk.handlers[0].of(GOAWAY, 0, skip=24)
    assert len(talk.seconds) == 1  # no byte of response had come
    assert not talk.relay.done
    talk.send(talk.head(3, request(b"/")))
    assert talk.app.of(HEADERS, 3)


def test_a_handler_that_leaves_is_replaced_for_the_next_request() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(goaway(1, 0))
    talk.divert(3)
    assert len(talk.handlers) == 2
    talk.open_handler()
    assert talk.heads(talk.handlers[1], 1, skip=24) == [request(b"/d", MATCH).head]
    talk.from_handler(talk.respond(1), which=0)
    assert talk.peers.leg(talk.handlers[0]).ending is Ending.CLOSE  # type: ignore[arg-type]


def test_extended_connect_needs_a_handler_that_takes_it() -> None:
    head = [
        (b":method", b"CONNECT"),
        (b":protocol", b"websocket"),
        (b":scheme", b"https"),
        (b":authority", b"shop"),
        (b":path", b"/chat"),
        MATCH,
    ]
    for allowed in (True, False):
        talk = Talk()
        talk.send(header_frames(1, talk.encoder.encode(head), end_stream=False))
        handler = talk.handlers[0]
        assert not handler.of(HEADERS, 1, skip=24)
        talk.open_handler({Setting.ENABLE_CONNECT_PROTOCOL: 1} if allowed else {})
        if allowed:
            assert talk.heads(handler, 1, skip=24) == [head]
            talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"down"))
            talk.send(frame(DATA, 0, 1, b"up"))
            assert handler.of(DATA, 1, skip=24) == [(0, b"up")]
            assert talk.client.of(DATA, 1) == [(0, b"down")]
        else:
            [fields] = talk.heads(talk.client, 1)
            assert fields[0] == (b":status", b"502")
            assert b"WebSocket" in talk.client.of(DATA, 1)[0][1]
            assert not talk.seconds
