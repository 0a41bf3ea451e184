"""The HTTP/2 relay, behaviour by behaviour, with peers that send exactly the frames they are told to."""

from __future__ import annotations

import struct
from dataclasses import replace

import hpack
import pytest

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.relay import HIGH_WATER, Ending, Leg, Role
from sidestep.policy.route import Route, Rule, SteeredPort
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
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ErrorCode,
    Http2Limits,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
    window_update,
)
from tests.unit.engine.http2_peers import MATCH, Endpoint, Message, Raw, Shell, reply, request, rule

GRPC = (b"content-type", b"application/grpc")


class Talk:
    """A relay between a raw client and a raw app, with a raw handler; SETTINGS are exchanged already."""

    def __init__(
        self,
        *,
        limits: Http2Limits = DEFAULT_LIMITS,
        app: dict[Setting, int] | None = None,
        client: dict[Setting, int] | None = None,
        rules: tuple[Rule, ...] = (rule(),),
        ledger: Ledger | None = None,
        begin: bool = True,
    ) -> None:
        self.handler_is_there = True
        self.second_is_there = True
        self.client = Raw()
        self.app = Raw()
        self.shell = Shell(
            self.client,  # type: ignore[arg-type]
            self.app,  # type: ignore[arg-type]
            handler=lambda _: Raw() if self.handler_is_there else None,  # type: ignore[arg-type, return-value]
            second=lambda: Raw() if self.second_is_there else None,  # type: ignore[arg-type, return-value]
            rules=rules,
            limits=limits,
            ledger=ledger,
        )
        self.relay = self.shell.relay
        self.encoder = hpack.Encoder()
        self.responses = hpack.Encoder()
        self.decoder = hpack.Decoder()
        if begin:
            self.send(PREFACE + settings(client or {}))
            self.from_app(settings(app or {}) + SETTINGS_ACK)
            self.send(SETTINGS_ACK)
            self.client.data.clear()
            self.app.data.clear()

    def send(self, data: bytes) -> None:
        """The client sends."""
        self.client.out += data
        self.shell.run()

    def from_app(self, data: bytes) -> None:
        self.app.out += data
        self.shell.run()

    def from_handler(self, data: bytes, which: int = -1) -> None:
        self.handlers[which].out += data
        self.shell.run()

    @property
    def handlers(self) -> list[Raw]:
        return self.shell.handlers  # type: ignore[return-value]

    @property
    def seconds(self) -> list[Raw]:
        return self.shell.seconds  # type: ignore[return-value]

    def head(self, stream: int, message: Message, *, ends: bool = True) -> bytes:
        return header_frames(stream, self.encoder.encode(message.head), end_stream=ends)

    def divert(self, stream: int = 1, *more: tuple[bytes, bytes], ends: bool = True) -> None:
        self.send(self.head(stream, request(b"/d", MATCH, *more), ends=ends))

    def respond(self, stream: int, *more: tuple[bytes, bytes], ends: bool = True) -> bytes:
        return header_frames(stream, self.responses.encode([(b":status", b"200"), *more]), end_stream=ends)

    def open_handler(self, values: dict[Setting, int] | None = None) -> None:
        self.responses = hpack.Encoder()
        self.from_handler(settings(values or {}))

    def heads(self, peer: Raw, stream: int, skip: int = 0) -> list[list[tuple[bytes, bytes]]]:
        """Header blocks that a peer got on a stream; only for blocks of ours, which need no context."""
        return [
            [(bytes(n), bytes(v)) for n, v in hpack.Decoder().decode(payload, raw=True)]
            for _, payload in peer.of(HEADERS, stream, skip)
        ]


# --- wires ----------------------------------------------------------------------------------------------------------

