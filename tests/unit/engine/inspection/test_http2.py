"""Streams of an inspected HTTP/2 connection: what is relayed, held, refused; what app and client get."""

import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.limits import LIMITS, InspectionLimits
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.model.inspection import Action, Direction, Pattern, Rule
from sidestep.policy.route import Route
from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
    frame,
    header_frames,
    settings,
)
from tests.unit.engine.http2.talk import Talk, ticks
from tests.unit.engine.http2_peers import MATCH, request
from tests.unit.engine.http2_peers import rule as http2_rule
from tests.unit.engine.inspection.inspecting import (
    BLOCKED,
    DETECT,
    ENFORCE,
    FAIL,
    MODES,
    NO_ADMIN,
    NO_LEAK,
    NO_SECRET,
    SECRET,
    Recorder,
    gate,
    inspection,
)

GRPC = (b"content-type", b"application/grpc+proto")


class Inspected(Talk):
    """A `Talk` around an inspected relay; `seen` is its observer."""

    def __init__(self, *rules: Rule, limits: InspectionLimits = LIMITS, begin: bool = True, **policy) -> None:
        self.seen = Recorder()
        inspected = inspection(*rules, **policy)
        super().__init__(
            relay=lambda port: Http2Relay(port, tls=True, gate=gate(inspected, self.seen, limits)), begin=begin
        )

    def ask(self, stream: int, path: bytes, *more: tuple[bytes, bytes], body: bytes | None = None, size: int = 1000):
        """A request, with its body in frames of `size` bytes."""
        self.send(self.head(stream, request(path, *more), ends=body is None))
        if body is not None:
            for at in range(0, len(body), size):
                self.send(frame(DATA, END_STREAM * (at + size >= len(body)), stream, body[at : at + size]))

    def refused(self, stream: int) -> bytes:
        """The body of a 403."""
        [fields] = self.heads(self.client, stream)
        assert fields[0] == (b":status", b"403")
        return b"".join(payload for _, payload in self.client.of(DATA, stream))

    def open_second(self, which: int = -1) -> None:
        self.seconds[which].out += settings({})
        self.peers.run()

    def second_says(self, data: bytes) -> None:
        self.seconds[-1].out += data
        self.peers.run()


# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_request_that_a_rule_blocks_is_answered_here():
    talk = Inspected(NO_ADMIN)
    talk.ask(1, b"/")
    talk.ask(3, b"/admin/users")
    talk.ask(5, b"/next")
    assert talk.refused(3) == BLOCKED
    assert talk.app.of(HEADERS, 1)
    assert talk.app.of(HEADERS, 5)
    assert not talk.app.of(HEADERS, 3)
    assert not talk.seconds
    talk.from_app(talk.respond(1) + talk.respond(5))
    assert len(talk.client.of(HEADERS)) == 3
    assert talk.relay.idle
    [record] = talk.seen.records
    exchange = record.exchange
    assert (exchange.id, record.rule, exchange.stream, exchange.protocol) == ("x1", "no-admin", 3, "h2")
    assert (exchange.method, exchange.target, exchange.host) == (b"GET", b"/admin/users", b"shop")


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4) + data


@pytest.mark.parametrize("packed", [False, True])
def test_messages_of_a_grpc_call_are_judged_when_they_end_and_not_when_the_call_does(packed):
    sent = message(gzip.compress(SECRET), 1) if packed else message(SECRET)
    encoding = (b"grpc-encoding", b"gzip")
    talk = Inspected(NO_SECRET, NO_LEAK, **DETECT)
    talk.send(talk.head(1, request(b"/shop.Orders/Watch", GRPC, encoding), ends=False))
    talk.send(frame(DATA, 0, 1, message(b"x") + sent[:-1]))
    assert talk.seen.told == []
    talk.send(frame(DATA, 0, 1, sent[-1:]))
    assert [rule for rule, _, _ in talk.seen.told] == ["no-secret"]
    talk.from_app(talk.respond(1, GRPC, encoding, ends=False) + frame(DATA, 0, 1, sent[:-1]))
    assert len(talk.seen.told) == 1
    talk.from_app(frame(DATA, 0, 1, sent[-1:]))
    assert [rule for rule, _, _ in talk.seen.told] == ["no-secret", "no-leak"]


