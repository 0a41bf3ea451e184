"""A diverted request: what handler, app and client get of it."""

from __future__ import annotations

import struct

import hpack
import pytest
from msgspec.structs import replace

from sidestep.policy.route import Route
from sidestep.protocols.hpack import encode
from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    DEFAULT_LIMITS,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITY,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame,
    header_frames,
    rst_stream,
    window_update,
)
from tests.unit.engine.http2.talk import Talk, mixed
from tests.unit.engine.http2_peers import MATCH, request


def test_a_diverted_stream_never_reaches_the_app() -> None:
    talk = Talk()
    talk.divert(1, ends=False)
    talk.open_handler()
    talk.send(frame(DATA, PADDED, 1, b"\x03bodyppp") + frame(PRIORITY, 0, 1, b"\x00\x00\x00\x00\x10"))
    talk.send(window_update(1, 5) + frame(DATA, END_STREAM, 1, b"end"))
    assert talk.app.data == b""
    handler = talk.handlers[0]
    assert handler.data.startswith(PREFACE)
    assert talk.heads(handler, 1, skip=24)[0] == request(b"/d", MATCH).head
    assert b"".join(payload for _, payload in handler.of(DATA, 1, skip=24)) == b"bodyend"
    assert handler.of(DATA, 1, skip=24)[-1][0] == END_STREAM
    # all DATA, padding included, is credited on stream 0; on its stream while the client may send more
    on_connection = [struct.unpack(">I", payload)[0] for _, payload in talk.client.of(WINDOW_UPDATE, 0)]
    assert sum(on_connection) == 8 + 3
    on_stream = [struct.unpack(">I", payload)[0] for _, payload in talk.client.of(WINDOW_UPDATE, 1)]
    assert sum(on_stream) == 8
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, b"answer"))
    assert talk.heads(talk.client, 1) == [[(b":status", b"200")]]
    assert talk.client.of(DATA, 1) == [(END_STREAM, b"answer")]
    assert talk.relay.idle
    assert talk.peers.diverted == [b"/d"]
    talk.send(window_update(1, 10) + rst_stream(1, 8) + frame(DATA, 0, 1, b"late") + frame(PRIORITY, 0, 1, b"12345"))
    assert talk.app.data == b""


def test_blocks_for_the_app_pass_as_they_came_while_missed_ones_have_not_changed_the_table() -> None:
    talk = Talk()
    never = hpack.NeverIndexedHeaderTuple(*MATCH)
    relayed = request(b"/one", (b"x-token", b"t" * 40))
    sent = talk.head(1, relayed)
    talk.send(sent)
    missed = header_frames(3, talk.encoder.encode([*relayed.head, never]), end_stream=True)
    talk.send(missed)
    assert talk.peers.diverted == [b"/one"]
    again = talk.head(5, relayed)
    assert len(again) < len(sent)  # it refers to the table
    other = talk.head(7, request(b"/two", (b"x-new", b"n")), ends=False)  # and this adds to it
    trailers = header_frames(7, talk.encoder.encode([(b"x-new", b"n")]), end_stream=True)
    talk.send(again + other)
    talk.send(frame(DATA, 0, 7, b"body") + trailers)
    assert bytes(talk.app.data) == sent + again + other + frame(DATA, 0, 7, b"body") + trailers
    talk.divert(9)  # adds the filter's field
    talk.app.data.clear()
    talk.send(talk.head(11, relayed))
    assert talk.app_heads(11) == [relayed.head]


def test_blocks_pass_as_they_came_once_one_has_brought_what_a_diverted_one_had_added() -> None:
    talk = Talk()
    common = (b"x-token", b"t" * 40)
    first = [*request(b"/d", common).head, hpack.NeverIndexedHeaderTuple(*MATCH)]
    talk.send(header_frames(1, talk.encoder.encode(first), end_stream=True))
    assert talk.peers.diverted == [b"/d"]
    one, other = request(b"/d", common), request(b"/d", common, (b"x-new", b"n"))
    talk.send(talk.head(3, one))
    assert talk.app_heads(3) == [one.head]
    talk.app.data.clear()
    sent = talk.head(5, other) + talk.head(7, one)
    talk.send(sent)
    assert bytes(talk.app.data) == sent
    assert talk.app_heads(5) == [other.head]


def test_a_missed_list_that_is_too_large_leaves_the_app_in_step_only_if_it_changes_no_table() -> None:
    talk = mixed(passed_list=2000)
    assert not talk.relay._connection.to_app.in_step
    for pattern in (0x00, 0x40):
        talk = Talk(limits=replace(DEFAULT_LIMITS, passed_list=2000))
        talk.send(header_frames(1, encode([*request(b"/d").head, MATCH]), end_stream=True))
        long = bytes((pattern, 1)) + b"a" + b"\x7f\x80\x0f" + b"v" * 2047
        talk.send(header_frames(3, encode(request(b"/").head) + long, end_stream=True))
        assert talk.heads(talk.client, 3)[0][0] == (b":status", b"431")
        assert talk.relay._connection.to_app.in_step is (pattern == 0x00)