BAD_BEGINNINGS = {
    "h2-preface": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "h2-hpack": PREFACE + settings({}) + frame(HEADERS, END_HEADERS, 1, b"\x80"),
    "h2-continuation": PREFACE + settings({}) + frame(CONTINUATION, END_HEADERS, 1, b"\x82"),
    "h2-header-size": PREFACE + settings({}) + frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 0, 1) * 300,
    "h2-settings": PREFACE + settings({}) * 70,
    "h2-frame-size": PREFACE + settings({}) + frame(WINDOW_UPDATE, 0, 0, b"12345"),
    "h2-flood": PREFACE + settings({}) + frame(PING, 0, 0, b"8 bytes.") * 10_001,
    "h2-padding": PREFACE + settings({}) + frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05\x82"),
}


@pytest.mark.parametrize(
    ("reason", "chunk"),
    [
        (reason, chunk)
        for reason, data in BAD_BEGINNINGS.items()
        for chunk in (1, 1 << 20)
        if chunk > 1 or len(data) < 5000
    ],
)
def test_what_cannot_be_read_becomes_a_wire_with_every_byte(reason: str, chunk: int) -> None:
    talk = Talk(begin=False)
    data = BAD_BEGINNINGS[reason] + b"and what follows"
    for start in range(0, len(data), chunk):
        talk.send(data[start : start + chunk])
    assert talk.relay.anomaly == reason
    assert talk.relay.wired == (talk.relay.client, talk.relay.app)
    assert talk.app.data == data
    talk.from_app(b"anything back")
    assert talk.client.data == b"anything back"
    assert not talk.relay.done


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "h2-app-not-http2"),
        (settings({}) + frame(CONTINUATION, 0, 1), "h2-continuation"),
        (settings({}) + frame(HEADERS, 0, 1, b"\x88") + frame(DATA, 0, 1), "h2-continuation"),
        (settings({}) + frame(GOAWAY, 0, 0, b"1234"), "h2-goaway"),
        (frame(SETTINGS, 0, 0, b"12345"), "h2-settings"),
    ],
)
def test_an_app_that_cannot_be_read_becomes_a_wire(data: bytes, reason: str) -> None:
    for chunk in (1, len(data)):
        talk = Talk(begin=False)
        talk.send(PREFACE + settings({}))
        for start in range(0, len(data), chunk):
            talk.from_app(data[start : start + chunk])
        assert talk.relay.anomaly == reason
        assert talk.client.data == data
        talk.send(b"more")
        assert talk.app.data == PREFACE + settings({}) + b"more"


def test_a_matching_request_waits_until_the_app_has_proved_to_speak_http2() -> None:
    talk = Talk(begin=False)
    head = talk.head(1, request(b"/", MATCH))
    talk.send(PREFACE + settings({}) + head + frame(PING, 0, 0, b"8 bytes."))
    assert talk.app.data == PREFACE + settings({})
    assert not talk.handlers
    assert not talk.relay.reads(talk.relay.client)
    talk.from_app(settings({}))
    assert len(talk.handlers) == 1
    assert talk.app.data == PREFACE + settings({})
    assert talk.client.of(PING) == [(ACK, b"8 bytes.")]
    assert talk.relay.reads(talk.relay.client)


@pytest.mark.parametrize("ending", ["other bytes", "end", "refused"])
def test_a_waiting_match_goes_to_an_app_that_is_no_http2_server(ending: str) -> None:
    talk = Talk(begin=False)
    if ending == "refused":
        talk.shell.app = None
    data = PREFACE + settings({}) + talk.head(1, request(b"/", MATCH))
    talk.send(data)
    if ending == "refused":
        assert talk.relay.done
        assert talk.shell.aborted
        return
    if ending == "other bytes":
        talk.from_app(b"HTTP/1.1 505 No\r\n\r\n")
    else:
        talk.relay.receive_eof(talk.relay.app, 0.0)
        talk.shell._write()
        assert talk.relay.client.ending is Ending.FINISH
    assert talk.app.data == data
    assert talk.relay.anomaly == "h2-app-not-http2"


# --- diverting ------------------------------------------------------------------------------------------------------


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
    assert talk.shell.diverted == [b"/d"]
    talk.send(window_update(1, 10) + rst_stream(1, 8) + frame(DATA, 0, 1, b"late") + frame(PRIORITY, 0, 1, b"12345"))
    assert talk.app.data == b""