def test_a_pattern_is_not_found_across_two_messages_of_a_grpc_call():
    talk = Inspected(NO_SECRET)
    talk.ask(1, b"/shop.Orders/List", GRPC, body=message(SECRET[:7]) + message(SECRET[7:]))
    assert talk.seen.told == []


def call(**policy):
    """A gRPC call that goes on; yields what its first message gets."""
    talk = Inspected(NO_SECRET, **policy)
    talk.send(talk.head(1, request(b"/shop.Orders/Chat", GRPC), ends=False))
    return talk


def reached(talk: Inspected) -> bytes:
    return b"".join(payload for second in talk.seconds for _, payload in second.of(DATA, 1, skip=24))


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_each_message_of_a_grpc_call_goes_on_when_it_ends_and_the_call_need_not(policy, size):
    talk = call(**policy)
    first, second = message(b"hello" * 20), message(b"world" * 20)
    for at in range(0, len(first), size):
        assert not talk.seconds
        talk.send(frame(DATA, 0, 1, first[at : at + size]))
    talk.open_second()
    assert reached(talk) == first
    talk.send(frame(DATA, 0, 1, second[:50]))
    assert reached(talk) == first
    talk.send(frame(DATA, 0, 1, second[50:] + message(SECRET)[:9]))
    assert reached(talk) == first + second
    talk.second_says(talk.respond(1, GRPC, ends=False))
    assert talk.heads(talk.client, 1)[0][0] == (b":status", b"200")
    talk.send(frame(DATA, 0, 1, message(SECRET)[9:] + message(b"more")))
    assert reached(talk) == first + second
    assert talk.client.of(RST_STREAM, 1)
    assert [rule for rule, _, _ in talk.seen.told] == ["no-secret"]
    assert not talk.seen.reasons


def test_a_client_is_given_room_for_a_message_that_is_kept():
    talk = call()
    long = message(b"a" * 60_000)
    talk.send(frame(DATA, 0, 1, message(b"x")))
    talk.open_second()
    more = (70_000).to_bytes(4)
    for _ in range(3):
        for at in range(0, len(long), 9000):
            talk.send(frame(DATA, 0, 1, long[at : at + 9000]))
        talk.second_says(frame(WINDOW_UPDATE, 0, 0, more) + frame(WINDOW_UPDATE, 0, 1, more))
    assert reached(talk) == message(b"x") + 3 * long
    given = sum(int.from_bytes(payload) for _, payload in talk.client.of(WINDOW_UPDATE, 1))
    assert given >= 3 * len(long)
    assert given <= len(message(b"x")) + 3 * len(long)
    assert not talk.client.of(RST_STREAM, 1)


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_a_grpc_message_that_is_too_long_is_refused_or_goes_on_and_the_next_is_judged(policy):
    limits = InspectionLimits(window=100)
    talk = Inspected(NO_SECRET, limits=limits, **policy)
    talk.send(talk.head(1, request(b"/shop.Orders/Chat", GRPC), ends=False))
    first, long = message(b"x"), message(b"a" * 300)
    talk.send(frame(DATA, 0, 1, first))
    talk.open_second()
    for at in range(0, len(long), 50):
        if not talk.client.of(RST_STREAM, 1) and not talk.client.of(HEADERS, 1):
            talk.send(frame(DATA, 0, 1, long[at : at + 50]))
    assert talk.seen.reasons == [("request-window", policy is FAIL)]
    if policy is FAIL:
        assert reached(talk) == first
        return
    assert reached(talk) == first + long
    for piece in (message(SECRET)[:9], message(SECRET)[9:]):
        talk.send(frame(DATA, 0, 1, piece))
        assert reached(talk) == first + long
    assert [rule for rule, _, _ in talk.seen.told] == ["no-secret"]


