"""Requests without a hit that are told: which ones, once each, with their answers, and without a change for anybody."""

from random import Random

import pytest

from sidestep.engine.http2.inspected_streams import LONGEST, SAMPLES
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.limits import InspectionLimits
from sidestep.engine.inspection.sampling import Sampling, number_of
from sidestep.engine.leg import Ending
from sidestep.policy.route import Route
from sidestep.protocols.http1 import LIMITS
from sidestep.protocols.http2 import DATA, END_STREAM, frame, settings
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import request
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    ENFORCE,
    FAIL,
    MODES,
    NO_ADMIN,
    NO_LEAK,
    NO_SECRET,
    Inspected,
    Recorder,
    answer,
    gate,
    get,
    inspection,
    post,
)
from tests.unit.engine.shell import everything

ALL = 100.0


def told(seen):
    return [(each.number, each.target, each.status, each.length) for each in seen.exchanges]


@pytest.mark.parametrize("percent", [0.0, 0.5, 5.0, 33.0, 99.0, 100.0])
def test_a_share_is_chosen_evenly_and_the_same_each_time(percent):
    random = Random(7)
    for flow in (random.getrandbits(63) for _ in range(20)):
        chosen = [Sampling(percent, flow).chooses(number) for number in range(2000)]
        assert abs(sum(chosen) - 20 * percent) <= 3
        for at in range(0, 1900, 100):
            assert abs(sum(chosen[at : at + 100]) - percent) <= 2
        counted = Sampling(percent, flow)
        for number in range(500):
            assert (counted.number, counted.is_due) == (number, chosen[number])
            counted.advance()


def test_few_requests_on_each_of_many_connections_are_chosen_as_often():
    random = Random(8)
    chosen = sum(Sampling(10.0, random.getrandbits(63)).is_due for _ in range(20_000))
    assert 1850 < chosen < 2150


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_each_request_is_told_once_with_its_answer(mode, cut):
    shell = Inspected(NO_ADMIN, NO_LEAK, sampling=Sampling(ALL, 1), **MODES[mode])
    for sent, got in (
        (get(b"/1"), answer(b"one")),
        (post(b"body", target=b"/2"), answer(b"two and more", status=b"404 Not Found", chunk=5)),
        (get(b"/1"), answer(b"")),
    ):
        for at in range(0, len(sent), cut):
            shell.client(sent[at : at + cut])
        for at in range(0, len(got), cut):
            shell.app(got[at : at + cut])
    assert told(shell.seen) == [(0, b"/1", 200, 3), (1, b"/2", 404, 12), (2, b"/1", 200, 0)]
    assert shell.seen.records == []
    assert dict(shell.seen.exchanges[0].fields)[b"host"] == b"app.test"
    assert shell.to_client == answer(b"one") + answer(b"two and more", status=b"404 Not Found", chunk=5) + answer(b"")


def test_requests_that_are_not_chosen_are_counted():
    sampling = Sampling(40.0, 3)
    shell = Inspected(NO_ADMIN, sampling=sampling)
    for number in range(20):
        shell.client(get(b"/%d" % (number % 3)))
        shell.app(answer(b"x"))
    wanted = [(number, b"/%d" % (number % 3), 200, 1) for number in range(20) if sampling.chooses(number)]
    assert told(shell.seen) == wanted
    assert 6 <= len(wanted) <= 10


def test_pipelined_requests_are_told_in_order():
    shell = Inspected(NO_ADMIN, sampling=Sampling(ALL, 1))
    shell.client(get(b"/1") + get(b"/2") + get(b"/3"))
    shell.app(answer(b"one") + answer(b"two") + answer(b"three"))
    assert told(shell.seen) == [(0, b"/1", 200, 3), (1, b"/2", 200, 3), (2, b"/3", 200, 5)]


def test_a_hit_is_told_as_a_hit_only():
    shell = Inspected(NO_ADMIN, sampling=Sampling(ALL, 1))
    shell.client(get(b"/admin"))
    shell.client(get(b"/"))
    shell.app(answer(b"ok"))
    assert [(record.rule, record.exchange.number) for record in shell.seen.records] == [("no-admin", 0)]
    assert told(shell.seen) == [(1, b"/", 200, 2)]
    assert shell.relay.gate is not None
    shell.relay.gate.end()
    assert len(shell.seen.exchanges) == 1