def test_once_mixed_blocks_for_the_app_are_literals_and_keep_what_they_are() -> None:
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
    fields = hpack.Decoder().decode(data[5:], raw=True)
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


def test_ending_the_intercept_sends_the_next_request_to_the_app() -> None:
    talk = Talk()
    talk.divert(1)
    talk.shell.port.route = Route()
    talk.send(talk.head(3, request(b"/d", MATCH)))
    assert talk.heads(talk.app, 3) == [request(b"/d", MATCH).head]


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


# --- who answers when the handler does not --------------------------------------------------------------------------


def test_a_refused_handler_leaves_the_request_to_the_app_on_a_second_connection() -> None:
    client = Endpoint()
    app = Endpoint(answer=reply(b"app"))
    second = Endpoint(answer=reply(b"second", b"x" * 50_000))
    shell = Shell(client, app, second=lambda: second)
    client.send(request(b"/1"))
    client.send(request(b"/2", MATCH))
    client.send(request(b"/3", MATCH, method=b"POST", body=b"b" * 60_000))
    shell.run()
    assert [dict(client.seen[stream].head)[b"server"] for stream in (1, 3, 5)] == [b"app", b"second", b"second"]
    assert sorted((m.body for m in second.seen.values()), key=len) == [b"", b"b" * 60_000]
    assert len(client.seen[5].body) == 50_000
    assert shell.relay.idle


@pytest.mark.parametrize("how", ["lost", "end of file", "garbage", "REFUSED_STREAM", "GOAWAY", "HTTP_1_1_REQUIRED"])
def test_a_handler_that_goes_before_it_answers_leaves_an_unconsumed_request_to_the_app(how: str) -> None:
    talk = Talk()
    talk.divert(1)
    handler, leg = talk.handlers[0], talk.shell.leg(talk.handlers[0])  # type: ignore[arg-type]
    if how == "lost":
        talk.shell.lose(handler)  # type: ignore[arg-type]
    elif how == "end of file":
        talk.relay.receive_eof(leg, 0.0)
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
    talk.shell.run()
    [second] = talk.seconds
    second.out += settings({})
    talk.shell.run()
    assert talk.heads(second, 1, skip=24) == [request(b"/d", MATCH).head]
    assert talk.client.of(RST_STREAM) == []
    second.out += talk.respond(1)
    talk.shell.run()
    assert talk.heads(talk.client, 1) == [[(b":status", b"200")]]
    assert talk.relay.idle
    assert leg.ending is not Ending.NONE or how in ("REFUSED_STREAM", "HTTP_1_1_REQUIRED")


@pytest.mark.parametrize("grpc", [False, True])
def test_a_consumed_request_is_answered_for_the_lost_handler(grpc: bool) -> None:
    talk = Talk()
    talk.divert(1, *((GRPC,) if grpc else ()), ends=False)
    talk.open_handler()
    talk.send(frame(DATA, 0, 1, b"consumed"))
    talk.shell.lose(talk.handlers[0])  # type: ignore[arg-type]
    talk.shell.run()
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
    # the client's body is not wanted any more (RFC 9113 section 8.1)
    assert talk.client.of(RST_STREAM, 1) == [(0, bytes(4))]
    assert talk.relay.idle


def test_a_handler_lost_in_mid_response_resets_the_stream() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"part"))
    talk.shell.lose(talk.handlers[0])  # type: ignore[arg-type]
    talk.shell.run()
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x02")]
    assert talk.relay.idle


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
            talk.shell.lose(second)  # type: ignore[arg-type]
        elif how == "GOAWAY":
            second.out += settings({})
            talk.shell.run()
            second.out += goaway(0, 0)
        else:
            second.out += b"" if attempt else settings({})
            talk.shell.run()
            second.out += rst_stream(1 + 2 * attempt, ErrorCode.REFUSED_STREAM)
        talk.shell.run()
    assert len(talk.seconds) == (DEFAULT_LIMITS.attempts if how == "GOAWAY" else 1)
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x07")]
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
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, b"complete") + rst_stream(1, 0))
    assert talk.client.of(DATA, 1) == [(0, b"comp")]
    talk.send(window_update(1, 100))
    assert talk.client.of(DATA, 1) == [(0, b"comp"), (END_STREAM, b"lete")]
    assert talk.client.frames()[-1] == (RST_STREAM, 0, 1, bytes(4))
    assert talk.relay.idle