@given(
    st.lists(st.tuples(st.binary(max_size=150), st.booleans()), max_size=6),
    st.integers(1, 60),
    st.sampled_from(["none", "plain", "packed"]),
    st.booleans(),
)
def test_what_precedes_a_secret_reaches_the_app_and_nothing_of_the_secret(messages, size, secret, ends):
    sent = [message(gzip.compress(data), 1) if packed else message(data) for data, packed in messages]
    clean = b"".join(sent)
    last = {"none": b"", "plain": message(b"x" + SECRET), "packed": message(gzip.compress(SECRET), 1)}[secret]
    talk = Inspected(NO_SECRET, begin=True, **FAIL)
    talk.send(talk.head(1, request(b"/shop.Orders/Chat", GRPC, (b"grpc-encoding", b"gzip")), ends=False))
    whole, is_open = clean + last, False
    for at in range(0, len(whole), size):
        talk.send(frame(DATA, END_STREAM if ends and at + size >= len(whole) else 0, 1, whole[at : at + size]))
        if talk.seconds and not is_open:
            talk.open_second()
            is_open = True
    assert clean.startswith(reached(talk))
    if secret == "none":
        assert reached(talk) == clean
        assert not talk.seen.reasons
    else:
        assert [rule for rule, _, _ in talk.seen.told] == ["no-secret"]
        assert talk.client.of(HEADERS, 1) or talk.client.of(RST_STREAM, 1)


def test_grpc_clients_get_a_status():
    talk = Inspected(NO_ADMIN)
    talk.ask(1, b"/admin.Users/List", GRPC, body=b"\0\0\0\0\x01x")
    [fields] = talk.heads(talk.client, 1)
    assert fields[:3] == [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"7")]
    assert fields[3] == (b"grpc-message", BLOCKED.strip())
    assert talk.client.of(DATA, 1) == []
    assert talk.app.of(DATA) == []
    assert talk.relay.idle


def test_a_refused_request_with_a_body_reaches_nobody():
    talk = Inspected(NO_ADMIN)
    talk.ask(1, b"/admin", body=b"x" * 5000)
    assert talk.refused(1) == BLOCKED
    assert talk.app.of(DATA) == []
    assert talk.app.of(HEADERS) == []
    assert talk.client.of(RST_STREAM, 1) == [], "it has ended its request"
    assert talk.relay.idle


def test_a_refusal_waits_until_the_app_speaks_http2():
    talk = Inspected(NO_ADMIN, begin=False)
    talk.send(PREFACE + settings({}) + talk.head(1, request(b"/admin")))
    assert talk.client.data == b""
    talk.from_app(settings({}) + SETTINGS_ACK)
    assert talk.refused(1) == BLOCKED
    assert len(talk.seen.records) == 1
    assert not talk.app.of(HEADERS, skip=len(PREFACE))


def test_a_refused_request_does_not_go_with_a_wire():
    talk = Inspected(NO_ADMIN, begin=False, **ENFORCE)
    talk.send(PREFACE + settings({}) + talk.head(1, request(b"/admin")))
    talk.from_app(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert talk.relay.done
    assert not talk.app.of(HEADERS, skip=len(PREFACE))
    assert talk.seen.reasons == [("h2-app-not-http2", True)]


def test_detect_reports_and_the_connection_stays_transparent():
    talk = Inspected(NO_ADMIN, NO_SECRET, NO_LEAK, **DETECT)
    sent = b""
    for stream, path in ((1, b"/admin"), (3, b"/")):
        sent += talk.head(stream, request(path), ends=False)
        sent += frame(DATA, 8, stream, b"\x03" + SECRET[:9] + bytes(3)) + frame(DATA, END_STREAM, stream, SECRET[9:])
    for at in range(len(sent)):
        talk.send(sent[at : at + 1])
    assert bytes(talk.app.data) == sent
    answer = talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, SECRET) + talk.respond(3)
    talk.from_app(answer)
    assert bytes(talk.client.data) == answer
    assert sorted(talk.seen.told) == [
        ("no-admin", 2, True), ("no-leak", 2, True), ("no-secret", 2, True), ("no-secret", 2, True),
    ]  # fmt: skip
    streams = talk.relay._connection.inspection
    assert not streams.requests
    assert not streams.responses