def test_out_of_step_blocks_for_the_app_are_written_anew_and_keep_what_they_are() -> None:
    talk = Talk()
    secret = hpack.NeverIndexedHeaderTuple(b"authorization", b"Bearer x")
    one = [*request(b"/one").head, secret]
    talk.send(header_frames(1, talk.encoder.encode(one), end_stream=True))
    talk.divert(3)
    talk.app.data.clear()
    block = talk.encoder.encode(one)
    priority = b"\x80\x00\x00\x01\x20"
    payload = b"\x04" + priority + block + b"pppp"
    talk.send(frame(HEADERS, END_HEADERS | END_STREAM | PADDED | WITH_PRIORITY, 5, payload))
    [(kind, flags, stream, data)] = talk.app.frames()
    assert (kind, flags, stream) == (HEADERS, END_HEADERS | END_STREAM | WITH_PRIORITY, 5)
    assert data[:5] == priority
    [fields] = talk.app_heads(5)
    assert [tuple(field) for field in fields] == [tuple(field) for field in one]
    assert [field.indexable for field in fields] == [True] * 4 + [False]


def test_a_long_block_is_split_again() -> None:
    talk = Talk()
    talk.divert(1)
    long = request(b"/" + b"p" * 40_000)
    talk.send(talk.head(3, long, ends=False))
    kinds = [(kind, flags, len(payload)) for kind, flags, _, payload in talk.app.frames()]
    assert [kind for kind, _, _ in kinds] == [HEADERS, CONTINUATION, CONTINUATION]
    assert all(size <= 16_384 for _, _, size in kinds)
    block = b"".join(payload for _, _, _, payload in talk.app.frames())
    assert hpack.Decoder().decode(block, raw=True)[3][1] == long.head[3][1]


def test_interim_responses_trailers_and_a_late_end() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    early = header_frames(1, talk.responses.encode([(b":status", b"103"), (b"link", b"x")]), end_stream=False)
    talk.from_handler(early + talk.respond(1, ends=False) + frame(DATA, PADDED, 1, b"\x02data\0\0"))
    talk.from_handler(header_frames(1, talk.responses.encode([(b"grpc-status", b"0")]), end_stream=True))
    assert [fields[0] for fields in talk.heads(talk.client, 1)] == [
        (b":status", b"103"),
        (b":status", b"200"),
        (b"grpc-status", b"0"),
    ]
    assert talk.client.of(HEADERS, 1)[-1][0] == END_HEADERS | END_STREAM
    talk.divert(3)
    talk.from_handler(talk.respond(3, ends=False) + frame(DATA, 0, 3, b"x"))
    talk.from_handler(frame(DATA, END_STREAM, 3))
    assert talk.client.of(DATA, 3) == [(0, b"x"), (END_STREAM, b"")]
    assert talk.relay.idle


def test_a_response_is_not_written_into_the_middle_of_a_header_block_of_the_app() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.open_handler()
    block = bytes.fromhex("88") + b"\x00\x01x\x01" + b"y"
    parts = [frame(HEADERS, 0, 1, block[:2]), frame(CONTINUATION, 0, 1, block[2:4])]
    parts.append(frame(CONTINUATION, END_HEADERS | END_STREAM, 1, block[4:]))
    talk.from_app(parts[0])
    talk.from_handler(talk.respond(1))
    rest = b"".join(parts[1:])
    talk.from_app(rest[:-1])  # the last frame is here but for its end
    talk.from_app(rest[-1:])
    kinds = [(kind, stream) for kind, _, stream, _ in talk.client.frames() if kind in (HEADERS, CONTINUATION)]
    assert kinds == [(HEADERS, 1), (CONTINUATION, 1), (CONTINUATION, 1), (HEADERS, 3)]


def test_ending_the_intercept_sends_the_next_request_to_the_app() -> None:
    talk = Talk()
    talk.divert(1)
    talk.peers.port.route = Route()
    talk.send(talk.head(3, request(b"/d", MATCH)))
    assert talk.app_heads(3) == [request(b"/d", MATCH).head]


MALFORMED = {
    "upper-case name": [*request(b"/", MATCH).head, (b"X-Bad", b"1")],
    "NUL in a value": [*request(b"/", MATCH).head, (b"x", b"a\0b")],
    "no path": [field for field in request(b"/", MATCH).head if field[0] != b":path"],
    "two methods": [(b":method", b"GET"), *request(b"/", MATCH).head],
    "unknown pseudo-field": [(b":odd", b"1"), *request(b"/", MATCH).head],
    "pseudo-field after others": [*request(b"/", MATCH).head, (b":path", b"/other")],
    "connection field": [*request(b"/", MATCH).head, (b"connection", b"close")],
    "host against authority": [*request(b"/", MATCH).head, (b"host", b"other")],
    "two lengths": [*request(b"/", MATCH).head, (b"content-length", b"1"), (b"content-length", b"2")],
    "a length that is none": [*request(b"/", MATCH).head, (b"content-length", b"1_0")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_the_apps_to_judge(name: str) -> None:
    talk = Talk()
    data = header_frames(1, talk.encoder.encode(MALFORMED[name]), end_stream=True)
    talk.send(data)
    assert talk.app.data == data
    assert not talk.handlers