def test_a_reset_of_the_client_is_the_handlers() -> None:
    talk = Talk()
    talk.divert(1, ends=False)
    talk.open_handler()
    talk.send(rst_stream(1, ErrorCode.CANCEL))
    assert talk.handlers[0].of(RST_STREAM, 1, skip=24) == [(0, b"\0\0\0\x08")]
    assert talk.app.data == b""


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
    assert talk.shell.leg(talk.handlers[0]).ending is Ending.CLOSE  # type: ignore[arg-type]


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


# --- GOAWAY, ends ---------------------------------------------------------------------------------------------------


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
    assert len(talk.shell.diverted) == 1
    assert talk.heads(talk.app, 9)  # above the last id: nobody's, so the app's
    talk.from_app(talk.respond(1))
    talk.relay.receive_eof(talk.relay.app, 0.0)
    talk.shell.run()
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
            talk.shell.lose(talk.app)  # type: ignore[arg-type]
        else:
            talk.relay.receive_eof(talk.relay.app, 0.0)
        talk.shell.run()
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
    talk.shell.lose(talk.app)  # type: ignore[arg-type]
    assert talk.relay.done
    assert talk.shell.aborted


def test_ends_pass_while_nothing_is_diverted() -> None:
    talk = Talk()
    talk.relay.receive_eof(talk.relay.client, 0.0)
    assert talk.relay.app.ending is Ending.FINISH
    assert not talk.relay.done
    talk.from_app(frame(PING, 0, 0, b"8 bytes."))
    assert talk.client.of(PING)
    talk.relay.receive_eof(talk.relay.app, 0.0)
    assert talk.relay.client.ending is Ending.FINISH
    assert talk.relay.done


def test_an_incomplete_head_reaches_the_app_before_the_end() -> None:
    talk = Talk()
    data = talk.head(1, request(b"/"))[:-2]
    talk.send(data)
    assert talk.app.data == b""
    talk.relay.receive_eof(talk.relay.client, 0.0)
    talk.shell._write()
    assert talk.app.data == data


def test_a_client_that_is_lost_takes_everything_with_it() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.shell.lose(talk.client)  # type: ignore[arg-type]
    assert talk.relay.done
    assert talk.relay.app.ending is Ending.ABORT
    assert talk.handlers[0].of(RST_STREAM, 1, skip=24)
    assert talk.shell.leg(talk.handlers[0]).ending is Ending.CLOSE  # type: ignore[arg-type]


def test_a_connection_error_after_a_diversion_is_told_with_goaway() -> None:
    talk = Talk()
    talk.divert(1)
    talk.send(frame(HEADERS, END_HEADERS, 3, b"\x80"))
    assert talk.client.of(GOAWAY) == [(0, b"\0\0\0\x01\0\0\0\x09h2-hpack")]
    assert talk.relay.done
    assert talk.relay.wired is None
    assert talk.relay.client.ending is Ending.CLOSE
    assert talk.relay.app.ending is Ending.CLOSE


# --- windows --------------------------------------------------------------------------------------------------------


def test_injected_data_makes_debt_that_credits_pay_before_they_reach_the_app() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False))
    for _ in range(4):
        talk.from_handler(frame(DATA, 0, 1, b"d" * 15_000))
    assert sum(len(payload) for _, payload in talk.client.of(DATA, 1)) == 60_000
    to_client = talk.relay._connection.to_client
    assert (to_client.window, to_client.debt) == (5_535, 60_000)
    talk.send(window_update(0, 10_000))
    assert talk.app.data == b""  # an increment that becomes 0 is not sent
    assert (to_client.window, to_client.debt) == (15_535, 50_000)
    talk.send(window_update(0, 55_000))
    assert talk.app.of(WINDOW_UPDATE, 0) == [(0, struct.pack(">I", 5_000))]
    assert (to_client.window, to_client.debt) == (70_535, 0)
    talk.send(window_update(0, 7))
    assert talk.app.of(WINDOW_UPDATE, 0)[1] == (0, struct.pack(">I", 7))