def test_what_is_reset_is_forgotten():
    talk = Inspected(NO_SECRET, NO_LEAK, **DETECT)
    streams = talk.relay._connection.inspection
    talk.send(talk.head(1, request(b"/"), ends=False) + talk.head(3, request(b"/"), ends=False))
    assert set(streams.requests) == set(streams.responses) == {1, 3}
    talk.send(frame(RST_STREAM, 0, 1, bytes(4)))
    talk.from_app(frame(RST_STREAM, 0, 3, bytes(4)))
    assert not streams.requests
    assert not streams.responses


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"GET"), (b":path", b"/"), (b":scheme", b"http"), (b":authority", b"a"), (b"host", b"b")],
        [(b":method", b"GET"), (b":path", b"/"), (b":path", b"/admin"), (b":scheme", b"http"), (b":authority", b"a")],
        [(b":method", b"GET"), (b":path", b"/a b"), (b":scheme", b"http"), (b":authority", b"a")],
        [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/"), (b"X-Up", b"1")],
        [(b":method", b"GET"), (b":scheme", b"http"), (b"x", b"1"), (b":authority", b"a"), (b":path", b"/")],
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b"transfer-encoding", b"chunked")],
        [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b"x", b"a\nb")],
    ],
)
def test_a_head_that_cannot_be_read(mode, fields):
    talk = Inspected(NO_ADMIN, **MODES[mode])
    block = header_frames(1, talk.encoder.encode(fields), end_stream=True)
    talk.send(block)
    closed = mode == "Enforce+Fail"
    assert talk.seen.reasons == [("h2-head", closed)]
    if closed:
        assert talk.app.data == b""
        assert talk.client.of(RST_STREAM, 1) == [(0, ErrorCode.PROTOCOL_ERROR.to_bytes(4, "big"))]
    elif not talk.seen.records:
        assert bytes(talk.app.data) == block


def test_a_diverted_request_is_judged_first():
    talk = Inspected(NO_ADMIN, NO_SECRET)
    talk.ask(1, b"/admin", MATCH)
    assert not talk.handlers
    assert talk.refused(1) == BLOCKED
    talk.ask(3, b"/", MATCH, body=SECRET)
    assert not talk.handlers
    talk.ask(5, b"/", MATCH, body=b"harmless")
    talk.open_handler()
    assert talk.handlers[0].of(DATA, 1, skip=24) == [(END_STREAM, b"harmless")]


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("secret", [False, True])
def test_a_body_is_held_until_there_is_a_verdict(size, secret):
    talk = Inspected(NO_SECRET)
    body = b"first " * 40 + (SECRET if secret else b"") + b" last" * 40
    talk.ask(1, b"/p", body=body, size=size)
    assert talk.app.data == b""
    if secret:
        assert talk.refused(1) == BLOCKED
        assert not talk.seconds
    else:
        talk.open_second()
        assert b"".join(payload for _, payload in talk.seconds[0].of(DATA, 1, skip=24)) == body
        assert talk.heads(talk.seconds[0], 1, skip=24) == [request(b"/p").head]
        talk.second_says(talk.respond(1))
        assert talk.client.of(HEADERS, 1)
    assert talk.relay.idle


def test_a_client_with_a_small_window_is_given_room_while_its_request_is_held():
    talk = Inspected(NO_SECRET, begin=False)
    talk.send(PREFACE + settings({}))
    talk.from_app(settings({Setting.INITIAL_WINDOW_SIZE: 100}) + SETTINGS_ACK)
    talk.send(SETTINGS_ACK)
    talk.ask(1, b"/p", body=b"a" * 1000, size=100)
    given = sum(int.from_bytes(payload, "big") for _, payload in talk.client.of(WINDOW_UPDATE, 1))
    assert given == 900
    talk.open_second()
    assert b"".join(payload for _, payload in talk.seconds[0].of(DATA, 1, skip=24)) == b"a" * 1000
    assert sum(int.from_bytes(payload, "big") for _, payload in talk.client.of(WINDOW_UPDATE, 1)) == given


