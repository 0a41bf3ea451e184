"""Captured connections against policies: what each request would get, in the words of the pod proxy."""

import gzip
import time

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from websockets.protocol import CLIENT, SERVER, Protocol

from sidestep.engine import replay as module
from sidestep.engine.replay import BEHIND, CROWD, MISSING, NotInspected, Replay, ReplayedRequest
from sidestep.model.inspection import Action, Builtin, Direction, InspectionPolicy, Mode, Pattern, Rule, Threshold
from sidestep.policy.accepted_policy import Outcome
from sidestep.protocols.tcp_segments import find
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint
from tests.effort import examples
from tests.unit.engine.inspection.inspecting import DETECT, ENFORCE, FAIL, NO_ADMIN, answer, chunked, get, path, post

RAW = 101
CARD = b'{"card": "4111 1111 1111 1111"}'
CARDS = Rule("cards", Action.ALERT, Direction.RESPONSE, patterns=(Pattern(Builtin.CARD_NUMBER),))
NO_SECRET = Rule("no-secret", Action.BLOCK, patterns=(Pattern(regex="attack at dawn"),))


class Capture:
    """Connections to replay; a segment each tenth of a second."""

    def __init__(self, *rules, segment=1400, **policy):
        made = InspectionPolicy("p", "shop", rules=rules, **(policy or ENFORCE))
        self.replay = Replay([made])
        self.segment = segment
        self.at = 100.0
        self.found = []
        self.count = 0

    def connect(self, client="10.0.0.7"):
        self.count += 1
        ends = Endpoint(client, 40000 + self.count), Endpoint("fd00::2" if ":" in client else "10.0.0.2", 8080)
        conversation = Conversation(*ends, segment_size=self.segment)
        self.take(conversation.opening())
        return conversation

    def take(self, packets):
        for packet in packets:
            self.at += 0.1
            self.found += self.replay.feed(find(RAW, packet), self.at)

    def said(self, conversation, *parts):
        """What client and server said in turns, then both ends finish."""
        for number, part in enumerate(parts):
            self.take(conversation.data(part, from_client=number % 2 == 0))
        self.take(conversation.finish(from_client=True))
        self.take(conversation.finish(from_client=False))

    def all(self):
        self.found += self.replay.finish(self.at)
        return self.found

    def verdicts(self):
        requests = [each for each in self.all() if isinstance(each, ReplayedRequest)]
        return [(each.target, each.outcome, [hit.rule for hit in each.hits]) for each in requests]

    def reasons(self):
        return [each.reason for each in self.all() if isinstance(each, NotInspected)]


@pytest.mark.parametrize("segment", [64, 1400])
def test_every_request_is_told_with_what_it_would_get(segment):
    capture = Capture(NO_ADMIN, CARDS, segment=segment)
    said = [get(b"/"), answer(), get(b"/admin/users"), answer(CARD), post(b"x" * 300, chunk=50), answer(CARD, chunk=9)]
    capture.said(capture.connect(), *said)
    assert capture.verdicts() == [
        (b"/", Outcome.PASS, []),
        (b"/admin/users", Outcome.BLOCK, ["no-admin", "cards"]),  # what was captured behind a block is judged
        (b"/p", Outcome.ALERT, ["cards"]),
    ]
    assert capture.reasons() == []
    first, second, third = capture.found
    assert [each.number for each in (first, second, third)] == [1, 2, 3]
    assert (first.where.number, first.where.client, first.where.server) == (1, "10.0.0.7:40001", "10.0.0.2:8080")
    assert (first.method, first.host, first.protocol) == (b"GET", b"app.test", "http/1")
    assert 100 < first.at < second.at < third.at
    assert third.hits[0].pattern == "CardNumber"


def test_pipelined_requests_are_told_once_each():
    capture = Capture(NO_ADMIN)
    capture.said(capture.connect(), get(b"/1") + get(b"/admin") + get(b"/2"), answer() + answer() + answer())
    assert [target for target, *_ in capture.verdicts()] == [b"/1", b"/admin", b"/2"]


@pytest.mark.parametrize("rules", [(CARDS,), (NO_SECRET,), (CARDS, NO_SECRET)])
def test_requests_and_answers_in_which_nothing_is_found_are_told(rules):
    capture = Capture(*rules)
    capture.said(capture.connect(), post(b"nothing"), answer())
    capture.said(capture.connect(), get(b"/"), answer())
    assert [(outcome, rules) for _, outcome, rules in capture.verdicts()] == [(Outcome.PASS, [])] * 2


def test_a_policy_that_detects_says_what_it_would_block():
    capture = Capture(NO_ADMIN, **DETECT)
    capture.said(capture.connect(), get(b"/admin"), answer())
    [request] = capture.all()
    assert request.outcome is Outcome.ALERT
    assert request.hits[0].would_block