def spent(talk: Talk) -> None:
    """Spend the client's connection window on diverted stream 7, but for 100 bytes."""
    talk.send(talk.head(3, request(b"/a")) + talk.head(5, request(b"/b")))
    talk.divert(7)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False))
    left = 65_535 - 100
    while left:
        size = min(left, 16_384)
        talk.from_handler(frame(DATA, 0, 1, b"d" * size))
        left -= size
    talk.responses = hpack.Encoder()
    talk.client.data.clear()


def test_data_of_the_app_waits_for_the_clients_window_and_is_cut_to_it() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    body = bytes(range(256)) * 4
    talk.from_app(talk.respond(3, ends=False) + frame(DATA, 0, 3, body) + frame(PING, 0, 0, b"overtake"))
    assert talk.client.of(PING) == [(0, b"overtake")]
    assert b"".join(p for _, p in talk.client.of(DATA, 3)) == body[:100]
    trailers = header_frames(3, talk.responses.encode([(b"x", b"1")]), end_stream=True)
    talk.from_app(trailers + window_update(5, 9) + rst_stream(5, 2))
    assert talk.client.of(HEADERS, 3)[1:] == []
    assert talk.client.of(RST_STREAM, 5)
    assert talk.client.of(WINDOW_UPDATE, 5)
    talk.send(window_update(0, 500))
    assert b"".join(p for _, p in talk.client.of(DATA, 3)) == body[:600]
    assert talk.app.of(WINDOW_UPDATE, 0) == []
    talk.send(window_update(0, 500))
    assert b"".join(p for _, p in talk.client.of(DATA, 3)) == body
    assert len(talk.client.of(HEADERS, 3)) == 2
    assert talk.client.frames()[-1][:3] == (HEADERS, END_HEADERS | END_STREAM, 3)


def test_padded_data_that_waits_keeps_its_length_in_windows() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, ends=False) + frame(DATA, PADDED | END_STREAM, 3, b"\x32" + b"b" * 200 + bytes(50)))
    assert talk.client.of(DATA, 3) == [(0, b"b" * 100)]
    talk.send(window_update(0, 150))
    assert talk.client.of(DATA, 3)[1] == (0, b"b" * 100)
    assert len(talk.client.of(DATA, 3)) == 2
    talk.send(window_update(0, 1))
    assert talk.client.of(DATA, 3)[2] == (PADDED | END_STREAM, b"\x32" + bytes(50))
    to_client = talk.relay._connection.to_client
    assert to_client.window == 0
    assert not to_client.queue


def test_header_blocks_keep_the_apps_order() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, (b"a", b"1"), ends=False) + frame(DATA, 0, 3, b"x" * 500))
    talk.from_app(talk.respond(5, (b"b", b"2"), ends=False))  # another stream's head overtakes DATA
    assert talk.client.of(HEADERS, 5)
    talk.from_app(header_frames(3, talk.responses.encode([(b"c", b"3")]), end_stream=True))
    late = talk.responses.encode([(b"d", b"4")])
    talk.from_app(frame(HEADERS, END_STREAM, 5, late[:2]) + frame(CONTINUATION, END_HEADERS, 5, late[2:]))
    assert len(talk.client.of(HEADERS)) == 2
    talk.send(window_update(0, 1000))
    decoder = hpack.Decoder()
    seen = []
    block = b""
    for kind, flags, stream, payload in talk.client.frames():
        if kind in (HEADERS, CONTINUATION):
            block += payload
            if flags & END_HEADERS:
                seen.append((stream, decoder.decode(block, raw=True)[-1][0]))
                block = b""
    assert seen == [(3, b"a"), (5, b"b"), (3, b"c"), (5, b"d")]