@pytest.mark.parametrize("secret", [False, True])
def test_trailers_are_searched(secret):
    talk = Inspected(NO_SECRET)
    talk.send(talk.head(1, request(b"/"), ends=False) + frame(DATA, 0, 1, b"body"))
    trailers = [(b"x-note", SECRET if secret else b"fine")]
    talk.send(header_frames(1, talk.encoder.encode(trailers), end_stream=True))
    if secret:
        assert talk.refused(1) == BLOCKED
        assert not talk.seconds
    else:
        talk.open_second()
        assert talk.heads(talk.seconds[0], 1, skip=24)[1] == trailers


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
@pytest.mark.parametrize(
    ("fields", "body", "reason"),
    [
        ([(b"content-encoding", b"br")], b"abc", "request-encoding"),
        ([(b"content-encoding", b"gzip")], gzip.compress(bytes(400_000)), "request-ratio"),
        ([], b"a" * 5000, "request-window"),
    ],
)
def test_a_body_that_cannot_be_inspected(policy, fields, body, reason):
    talk = Inspected(NO_SECRET, limits=InspectionLimits(window=4000), **policy)
    talk.ask(1, b"/", *fields, body=body)
    assert talk.seen.reasons == [(reason, policy is FAIL)]
    if policy is FAIL:
        assert talk.refused(1).startswith(b"sidestep: policy shop/p, id x1")
        assert not talk.seconds
    else:
        talk.open_second()
        assert b"".join(payload for _, payload in talk.seconds[0].of(DATA, 1, skip=24)) == body


def test_a_long_body_is_read_to_its_end_and_its_stream_reset():
    talk = Inspected(NO_SECRET, limits=InspectionLimits(window=2000), **ENFORCE)
    talk.send(talk.head(1, request(b"/"), ends=False) + frame(DATA, 0, 1, b"a" * 2500))
    talk.open_second()
    assert talk.seconds[0].of(DATA, 1, skip=24)
    talk.send(frame(DATA, END_STREAM, 1, SECRET + b"b" * 100))
    assert talk.seconds[0].of(RST_STREAM, 1, skip=24)
    assert SECRET not in bytes(talk.seconds[0].data)
    assert talk.refused(1) == BLOCKED


def test_what_follows_an_answer_of_ours_is_dropped_and_not_judged():
    talk = Inspected(NO_SECRET, limits=InspectionLimits(window=2000), **ENFORCE)
    talk.send(talk.head(1, request(b"/", MATCH), ends=False) + frame(DATA, 0, 1, b"a" * 2500))
    talk.open_handler()
    assert talk.handlers[0].of(DATA, 1, skip=24)
    talk.peers.lose(talk.handlers[0])
    talk.peers.run()
    [fields] = talk.heads(talk.client, 1)
    assert fields[0] == (b":status", b"502")
    talk.send(frame(DATA, 0, 1, SECRET))
    talk.send(header_frames(1, talk.encoder.encode([(b"x-trailer", SECRET)]), end_stream=True))
    assert len(talk.heads(talk.client, 1)) == 1
    assert not talk.client.of(RST_STREAM, 1)


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_a_body_that_does_not_come(policy):
    talk = Inspected(NO_SECRET, limits=InspectionLimits(request_seconds=3.0), **policy)
    talk.send(talk.head(1, request(b"/"), ends=False))
    ticks(talk, 3)
    assert talk.seen.reasons == [("request-slow", policy is FAIL)]
    assert bool(talk.seconds) is (policy is ENFORCE)
    if policy is FAIL:
        assert talk.refused(1) == BLOCKED


def test_a_held_stream_that_its_client_resets_is_over():
    talk = Inspected(NO_SECRET)
    talk.send(talk.head(1, request(b"/"), ends=False) + frame(RST_STREAM, 0, 1, bytes(4)))
    assert talk.relay.idle
    assert not talk.relay._connection.diversion.wants_time or talk.relay._connection.diversion._resets.wants_time


# --- answers ----------------------------------------------------------------------------------------------------------


def answered(secret: bool):
    talk = Inspected(NO_LEAK)
    talk.ask(1, b"/")
    talk.open_second()
    return talk, b"x" * 100 + (SECRET if secret else b"") + b"y" * 100