def test_what_is_not_answered_is_told_at_the_end_of_the_connection():
    shell = Inspected(NO_ADMIN, sampling=Sampling(ALL, 1))
    shell.client(get(b"/1") + get(b"/2"))
    shell.app(answer(b"one"))
    assert shell.relay.gate is not None
    shell.relay.gate.end()
    shell.relay.gate.end()
    assert told(shell.seen) == [(0, b"/1", 200, 3), (1, b"/2", None, None)]


def test_nobody_is_told_without_a_sampling():
    shell = Inspected(NO_ADMIN)
    shell.client(get(b"/1"))
    shell.app(answer(b"one"))
    assert told(shell.seen) == []


@pytest.mark.parametrize("rules", [(NO_ADMIN,), (NO_ADMIN, NO_SECRET), (NO_ADMIN, NO_LEAK)])
@pytest.mark.parametrize(
    ("sent", "got", "wanted"),
    [
        (get(b"/h").replace(b"GET", b"HEAD"), answer(b"")[:-5] + b"7\r\n\r\n", (200, 0)),
        (get(), b"HTTP/1.1 204 No Content\r\n\r\n", (204, 0)),
        (get(), b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(b"x"), (200, 1)),
        (get(), answer(b"0123456789" * 100, chunk=7), (200, 1000)),
        (get(b"/", b"Connection: Upgrade", b"Upgrade: x"), b"HTTP/1.1 101 S\r\nUpgrade: x\r\n\r\nraw", (101, None)),
        (get(), b"HTTP/1.1 200 OK\r\n\r\nuntil the end", (200, None)),
        (get(), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ncut", (200, None)),
        (get(), b"no answer at all\r\n\r\n", (None, None)),
    ],
)
@pytest.mark.parametrize("cut", [1, 10_000])
def test_answers_of_every_kind_are_told_once(rules, sent, got, wanted, cut):
    if wanted[0] == 200 and wanted[1] is None and NO_LEAK in rules:
        return  # held where a rule may block it
    shell = Inspected(*rules, sampling=Sampling(ALL, 1), **ENFORCE)
    shell.client(sent)
    for at in range(0, len(got), cut):
        shell.app(got[at : at + cut])
    assert shell.relay.gate is not None
    shell.relay.gate.end()
    assert [(each.status, each.length) for each in shell.seen.exchanges] == [wanted]


def test_a_sampled_request_passes_as_it_is():
    """The hot path is not left for a sample: neither for the request nor for its answer."""
    shell = Inspected(NO_ADMIN, sampling=Sampling(ALL, 1))
    relay = shell.relay
    shell.client(get(b"/first"))
    shell.app(answer(b"x"))
    got = answer(b"0123456789")
    for number in range(3):
        assert relay.passes(relay.client, get(b"/%d" % number)) is relay.app
        assert relay.passes(relay.app, got[:-4]) is relay.client
        assert relay.passes(relay.app, got[-4:]) is relay.client
    assert relay.passes(relay.client, get(b"/last")) is relay.app
    assert relay.passes(relay.app, got) is relay.client
    assert told(shell.seen)[1:] == [
        *((number + 1, b"/%d" % number, 200, 10) for number in range(3)),
        (4, b"/last", 200, 10),
    ]


@pytest.mark.parametrize("rules", [(NO_ADMIN,), (NO_ADMIN, NO_LEAK)])
def test_a_request_that_a_handler_answers_is_told(rules):
    shell = Inspected(*rules, route=Route((everything(),)), sampling=Sampling(ALL, 1), **ENFORCE)
    shell.client(get(b"/1"))
    shell.handler(answer(b"one", status=b"201 Created"))
    shell.client(get(b"/2"))
    shell.handler(answer(b"cut")[:-1])
    assert shell.relay.gate is not None
    shell.relay.gate.end()
    assert told(shell.seen) == [(0, b"/1", 201, 3), (1, b"/2", 200, None)]


def test_a_request_that_falls_back_to_the_app_is_told():
    shell = Inspected(NO_ADMIN, route=Route((everything(),)), sampling=Sampling(ALL, 1), auto=False, **ENFORCE)
    shell.client(get(b"/1"))
    shell.refuse(shell.handlers[0])
    shell.app(answer(b"one"))
    assert told(shell.seen) == [(0, b"/1", 200, 3)]


def test_a_request_that_is_refused_because_it_cannot_be_read_is_told():
    limits = InspectionLimits(window=10)
    shell = Inspected(NO_SECRET, limits=limits, sampling=Sampling(ALL, 1), **FAIL)
    shell.client(post(b"x" * 20, target=b"/long"))
    assert shell.to_client.startswith(b"HTTP/1.1 403")
    assert told(shell.seen) == [(0, b"/long", None, None)]
    assert shell.seen.reasons == [("request-window", True)]


@pytest.mark.parametrize("rules", [(NO_ADMIN,), (NO_LEAK,)])
def test_nothing_is_told_any_more_once_the_policies_are_gone(rules):
    inspected = inspection(*rules, **DETECT)
    shell = Inspected(inspected=inspected, sampling=Sampling(ALL, 1))
    shell.client(get(b"/1") + get(b"/2"))
    shell.app(answer(b"one"))
    inspected.give_way(None)
    shell.client(get(b"/3"))
    shell.app(answer(b"two") + answer(b"three"))
    assert told(shell.seen) == [(0, b"/1", 200, 3), (1, b"/2", 200, 3)]


def test_requests_that_are_exempt_are_counted_and_not_told():
    shell = Inspected(NO_ADMIN, sampling=Sampling(ALL, 1), exempt=frozenset({(b"GET", b"/admin"), (b"GET", b"/1")}))
    for path in (b"/1", b"/2", b"/admin"):
        shell.client(get(path))
        shell.app(answer(b"one"))
    assert told(shell.seen) == [(1, b"/2", 200, 3)]
    assert shell.seen.records == []


@pytest.mark.parametrize("handled", [False, True])
def test_an_answer_that_was_refused_is_not_told_as_the_answer(handled):
    shell = Inspected(NO_LEAK, route=Route((everything(),)) if handled else None, sampling=Sampling(ALL, 1), **FAIL)
    shell.client(get(b"/1"))
    said = answer(b"zzzz", b"Content-Encoding: br", b"Content-Type: text/plain", status=b"201 Created")
    (shell.handler if handled else shell.app)(said)
    assert shell.relay.gate is not None
    shell.relay.gate.end()
    assert shell.to_client.startswith(b"HTTP/1.1 403")
    assert [(each.status, each.length, each.answer) for each in shell.seen.exchanges] == [(None, None, [])]


@pytest.mark.parametrize("size", [1000, 3000, 60_000])
@pytest.mark.parametrize("rules", [(NO_ADMIN,), (NO_LEAK,)])
def test_the_client_is_read_on_while_few_bytes_of_heads_wait_for_answers(rules, size):
    """A sample and a rule about answers keep the head of their request: a client must not choose how many."""
    shell = Inspected(*rules, sampling=Sampling(ALL, 1), **DETECT)
    relay, head, asked = shell.relay, get(b"/1", b"X-Pad: " + b"x" * size), 0
    while asked < 200 and relay.reads(relay.client):
        # As the shell does, which does not ask again while bytes pass as they are.
        while relay.passes(relay.client, head) is not None:
            asked += 1
        shell.client(head)
        asked += 1
    assert asked * len(head) < LIMITS.hold + 2 * len(head) + LIMITS.memo_head
    for _ in range(asked):
        assert relay.passes(relay.app, answer(b"x")) is not None or not shell.app(answer(b"x"))
    assert relay.reads(relay.client)
    shell.client(head)
    shell.app(answer(b"x"))
    assert len(shell.seen.exchanges) == asked + 1


class Sampled(Talk):
    """A `Talk` around an inspected relay that tells all streams."""

    def __init__(self, *rules, exempt=frozenset(), **policy):
        self.seen = Recorder()
        made = gate(inspection(*rules, **policy), self.seen, sampling=Sampling(ALL, 1), exempt=exempt)
        super().__init__(relay=lambda port: Http2Relay(port, tls=True, gate=made))

    def ask(self, stream, path):
        self.send(self.head(stream, request(path), ends=True))


def test_streams_are_told_with_their_answers_and_stay_on_the_first_connection():
    talk = Sampled(NO_ADMIN, **FAIL)
    talk.ask(1, b"/1")
    talk.ask(3, b"/3")
    talk.ask(5, b"/1")
    talk.from_app(talk.respond(3, ends=False) + frame(DATA, END_STREAM, 3, b"three"))
    talk.from_app(talk.respond(1))
    assert told(talk.seen) == [(1, b"/3", 200, 5), (0, b"/1", 200, 0)]
    assert [number_of(stream) for stream in (1, 3, 5)] == [0, 1, 2]
    assert talk.relay.gate is not None
    talk.relay.gate.end()
    assert told(talk.seen)[2:] == [(2, b"/1", None, None)]
    assert not talk.seconds
    assert talk.relay.client.ending is not Ending.ABORT


@pytest.mark.parametrize("rules", [(NO_LEAK,), (NO_ADMIN, NO_SECRET)])
def test_streams_that_a_rule_may_block_are_told_with_their_answers(rules):
    talk = Sampled(*rules, **FAIL)
    talk.send(talk.head(1, request(b"/1", method=b"POST"), ends=False))
    talk.send(frame(DATA, END_STREAM, 1, b"body"))
    [second] = talk.seconds
    for said in (settings({}), talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, b"four")):
        second.out += said
        talk.peers.run()
    assert told(talk.seen) == [(0, b"/1", 200, 4)]