def test_an_ack_does_not_overtake_data_sent_under_the_old_settings() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, ends=False) + frame(DATA, 0, 3, b"x" * 300))
    talk.send(settings({Setting.INITIAL_WINDOW_SIZE: 0, Setting.HEADER_TABLE_SIZE: 0}))
    talk.from_app(SETTINGS_ACK + header_frames(5, b"\x20\x88", end_stream=True))
    exchange = talk.relay._connection.state.streams.exchanges[7]
    window = exchange.window
    assert not talk.client.of(SETTINGS)
    assert not talk.client.of(HEADERS, 5)
    talk.send(window_update(0, 200))
    kinds = [(kind, stream) for kind, _, stream, _ in talk.client.frames()]
    assert kinds == [(HEADERS, 3), (DATA, 3), (DATA, 3), (SETTINGS, 0), (HEADERS, 5)]
    assert exchange.window == window - 1_000_000
    talk.divert(9)
    talk.from_handler(header_frames(3, b"\x88", end_stream=True))
    assert talk.client.of(HEADERS, 9)[0][1][0] & 0xE0 != 0x20  # the app's own block has carried the update


def test_the_app_is_not_read_while_much_of_it_waits() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, ends=False))
    for _ in range(4):
        talk.from_app(frame(DATA, 0, 3, b"x" * 16_384))
    assert talk.relay.reads(talk.relay.app)
    talk.from_app(frame(DATA, 0, 3, b"x" * 16_384))
    assert not talk.relay.reads(talk.relay.app)
    talk.send(window_update(0, 60_000))
    assert talk.relay.reads(talk.relay.app)


def test_injection_waits_for_the_end_of_a_partly_written_frame() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.open_handler()
    app = hpack.Encoder()
    head = header_frames(1, app.encode([(b":status", b"200")]), end_stream=False)
    data = frame(DATA, 0, 1, b"x" * 1000)
    talk.from_app(head + data[:300])
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, b"diverted"))
    assert talk.client.data.endswith(data[:300])
    talk.from_app(data[300:] + head[:5])
    assert [kind for kind, _, stream, _ in talk.client.frames() if stream] == [HEADERS, DATA, HEADERS, DATA]
    assert talk.client.of(DATA, 3) == [(END_STREAM, b"diverted")]


def test_injection_waits_between_headers_and_continuation() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.open_handler()
    block = hpack.Encoder().encode([(b":status", b"200"), (b"x", b"y")])
    talk.from_app(frame(HEADERS, 0, 1, block[:3]))
    talk.from_handler(talk.respond(1))
    assert not talk.client.of(HEADERS, 3)
    talk.from_app(frame(CONTINUATION, END_HEADERS, 1, block[3:]))
    assert [(kind, stream) for kind, _, stream, _ in talk.client.frames() if stream] == [
        (HEADERS, 1),
        (CONTINUATION, 1),
        (HEADERS, 3),
    ]


def test_a_long_download_of_the_app_does_not_keep_diverted_responses_out() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")) + window_update(0, 1 << 20))
    talk.divert(3)
    talk.open_handler()
    data = frame(DATA, 0, 1, b"x" * 16_000)
    talk.from_app(talk.respond(1, ends=False) + data + data[:100])
    talk.from_handler(talk.respond(1))
    assert not talk.client.of(HEADERS, 3)
    talk.from_app(data[100:] + data + data[:5000])  # ends in mid-frame again
    assert talk.client.of(HEADERS, 3)


def test_settings_of_the_client_hold_from_the_apps_ack_on() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.send(settings({Setting.INITIAL_WINDOW_SIZE: 10}))
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"x" * 20))
    assert talk.client.of(DATA, 1) == [(0, b"x" * 20)]
    talk.from_app(SETTINGS_ACK)
    talk.from_handler(frame(DATA, 0, 1, b"y" * 20))
    assert talk.client.of(DATA, 1) == [(0, b"x" * 20)]  # the window is -10 now
    talk.send(window_update(1, 15))
    assert talk.client.of(DATA, 1)[1:] == [(0, b"y" * 5)]


