"""Exchanges that end early: by whomever and however, the end of what had come is searched, and told once.

A row is what happens after a part of a request, or of an answer, has come that is too short to be searched before its
end. After it the shell ends the connection, as it always does at last.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from sidestep.engine.inspection.limits import LIMITS
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.route import Route
from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    PADDED,
    PREFACE,
    SETTINGS_ACK,
    ErrorCode,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
)
from tests.harness.table import each_row
from tests.unit.engine.http2.talk import ticks
from tests.unit.engine.http2_peers import MATCH, request
from tests.unit.engine.inspection.eve_lines import assert_told
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    MODES,
    NO_LEAK,
    NO_SECRET,
    SECRET,
    Inspected,
    answer,
    get,
    inspection,
    post,
)
from tests.unit.engine.inspection.test_http2 import GRPC, message
from tests.unit.engine.inspection.test_http2 import Inspected as InspectedTalk
from tests.unit.engine.inspection.test_http2_websocket import WebSocketTalk
from tests.unit.engine.inspection.test_websocket import ASK, DEFLATE, agree, packed
from tests.unit.engine.inspection.test_websocket import frame as ws_frame
from tests.unit.engine.shell import everything

HALF = SECRET + b"!"
OUTCOMES = {"Detect": Outcome.ALERT, "Enforce+Ignore": Outcome.BLOCK, "Enforce+Fail": Outcome.BLOCK}
TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"


def nothing(_: object) -> None:
    """The proxy ends the connection: it goes, drains, or the connection was idle for too long."""


def expire(shell) -> None:
    if shell.relay.deadline is not None:
        shell.expire()


H1_ENDS: dict[str, Callable] = {
    "the client has finished": lambda shell: shell.eof(shell.relay.client),
    "the client resets": lambda shell: shell.lose(shell.relay.client),
    "the app has finished": lambda shell: shell.eof(shell.relay.app),
    "the app resets": lambda shell: shell.lose(shell.relay.app),
    "the proxy goes": nothing,
    "the time for the request is over": expire,
}
H1_REQUEST_ENDS = H1_ENDS | {
    "a chunk is malformed": lambda shell: shell.client(b"\r\nzzz\r\n"),
    "the app answers 408": lambda shell: shell.app(TIMEOUT),
    "the app answers 413, and the client goes on": lambda shell: (shell.app(TOO_LARGE), shell.client(b"more")),
    "the app answers until it closes": lambda shell: shell.app(UNTIL_CLOSE),
    "the app says what cannot be read": lambda shell: shell.app(b"HTTP/1.1 nonsense\r\n\r\n"),
}
BODIES = {
    "length": (b"Content-Length: 1000", HALF),
    "chunked": (b"Transfer-Encoding: chunked", b"20\r\n" + HALF),
    "gzip": (b"Content-Length: 1000\r\nContent-Encoding: gzip", gzip.compress(HALF)[:-8]),
}


def over(gate) -> None:
    """The connection ends, as the shell tells it; nothing is left of it."""
    gate.end()
    assert not gate.unfinished
    gate.end()


def assert_one(seen, rule, mode: str) -> None:
    """One record says what was found, and what the policy did."""
    assert [record.rule for record in seen.records] == [rule.name]
    assert seen.records[0].action is OUTCOMES[mode]
    assert_told(seen, inspection(rule, **MODES[mode]))


@each_row("mode", MODES)
@each_row("body", BODIES)
@each_row("end", H1_REQUEST_ENDS)
def test_a_request_over_http1(mode, body, end):
    shell = Inspected(NO_SECRET, **MODES[mode])
    framing, half = BODIES[body]
    if "chunk" in end:
        framing, half = BODIES["chunked"][0], b"%x\r\n" % len(HALF) + HALF
    head = get(b"/p", framing).replace(b"GET", b"POST", 1)
    shell.client(head + half)
    assert not shell.seen.records
    is_held = mode != "Detect"
    assert shell.to_app == (b"" if is_held else head + half)
    if not is_held or "app" not in end:
        H1_REQUEST_ENDS[end](shell)
    over(shell.gate)
    assert_one(shell.seen, NO_SECRET, mode)
    if is_held:
        assert shell.to_app == b""
    elif "the client goes on" in end:
        assert shell.to_app == head + half + b"more"
        assert ("request-unfinished", False) in shell.seen.reasons


H1_ANSWER_ENDS = H1_ENDS | {"a chunk is malformed": lambda shell: shell.app(b"\r\nzzz\r\n")}
H1_HANDLER_ENDS = {
    "the client has finished": lambda shell: shell.eof(shell.relay.client),
    "the client resets": lambda shell: shell.lose(shell.relay.client),
    "the handler has finished": lambda shell: shell.eof(shell.handlers[0]),
    "the handler resets": lambda shell: shell.lose(shell.handlers[0]),
    "the proxy goes": nothing,
    "a chunk is malformed": lambda shell: shell.handler(b"\r\nzzz\r\n"),
}


@each_row("mode", MODES)
@each_row("body", BODIES)
@each_row("end", H1_ANSWER_ENDS)
def test_an_answer_over_http1(mode, body, end):
    shell = Inspected(NO_LEAK, **MODES[mode])
    shell.client(get())
    framing, half = BODIES[body]
    if "chunk" in end:
        framing, half = BODIES["chunked"][0], b"%x\r\n" % len(HALF) + HALF
    said = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + half
    shell.app(said)
    assert not shell.seen.records
    H1_ANSWER_ENDS[end](shell)
    over(shell.gate)
    assert_one(shell.seen, NO_LEAK, mode)
    if mode == "Detect" and "resets" not in end:
        assert shell.to_client.startswith(said)
    elif mode != "Detect" and "time" not in end:
        assert HALF not in shell.to_client


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", H1_HANDLER_ENDS)
def test_an_answer_of_a_handler_over_http1(mode, end):
    shell = Inspected(NO_LEAK, route=Route((everything(),)), **MODES[mode])
    shell.client(get())
    shell.handler(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(HALF) + HALF)
    assert not shell.seen.records
    H1_HANDLER_ENDS[end](shell)
    over(shell.gate)
    assert_one(shell.seen, NO_LEAK, mode)


@pytest.mark.parametrize("end", ["the handler has finished", "the handler resets", "it is not there", "its answer"])
def test_a_request_to_a_handler_over_http1(end):
    shell = Inspected(NO_SECRET, route=Route((everything(),)), auto=end != "it is not there", **DETECT)
    shell.client(get(b"/p", b"Content-Length: 100").replace(b"GET", b"POST", 1) + HALF)
    if end == "it is not there":
        shell.refuse(shell.handlers[0])
    elif end == "its answer":
        shell.handler(TIMEOUT)
    else:
        H1_HANDLER_ENDS[end](shell)
    over(shell.gate)
    assert_one(shell.seen, NO_SECRET, "Detect")


def compressed_and_cut(masked: bool) -> bytes:
    return packed(HALF + b"more", masked=masked)[:-3]


WEBSOCKET_MESSAGES = {
    "a frame that is cut": (b"", lambda masked: ws_frame(HALF + b"more", masked=masked)[:-2]),
    "a message that is cut": (b"", lambda masked: ws_frame(HALF, final=False, masked=masked)),
    "one that is malformed then": (
        b"",
        lambda masked: ws_frame(HALF, final=False, masked=masked) + ws_frame(b"", masked=masked),
    ),
    "a compressed one": (DEFLATE, compressed_and_cut),
}


@each_row("mode", MODES)
@each_row("row, side", [(row, side) for row in WEBSOCKET_MESSAGES for side in ("client", "app")])
@each_row("end", [each for each in H1_ENDS if "time" not in each])
def test_a_message_of_a_websocket_over_http1(mode, row, side, end):
    extensions, made = WEBSOCKET_MESSAGES[row]
    said = made(side == "client")
    rule = NO_SECRET if side == "client" else NO_LEAK
    shell = Inspected(rule, **MODES[mode])
    shell.client(ASK)
    shell.app(agree(extensions))
    (shell.client if side == "client" else shell.app)(said)
    if not shell.relay.done:
        H1_ENDS[end](shell)
    over(shell.gate)
    assert_one(shell.seen, rule, mode)
    if mode != "Detect":
        assert HALF not in shell.to_client
        assert said[-20:] not in shell.to_app


# --- HTTP/2 -----------------------------------------------------------------------------------------------------------


def lose_app(talk) -> None:
    talk.peers.shell.lose(talk.relay.app)


H2_ENDS: dict[str, Callable] = {
    "the client resets the stream": lambda talk: talk.send(rst_stream(1, ErrorCode.CANCEL)),
    "the client has finished": lambda talk: talk.peers.shell.eof(talk.relay.client),
    "the client's connection is reset": lambda talk: talk.peers.shell.lose(talk.relay.client),
    "GOAWAY of the client": lambda talk: talk.send(goaway(0, ErrorCode.NO_ERROR)),
    "the client breaks the protocol": lambda talk: talk.send(frame(DATA, 0, 0, b"x")),
    "the app has finished": lambda talk: talk.peers.shell.eof(talk.relay.app),
    "the app's connection is reset": lose_app,
    "the proxy goes": nothing,
}
H2_APP_ENDS: dict[str, Callable] = {
    "the app resets the stream": lambda talk: talk.from_app(rst_stream(1, ErrorCode.CANCEL)),
    "the app refuses the stream": lambda talk: talk.from_app(rst_stream(1, ErrorCode.REFUSED_STREAM)),
    "GOAWAY of the app": lambda talk: talk.from_app(goaway(0, ErrorCode.NO_ERROR)),
}
H2_REQUEST_ENDS = (
    H2_ENDS
    | H2_APP_ENDS
    | {
        "the app answers 408": lambda talk: talk.from_app(
            header_frames(1, talk.responses.encode([(b":status", b"408")]), end_stream=True)
            + rst_stream(1, ErrorCode.NO_ERROR)
        ),
        "padding is longer than its frame": lambda talk: talk.send(frame(DATA, PADDED, 1, b"\x09x")),
        "the time for the request is over": lambda talk: ticks(talk, 400),
    }
)
CALLS = {
    "body": ((), HALF),
    "gzip": (((b"content-encoding", b"gzip"),), gzip.compress(HALF)[:-8]),
    "gRPC": ((GRPC,), message(b"whole") + message(HALF + b"more")[:-2]),
}


@each_row("mode", MODES)
@each_row("kind", CALLS)
@each_row("end", H2_REQUEST_ENDS)
def test_a_request_over_http2(mode, kind, end):
    talk = InspectedTalk(NO_SECRET, **MODES[mode])
    more, half = CALLS[kind]
    talk.send(talk.head(1, request(b"/p", *more), ends=False))
    talk.send(frame(DATA, 0, 1, half))
    assert not talk.seen.records
    is_read = mode == "Detect"
    assert talk.app.of(DATA, 1) == ([(0, half)] if is_read else [])
    if is_read or "app" not in end:
        H2_REQUEST_ENDS[end](talk)
    if "stream" in end and is_read:
        assert len(talk.seen.records) == 1, "told with the end of the stream, not that of the connection"
    over(talk.relay.gate)
    assert_one(talk.seen, NO_SECRET, mode)
    if not is_read:
        assert not any(HALF[:4] in payload for second in talk.seconds for _, payload in second.of(DATA, 1, skip=24))


@each_row("kind", CALLS)
@each_row("end", H2_ENDS | H2_APP_ENDS | {"a block cannot be read": None})
def test_an_answer_over_http2(kind, end):
    talk = InspectedTalk(NO_LEAK, **DETECT)
    more, half = CALLS[kind]
    talk.ask(1, b"/p")
    talk.from_app(talk.respond(1, *more, ends=False) + frame(DATA, 0, 1, half))
    assert not talk.seen.records
    if end == "a block cannot be read":
        talk.ask(3, b"/q")
        talk.from_app(header_frames(3, b"\xff\xff\xff\xff\xff", end_stream=True))
        assert len(talk.seen.records) == 1
    else:
        (H2_ENDS | H2_APP_ENDS)[end](talk)
    over(talk.relay.gate)
    assert_one(talk.seen, NO_LEAK, "Detect")


@each_row("mode", ["Enforce+Ignore", "Enforce+Fail"])
@each_row("kind", CALLS)
@each_row("end", [*H2_ENDS, "the second resets the stream", "the second is lost"])
def test_an_answer_that_is_held_over_http2(mode, kind, end):
    talk = InspectedTalk(NO_LEAK, **MODES[mode])
    more, half = CALLS[kind]
    talk.ask(1, b"/p")
    talk.open_second()
    talk.responses = type(talk.responses)()
    talk.second_says(talk.respond(1, *more, ends=False) + frame(DATA, 0, 1, half))
    assert not talk.seen.records
    if end == "the second resets the stream":
        talk.second_says(rst_stream(1, ErrorCode.CANCEL))
    elif end == "the second is lost":
        talk.peers.shell.lose(talk.peers.shell.apps[-1])
    else:
        H2_ENDS[end](talk)
    over(talk.relay.gate)
    assert_one(talk.seen, NO_LEAK, mode)


@pytest.mark.parametrize("half", ["request", "answer"])
@pytest.mark.parametrize(
    "end", ["the client resets the stream", "the handler resets the stream", "the handler is lost", "the proxy goes"]
)
def test_an_exchange_with_a_handler_over_http2(half, end):
    rule = NO_SECRET if half == "request" else NO_LEAK
    talk = InspectedTalk(rule, **DETECT)
    talk.send(talk.head(1, request(b"/d", MATCH), ends=half == "answer"))
    if half == "request":
        talk.send(frame(DATA, 0, 1, HALF))
    talk.open_handler()
    if half == "answer":
        talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, HALF))
    assert not talk.seen.records
    if end == "the handler resets the stream":
        talk.from_handler(rst_stream(1, ErrorCode.CANCEL))
    elif end == "the handler is lost":
        talk.peers.shell.lose(talk.peers.shell.handlers[0])
    else:
        H2_ENDS[end](talk)
    over(talk.relay.gate)
    assert_one(talk.seen, rule, "Detect")


@each_row("mode", MODES)
@each_row("row", WEBSOCKET_MESSAGES)
@each_row("end", H2_ENDS)
@each_row("is_early", [False, True], ids=["agreed", "before the answer"])
def test_a_message_of_a_websocket_over_http2(mode, row, end, is_early):
    extensions, made = WEBSOCKET_MESSAGES[row]
    socket = WebSocketTalk(NO_SECRET, offer=extensions, **MODES[mode])
    talk = socket.talk
    if not is_early:
        socket.accept(extensions)
    said = made(True)
    socket.client(said)
    if not talk.relay.done:
        H2_ENDS[end](talk)
    over(talk.relay.gate)
    assert HALF not in socket.to_app
    if extensions and is_early and mode != "Detect":
        assert ("request-malformed", mode == "Enforce+Fail") in talk.seen.reasons  # compressed, for all that is known
    else:
        assert_one(talk.seen, NO_SECRET, mode)


@pytest.mark.parametrize("mode", ["Enforce+Ignore", "Enforce+Fail"])
@pytest.mark.parametrize("end", [b"", rst_stream(1, ErrorCode.CANCEL), goaway(0, ErrorCode.NO_ERROR)])
def test_a_request_that_waits_for_the_app_is_searched_once_that_speaks(mode, end):
    talk = InspectedTalk(NO_SECRET, begin=False, **MODES[mode])
    talk.send(PREFACE + settings({}) + talk.head(1, request(b"/p"), ends=False) + frame(DATA, 0, 1, HALF) + end)
    if not end:
        talk.peers.shell.eof(talk.relay.client)
    assert not talk.seen.records
    talk.from_app(settings({}) + SETTINGS_ACK)
    over(talk.relay.gate)
    assert_one(talk.seen, NO_SECRET, mode)
    assert HALF not in bytes(talk.app.data)


@pytest.mark.parametrize("mode", ["Enforce+Ignore", "Enforce+Fail"])
@pytest.mark.parametrize("end", ["the client's connection is reset", "the proxy goes"])
def test_a_request_that_waits_for_the_app_is_forgotten_with_its_connection(mode, end):
    """Nobody has got any of it, and nobody will."""
    talk = InspectedTalk(NO_SECRET, begin=False, **MODES[mode])
    talk.send(PREFACE + settings({}) + talk.head(1, request(b"/p"), ends=False) + frame(DATA, 0, 1, HALF))
    H2_ENDS[end](talk)
    over(talk.relay.gate)
    assert not talk.seen.records
    assert not talk.app.of(HEADERS, skip=len(PREFACE))


def test_both_halves_of_an_exchange_are_searched():
    talk = InspectedTalk(NO_SECRET, NO_LEAK, **DETECT)
    talk.send(talk.head(1, request(b"/p"), ends=False) + frame(DATA, 0, 1, HALF))
    talk.from_app(talk.respond(1, ends=False) + frame(DATA, 0, 1, HALF))
    talk.send(rst_stream(1, ErrorCode.CANCEL))
    assert [record.rule for record in talk.seen.records] == ["no-secret", "no-leak"]
    over(talk.relay.gate)
    assert len(talk.seen.records) == 2


def test_what_has_ended_is_not_searched_again():
    talk = InspectedTalk(NO_SECRET, NO_LEAK, **DETECT)
    for stream in (1, 3, 5):
        talk.send(talk.head(stream, request(b"/p"), ends=False) + frame(DATA, END_STREAM, stream, b"harmless"))
        talk.from_app(talk.respond(stream, ends=False) + frame(DATA, END_STREAM, stream, b"harmless"))
        assert not talk.relay.gate.unfinished
        talk.send(rst_stream(stream, ErrorCode.NO_ERROR))
    over(talk.relay.gate)
    assert not talk.seen.records


@pytest.mark.parametrize("end", ["the client's connection is reset", "the proxy goes"])
def test_what_is_done_at_the_end_of_a_connection_is_bounded(end):
    talk = InspectedTalk(NO_SECRET, limits=replace(LIMITS, unfinished=3), **DETECT)
    for stream in (1, 3, 5, 7, 9):
        talk.send(talk.head(stream, request(b"/p"), ends=False) + frame(DATA, 0, stream, HALF))
    H2_ENDS[end](talk)
    over(talk.relay.gate)
    assert [record.exchange.stream for record in talk.seen.records] == [1, 3, 5]
    assert talk.seen.reasons == [("request-unfinished", False)]


@pytest.mark.parametrize("mode", MODES)
def test_a_connection_that_goes_on_keeps_nothing_of_what_is_over(mode):
    shell = Inspected(NO_SECRET, NO_LEAK, **MODES[mode])
    for asked, said in (
        (get(), answer(b"a")),
        (post(b"b"), answer(b"c", chunk=1)),
        (post(b"d" * 300, chunk=100), answer(b"", status=b"204 No Content").replace(b"Content-Length: 0\r\n", b"")),
        (get().replace(b"GET", b"HEAD"), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
        (post(gzip.compress(b"e"), b"Content-Encoding: gzip"), answer(gzip.compress(b"f"), b"Content-Encoding: gzip")),
    ):
        shell.client(asked)
        shell.app(said)
        assert not shell.gate.unfinished, asked
        assert shell.gate.memory.held == 0
    shell.client(post(SECRET))
    assert not shell.gate.unfinished or mode == "Detect"