def test_a_reset_stream_is_told_without_a_length():
    talk = Sampled(NO_ADMIN)
    talk.ask(1, b"/1")
    talk.from_app(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"some"))
    talk.send(frame(3, 0, 1, b"\0\0\0\x08"))
    talk.ask(3, b"/3")
    talk.send(frame(3, 0, 3, b"\0\0\0\x08"))
    assert told(talk.seen) == [(0, b"/1", 200, None), (1, b"/3", None, None)]


def test_no_stream_is_told_any_more_once_the_policies_are_gone():
    talk = Sampled(NO_ADMIN)
    talk.ask(1, b"/1")
    assert talk.relay.gate is not None
    talk.relay.gate.connection.inspection.give_way(None)
    talk.ask(3, b"/3")
    talk.from_app(talk.respond(1) + talk.respond(3))
    assert told(talk.seen) == [(0, b"/1", 200, 0)]


def test_few_streams_are_kept_until_they_are_answered():
    """No client chooses how much: of more streams, and of very long requests, nothing but the request is told."""
    talk = Sampled(NO_ADMIN)
    talk.ask(1, b"/" + b"x" * LONGEST)
    assert [(each.number, each.status) for each in talk.seen.exchanges] == [(0, None)]
    for stream in range(3, 2 * SAMPLES + 9, 2):
        talk.ask(stream, b"/%d" % stream)
    assert talk.relay.gate is not None
    assert [each.number for each in talk.seen.exchanges] == [0, SAMPLES + 1, SAMPLES + 2, SAMPLES + 3]
    talk.from_app(talk.respond(3))
    assert talk.seen.exchanges[-1].status == 200
    talk.relay.gate.end()
    assert len(talk.seen.exchanges) == SAMPLES + 4