@pytest.mark.parametrize("first", [False, True], ids=["client-first", "settings-of-the-server-first"])
def test_http2(first):
    capture = Capture(NO_ADMIN, CARDS)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    conversation = capture.connect()

    def step(speaker, other, *, from_client):
        data = speaker.data_to_send()
        capture.take(conversation.data(data, from_client=from_client))
        return other.receive_data(data)

    server.initiate_connection()
    client.initiate_connection()
    if first:
        step(server, client, from_client=False)
    head = [(":method", "GET"), (":scheme", "http"), (":authority", "shop")]
    for stream, target in ((1, "/admin"), (3, "/"), (5, "/")):
        client.send_headers(stream, [*head, (":path", target)], end_stream=True)
    for event in step(client, server, from_client=True):
        if isinstance(event, h2.events.RequestReceived):
            server.send_headers(event.stream_id, [(":status", "200")])
            server.send_data(event.stream_id, CARD if event.stream_id == 3 else b"ok", end_stream=True)
    step(server, client, from_client=False)
    step(client, server, from_client=True)
    capture.take(conversation.reset(from_client=True))
    assert capture.verdicts() == [
        (b"/admin", Outcome.BLOCK, ["no-admin"]),
        (b"/", Outcome.ALERT, ["cards"]),
        (b"/", Outcome.PASS, []),
    ]
    assert {each.protocol for each in capture.found} == {"h2"}
    assert capture.reasons() == []


def test_thresholds_count_in_the_time_of_the_capture():
    often = Rule("often", Action.BLOCK, match=path("/login"), threshold=Threshold(3, 60.0))
    capture = Capture(often)
    for pause in (0, 0, 100, 0, 0):
        capture.at += pause
        capture.said(capture.connect(), get(b"/login"), answer())
    capture.said(capture.connect("10.0.0.8"), get(b"/login"), answer())
    outcomes = [outcome for _, outcome, _ in capture.verdicts()]
    assert outcomes == [Outcome.PASS, Outcome.PASS, Outcome.PASS, Outcome.PASS, Outcome.BLOCK, Outcome.PASS]


def test_sources_are_those_of_the_capture():
    capture = Capture(NO_ADMIN)
    capture.said(capture.connect("fd00::7"), get(b"/admin"), answer())
    [request] = capture.all()
    assert request.where.client == "[fd00::7]:40001"


def test_bodies_are_decoded_and_what_cannot_be_read_is_said_of_its_request():
    capture = Capture(NO_SECRET, **FAIL)
    body = gzip.compress(b"we attack at dawn")
    capture.said(capture.connect(), post(body, b"Content-Encoding: gzip"), answer())
    capture.said(capture.connect(), post(body, b"Content-Encoding: br", target=b"/br"), answer())
    first, second = capture.all()
    assert (first.outcome, first.unread) == (Outcome.BLOCK, [])
    assert (second.outcome, second.unread) == (Outcome.PASS, ["request-encoding"])


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), "tls"),
        (b"SSH-2.0-OpenSSH\r\n", "not-http"),
        (b"GE", "incomplete-first-message"),
        (b"GET / HT", "h1-truncated-head"),
        (post(b"", b"Transfer-Encoding: chunked"), "h1-ambiguous-length"),
    ],
)
def test_what_is_not_inspected_says_why(said, reason):
    capture = Capture(NO_ADMIN)
    capture.said(capture.connect(), said)
    assert capture.reasons() == [reason]


def test_a_server_that_speaks_first():
    capture = Capture(NO_ADMIN)
    conversation = capture.connect()
    capture.take(conversation.data(b"220 mail\r\n", from_client=False))
    capture.take(conversation.reset(from_client=False))
    assert capture.reasons() == ["server-first"]


def test_bytes_that_the_capture_lacks_end_the_judging():
    capture = Capture(NO_ADMIN)
    conversation = capture.connect()
    capture.take(conversation.data(get(b"/admin"), from_client=True))
    conversation.lost(5, from_client=True)
    capture.said(conversation, get(b"/admin"), answer())
    assert [target for target, *_ in capture.verdicts()] == [b"/admin"]
    assert capture.reasons() == [MISSING]


def test_connections_beyond_the_bound_are_told(monkeypatch):
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    capture = Capture(NO_ADMIN)
    conversations = [capture.connect() for _ in range(3)]
    for each in conversations:
        capture.take(each.data(get(b"/admin"), from_client=True))
    for each in conversations:
        capture.said(each, get(b"/admin"), answer())
    assert len(capture.verdicts()) == 4
    assert capture.reasons() == [CROWD]
    assert capture.replay.connections == 3