@pytest.mark.parametrize(("first", "second"), [(0, None), (100, None), (100, 4096), (4096, None), (8192, None)])
def test_injected_blocks_begin_with_the_size_update_that_is_owed(first: int, second: int | None) -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.open_handler()
    talk.send(talk.head(5, request(b"/")))
    for size in (first, second):
        if size is not None:
            talk.send(settings({Setting.HEADER_TABLE_SIZE: size}))
            talk.from_app(SETTINGS_ACK)
    talk.client.data.clear()
    talk.from_handler(talk.respond(1))
    [(_, payload)] = talk.client.of(HEADERS, 1)
    lowered = first < 4096
    assert (payload[0] & 0xE0 == 0x20) is lowered
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = first
    decoder.decode(payload)
    # after a block of the app's own nothing is owed any more
    talk.from_app(header_frames(5, b"\x20\x88" if lowered else b"\x88", end_stream=True))
    talk.from_handler(talk.respond(3))
    [(_, payload)] = talk.client.of(HEADERS, 3)
    assert payload[0] & 0xE0 != 0x20


def test_size_updates_of_a_diverted_block_are_owed_to_the_app() -> None:
    talk = Talk()
    talk.from_app(settings({Setting.HEADER_TABLE_SIZE: 100}))
    talk.send(SETTINGS_ACK)
    talk.encoder.header_table_size = 100
    talk.divert(1)
    assert talk.app.of(HEADERS) == []
    talk.send(talk.head(3, request(b"/")))
    talk.send(talk.head(5, request(b"/")))
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 100
    first, second = [payload for _, payload in talk.app.of(HEADERS)]
    assert first[0] & 0xE0 == 0x20
    assert second[0] & 0xE0 != 0x20
    assert [tuple(field) for field in decoder.decode(first, raw=True)] == request(b"/").head
    assert [tuple(field) for field in decoder.decode(second, raw=True)] == request(b"/").head


# --- limits ---------------------------------------------------------------------------------------------------------


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
    leg = talk.shell.leg(talk.handlers[0])  # type: ignore[arg-type]
    relay = talk.relay
    for _ in range(40):
        relay.receive(relay.client, frame(DATA, 0, 1, b"x" * 16_384), 0.0)
    assert HIGH_WATER < leg.queued < HIGH_WATER + 20_000
    assert relay.reads(relay.client)  # other streams go on
    leg.out.clear()
    leg.queued = 0
    relay.drained(leg, 0.0)
    assert leg.queued > HIGH_WATER


def test_rapid_reset_ends_the_connection() -> None:
    talk = Talk(limits=replace(DEFAULT_LIMITS, resets=20))
    for stream in range(1, 43, 2):
        assert not talk.relay.done
        talk.send(talk.head(stream, request(b"/", MATCH)) + rst_stream(stream, 8))
    assert talk.relay.done
    assert talk.relay.anomaly == "h2-rapid-reset"
    assert talk.client.of(GOAWAY)[0][1][4:8] == b"\0\0\0\x0b"


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
    leg = talk.shell.leg(talk.handlers[0])  # type: ignore[arg-type]
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


# --- what the shell asks --------------------------------------------------------------------------------------------


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
    talk.relay.take_leave()
    assert b"".join(talk.relay.client.out) == goaway(3 if mixed else 1, ErrorCode.NO_ERROR)
    assert talk.relay.client.ending is Ending.CLOSE
    assert talk.relay.app.ending is Ending.CLOSE


def test_before_the_app_has_spoken_we_end_without_a_word() -> None:
    talk = Talk(begin=False)
    talk.send(PREFACE + settings({}))
    talk.relay.take_leave()
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
    leg = talk.shell.leg(talk.handlers[0])  # type: ignore[arg-type]
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
            talk.shell.lose(talk.handlers[-1])  # type: ignore[arg-type]
        talk.shell.run()
    assert len(talk.relay.legs) <= 6
    assert isinstance(talk.relay.legs[0], Leg)