def test_streams_that_are_exempt_are_not_told():
    talk = Sampled(NO_ADMIN, exempt=frozenset({(b"GET", b"/1"), (b"GET", b"/admin")}))
    for stream, path in ((1, b"/1"), (3, b"/3"), (5, b"/admin")):
        talk.ask(stream, path)
        talk.from_app(talk.respond(stream))
    assert told(talk.seen) == [(1, b"/3", 200, 0)]


def test_a_stream_s_answer_that_was_refused_is_not_told_as_the_answer():
    talk = Sampled(NO_LEAK, **FAIL)
    talk.ask(1, b"/1")
    [second] = talk.seconds
    coded = ((b"content-encoding", b"br"), (b"content-type", b"text/plain"))
    for said in (settings({}), talk.respond(1, *coded, ends=False) + frame(DATA, END_STREAM, 1, b"zzzz")):
        second.out += said
        talk.peers.run()
    assert talk.seen.reasons == [("response-encoding", True)]
    assert [(each.status, each.length, each.answer) for each in talk.seen.exchanges] == [(None, None, [])]


def test_padding_is_no_part_of_the_length():
    talk = Sampled(NO_ADMIN)
    talk.ask(1, b"/1")
    padded = frame(DATA, 8 | END_STREAM, 1, b"\x03" + b"body" + bytes(3))
    for byte in talk.respond(1, ends=False) + padded:
        talk.from_app(bytes((byte,)))
    assert told(talk.seen) == [(0, b"/1", 200, 4)]