@pytest.mark.parametrize("secret", [False, True])
def test_an_answer_is_held_until_there_is_a_verdict(secret):
    talk, body = answered(secret)
    talk.second_says(talk.respond(1, ends=False) + frame(DATA, 0, 1, body[:90]))
    assert talk.client.of(HEADERS) == []
    talk.second_says(frame(DATA, 0, 1, body[90:]) + frame(DATA, END_STREAM, 1, b""))
    if secret:
        assert talk.refused(1) == BLOCKED
    else:
        assert talk.heads(talk.client, 1) == [[(b":status", b"200")]]
        assert b"".join(payload for _, payload in talk.client.of(DATA, 1)) == body
    assert talk.relay.idle


def test_a_stream_is_never_held_and_reset():
    talk, body = answered(True)
    talk.second_says(talk.respond(1, (b"content-type", b"text/event-stream"), ends=False))
    assert talk.client.of(HEADERS, 1)
    talk.second_says(frame(DATA, 0, 1, body))
    assert talk.client.of(DATA, 1) == []
    assert talk.client.of(RST_STREAM, 1) == [(0, ErrorCode.CANCEL.to_bytes(4, "big"))]
    assert talk.seconds[0].of(RST_STREAM, 1, skip=24)
    assert talk.relay.idle


def test_an_answer_without_a_length_is_held_for_a_while():
    talk, body = answered(False)
    talk.second_says(talk.respond(1, ends=False) + frame(DATA, 0, 1, body))
    ticks(talk, 1)
    assert talk.client.of(HEADERS) == []
    ticks(talk, 1)
    assert talk.client.of(DATA, 1) == [(0, body)]


def test_a_long_answer_is_released_at_the_window():
    talk = Inspected(NO_LEAK, limits=InspectionLimits(window=1000))
    talk.ask(1, b"/")
    talk.open_second()
    talk.second_says(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"a" * 900))
    assert talk.client.data == b""
    talk.second_says(frame(DATA, 0, 1, b"a" * 200))
    assert sum(len(payload) for _, payload in talk.client.of(DATA, 1)) == 1100
    talk.second_says(frame(DATA, 0, 1, SECRET + b"b" * 100))
    assert talk.client.of(RST_STREAM, 1)


def test_rules_that_only_alert_read_answers_on_their_way():
    talk = Inspected(Rule("see", Action.ALERT, Direction.RESPONSE, patterns=(Pattern(regex="dawn"),)), **ENFORCE)
    talk.ask(1, b"/")
    assert talk.app.of(HEADERS, 1)
    answer = talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, SECRET)
    talk.from_app(answer)
    assert bytes(talk.client.data) == answer
    assert talk.seen.told == [("see", 2, False)]


def test_a_handlers_answer_is_judged_too():
    talk = Inspected(NO_LEAK)
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, SECRET))
    assert talk.refused(1) == BLOCKED
    assert talk.relay.idle


@pytest.mark.parametrize("mode", MODES)
def test_a_websocket_whose_messages_no_rule_wants(mode):
    talk = Inspected(NO_ADMIN, **MODES[mode])
    head = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/chat")]
    block = header_frames(1, talk.encoder.encode([*head, (b":authority", b"shop")]), end_stream=False)
    talk.send(block + frame(DATA, 0, 1, b"message"))
    assert bytes(talk.app.data) == block + frame(DATA, 0, 1, b"message")
    assert talk.seen.reasons == []


@pytest.mark.parametrize("secret", [False, True])
def test_a_held_request_is_copied_once_it_goes_on(secret):
    port_rule = http2_rule("tap", MATCH)
    ledger = Ledger()
    seen = Recorder()
    inspected = inspection(NO_SECRET)

    def relay(port):
        port.route = Route((), (port_rule,))
        mirror = wiretap_mirror(ledger, port=80)
        return Http2Relay(port, tls=True, mirror=mirror, gate=gate(inspected, seen))

    talk = Talk(relay=relay)
    talk.send(talk.head(1, request(b"/", MATCH), ends=False))
    for piece in (b"harmless ", SECRET if secret else b"still"):
        talk.send(frame(DATA, END_STREAM * (piece != b"harmless "), 1, piece))
    talk.peers.shell.copy()
    taps: Any = talk.peers.taps
    assert bool(taps) is not secret
    if not secret:
        taps[0].out += settings({})
        talk.peers.run()
        assert b"".join(payload for _, payload in taps[0].of(DATA, 1, skip=24)) == b"harmless still"