def test_requests_are_told_early_when_there_are_many_and_hits_of_their_answers_still_come(monkeypatch):
    monkeypatch.setattr(module, "MAX_REQUESTS", 8)
    capture = Capture(CARDS)
    conversation = capture.connect()
    capture.take(conversation.data(b"".join(get(b"/%d" % number) for number in range(12)), from_client=True))
    assert len(capture.found) == 4
    capture.take(conversation.data(answer(CARD), from_client=False))
    told = [(each.number, len(each.hits)) for each in capture.all()]
    assert (1, 0) in told
    assert (1, 1) in told


def test_what_waits_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 1000)
    capture = Capture(NO_ADMIN)
    conversation = capture.connect()
    capture.take(conversation.data(b"x" * 3000, from_client=False))
    assert capture.reasons() == [BEHIND]


def test_random_cuts_make_no_difference():
    said = [get(b"/a"), answer(CARD), post(b"attack " + b"at dawn", chunk=3), answer(chunked(CARD, 4))]
    found = []
    for segment in (64, 77, 1400):
        capture = Capture(NO_SECRET, CARDS, segment=segment)
        capture.said(capture.connect(), *said)
        found.append(capture.verdicts())
    assert found[0] == found[1] == found[2]


def test_what_was_captured_of_an_unfinished_body_is_judged():
    capture = Capture(NO_SECRET)
    conversation = capture.connect()
    capture.take(conversation.data(post(b"attack at dawn" + b"." * 40)[:-40], from_client=True))
    [found] = capture.all()
    assert [record.rule for record in found.hits] == ["no-secret"]


def test_a_policy_of_each_mode():
    enforce = InspectionPolicy("p", "shop", rules=(NO_ADMIN,), mode=Mode.ENFORCE)
    replay = Replay([enforce, replace(enforce, name="q", mode=Mode.DETECT)])
    conversation = Conversation(Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 2))
    packets = [*conversation.opening(), *conversation.data(get(b"/admin"), from_client=True)]
    found = [each for packet in packets for each in replay.feed(find(RAW, packet), 1.0)] + list(replay.finish(2.0))
    [request] = found
    assert [(hit.policy, hit.action.name, hit.would_block) for hit in request.hits] == [
        ("shop/p", "BLOCK", False),
        ("shop/q", "ALERT", True),
    ]


PIECES = [
    get(b"/admin"),
    get(b"/", b"Upgrade: websocket", b"Connection: upgrade"),
    post(b"attack at dawn", chunk=3),
    post(gzip.compress(CARD), b"Content-Encoding: gzip"),
    answer(CARD),
    answer(CARD, chunk=4),
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    bytes(9),
    b"\0\0\4\1\5\0\0\0\1\x82\x84\x86\x87",
    b"\x16\x03\x01",
]


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=40)),
            st.sampled_from(["data", "finish", "lost"]),
            st.floats(0, 100),
        ),
        max_size=20,
    )
)
def test_a_hostile_capture_raises_nothing(talk):
    capture = Capture(NO_ADMIN, NO_SECRET, CARDS, **FAIL)
    conversation = capture.connect()
    finished = set()
    for from_client, data, what, pause in talk:
        capture.at += pause
        if from_client in finished:
            continue
        if what == "data":
            capture.take(conversation.data(data, from_client=from_client))
        elif what == "lost":
            conversation.lost(len(data), from_client=from_client)
        else:
            finished.add(from_client)
            capture.take(conversation.finish(from_client=from_client))
    for each in capture.all():
        assert isinstance(each, (ReplayedRequest, NotInspected))


def test_messages_of_a_websocket_belong_to_its_request():
    capture = Capture(NO_SECRET, CARDS)
    upgrade = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    agreed = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    client, server = Protocol(CLIENT), Protocol(SERVER)
    client.send_text(b"we attack at dawn")
    server.send_text(CARD)
    capture.said(
        capture.connect(),
        get(b"/chat", *upgrade, b"Sec-WebSocket-Version: 13"),
        agreed,
        b"".join(client.data_to_send()),
        b"".join(server.data_to_send()),
    )
    assert capture.verdicts() == [(b"/chat", Outcome.BLOCK, ["no-secret", "cards"])]
    assert capture.reasons() == []


def test_the_work_for_bytes_that_wait_grows_with_their_number():
    """Of an app that speaks first, a byte at a time, all bytes wait."""

    def cost(count):
        capture = Capture(NO_ADMIN)
        conversation = capture.connect()
        packets = [each for _ in range(count) for each in conversation.data(b"x", from_client=False)]
        began = time.process_time()
        capture.take(packets)
        return time.process_time() - began

    cost(100)
    assert cost(40_000) < 9 * cost(10_000)
