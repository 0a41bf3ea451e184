"""What sessions are told of requests and their answers, through the real relays and sinks."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.mirror import session_log
from sidestep.engine.mirror.events import (
    ANSWER,
    HEAD,
    HTTP1,
    NOTHING,
    Answerer,
    Gap,
    RequestHead,
    ResponseEnd,
    ResponseHead,
)
from sidestep.engine.mirror.gate import TapGate
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.session_log import PATIENCE, SessionLog
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.model.shown import Shown
from sidestep.policy.route import Decision, Route, Rule, SteeredPort
from tests.unit.engine.http2_peers import MATCH, Endpoint, Peers, reply, request
from tests.unit.engine.mirror.test_http1_copies import (
    BODY,
    CHUNKED,
    OK,
    POST,
    SWITCHING,
    TAP,
    UPGRADE,
    A,
    B,
    T,
)
from tests.unit.engine.shell import Shell, rule

FLOWS = replace(TAP, uid="uid-flows", heads_only=True)
ANSWERED = (
    b"HTTP/1.1 503 Busy\r\nContent-Length: 5\r\nSet-Cookie: S3CRET\r\nX-Shown: yes\r\nset-cookie:S3CRET\r\n\r\nsorry"
)
TRACED = (
    b"GET /t HTTP/1.1\r\nHost: app.test\r\nX-Dev: tap\r\n"
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n"
)


def scene(*rules, taps=(FLOWS,), tells=True, **options):
    port = SteeredPort(80, Route(rules, taps))
    relay = Http1Relay(port, tls=False, mirror=wiretap_mirror(Ledger(), port=80, tells=tells))
    return Shell(relay, **options)


def test_a_flow_is_told_once_with_its_answer():
    shell = scene()
    shell.now = 10.0
    shell.client(A)
    shell.app(OK)
    shell.client(TRACED)
    assert shell.mirror.notes == []
    shell.now = 12.5
    shell.app(ANSWERED[:-2])
    assert shell.mirror.notes == []
    shell.now = 13.0
    shell.app(ANSWERED[-2:])
    [note] = shell.mirror.notes
    assert (note.method, note.path, note.at, note.is_answer, note.number) == (b"GET", b"/t", 10.0, False, 0)
    assert note.trace == b"4bf92f3577b34da6a3ce929d0e0e4736"
    answer = note.answer
    assert (answer.status, answer.by, answer.handler, answer.seconds) == (503, "app", "", 3.0)
    assert (answer.sent, answer.received, answer.is_whole) == (0, 5, True)
    assert answer.head.split(b"\r\n") == [
        b"Content-Length: 5",
        b"Set-Cookie: [redacted]",
        b"X-Shown: yes",
        b"set-cookie: [redacted]",
    ]
    assert shell.to_client == OK + ANSWERED


def test_a_connection_that_is_older_than_the_flows_has_its_answers_told():
    shell = scene(tells=False)
    shell.client(T)
    shell.app(OK)
    [note] = shell.mirror.notes
    assert note.answer.status == 200


def test_sizes_are_those_on_the_wire():
    shell = scene()
    shell.client(CHUNKED + BODY)
    shell.app(OK)
    shell.client(POST % 5 + b"hello")
    shell.app(OK)
    chunked, plain = shell.mirror.notes
    assert (chunked.answer.sent, chunked.answer.received) == (len(BODY), 2)
    assert (plain.answer.sent, plain.answer.received) == (5, 2)
    assert not shell.mirror.requests
    assert not shell.mirror.responses


def test_an_interim_answer_is_none():
    shell = scene()
    shell.client(T)
    shell.app(b"HTTP/1.1 103 Early\r\n\r\n" + OK)
    [note] = shell.mirror.notes
    assert note.answer.status == 200


@pytest.mark.parametrize("begun", [b"", ANSWERED[:-1]], ids=["no answer", "a part"])
def test_an_answer_that_does_not_come_whole(begun):
    shell = scene()
    shell.client(T)
    if begun:
        shell.app(begun)
    shell.now = 4.0
    shell.lose(shell.relay.client)
    [note] = shell.mirror.notes
    assert (note.answer.status, note.answer.by) == ((503, "app") if begun else (0, ""))
    assert (note.answer.is_whole, note.answer.seconds) == (False, 4.0)


def test_a_switch_of_protocols_is_an_answer_and_nothing_more_is_listened_to():
    shell = scene()
    shell.client(UPGRADE)
    shell.app(SWITCHING)
    [note] = shell.mirror.notes
    assert (note.answer.status, note.answer.is_whole) == (101, True)
    assert not shell.mirror.is_listening


def test_what_is_diverted_is_told_at_once_and_its_answer_later():
    shell = scene(rule(), taps=(), tells=False)
    shell.now = 1.0
    shell.client(B)
    [note] = shell.mirror.notes
    assert (note.answer, note.is_answer, note.copied) == (None, False, False)
    shell.now = 3.0
    shell.handler(OK)
    [_, later] = shell.mirror.notes
    assert (later.is_answer, later.number, later.rule, later.method) == (True, note.number, note.rule, b"")
    assert note.number > 0
    answer = later.answer
    assert (answer.status, answer.by, answer.handler, answer.seconds) == (200, "handler", "shop/dev", 2.0)
    assert answer.head == b""
    shell.client(A)
    shell.app(OK)
    assert len(shell.mirror.notes) == 2


def test_an_answer_of_sidesteps_own():
    shell = scene(rule(), taps=(), tells=False)
    shell.client(B)
    shell.handler(b"nonsense\r\n\r\n")
    assert [each.answer.by for each in shell.mirror.notes if each.is_answer] == ["sidestep"]
    assert [each.answer.status for each in shell.mirror.notes if each.is_answer] == [502]


def test_a_request_that_no_handler_takes_is_the_apps_and_no_session_is_told():
    shell = scene(rule(), taps=(), tells=False, connect=lambda leg: leg.rule is None)
    shell.client(B)
    shell.app(OK)
    assert shell.to_client == OK
    assert shell.mirror.notes == []
    assert not shell.mirror.responses


def test_flows_beside_an_intercept_say_whose_handler_has_answered():
    both = b"GET /x HTTP/1.1\r\nHost: app.test\r\nX-Dev: me\r\nX-Dev: tap\r\n\r\n"
    shell = scene(rule())
    shell.client(both)
    shell.handler(OK)
    diverted, flow, answer = shell.mirror.notes
    assert (diverted.rule.uid, answer.rule.uid, answer.is_answer) == ("uid-dev", "uid-dev", True)
    assert (flow.rule.uid, flow.answer.handler) == ("uid-flows", "shop/dev")


def test_copies_are_told_at_once_and_their_answers_later():
    shell = scene(taps=(TAP, replace(TAP, uid="other")))
    shell.client(T)
    assert [each.answer for each in shell.mirror.notes] == [None, None]
    shell.app(OK)
    numbers = [each.number for each in shell.mirror.notes if not each.is_answer]
    assert len({*numbers}) == 2
    assert [each.number for each in shell.mirror.notes if each.is_answer] == numbers
    assert {each.answer.status for each in shell.mirror.notes if each.is_answer} == {200}


def test_flows_that_wait_long_are_told_without_the_answer_and_then_with_it():
    shell = scene()
    shell.now = 10.0
    shell.client(T)
    assert shell.mirror.waiting is not None
    shell.mirror.waiting.expire(10.0 + PATIENCE / 2)
    assert shell.mirror.notes == []
    shell.mirror.waiting.expire(10.0 + PATIENCE)
    [note] = shell.mirror.notes
    assert (note.answer, note.is_answer, note.fields[0]) == (None, False, (b"host", b"app.test"))
    assert shell.mirror.waiting is None
    shell.now = 15.0
    shell.app(ANSWERED)
    [_, later] = shell.mirror.notes
    assert (later.number, later.is_answer) == (note.number, True)
    assert (later.answer.status, later.answer.seconds) == (503, 5.0)
    assert b"X-Shown" in later.answer.head


SOME = Shown(("5xx",))


@pytest.mark.parametrize("tap", [replace(FLOWS, shown=SOME), replace(TAP, shown=SOME)])
def test_who_is_shown_some_statuses_is_told_nothing_without_the_answer(tap):
    shell = scene(taps=(tap,))
    shell.now = 10.0
    shell.client(T)
    assert shell.mirror.notes == []
    assert shell.mirror.waiting is None
    shell.app(ANSWERED)
    [note] = shell.mirror.notes
    assert (note.answer.status, note.is_answer, note.number, note.copied) == (503, False, 0, True)
    assert b"X-Shown" in note.answer.head


def test_others_are_not_kept_waiting_by_who_is_shown_some_statuses():
    shell = scene(taps=(FLOWS, replace(FLOWS, uid="some", shown=SOME)))
    shell.now = 10.0
    shell.client(T)
    shell.mirror.waiting.expire(10.0 + PATIENCE)
    assert [each.rule.uid for each in shell.mirror.notes] == ["uid-flows"]
    shell.app(ANSWERED)
    assert [(each.rule.uid, each.is_answer) for each in shell.mirror.notes[1:]] == [
        ("some", False),
        ("uid-flows", True),
    ]


def test_what_is_diverted_for_who_is_shown_some_statuses_is_told_with_its_answer():
    shell = scene(replace(rule(), shown=SOME), taps=(), tells=False)
    shell.client(B)
    assert shell.mirror.notes == []
    shell.handler(OK)
    [note] = shell.mirror.notes
    assert (note.answer.status, note.answer.handler, note.copied) == (200, "shop/dev", False)


def test_what_will_not_be_answered_is_told_to_who_is_shown_some_statuses():
    shell = scene(taps=(replace(FLOWS, shown=SOME),))
    shell.client(T)
    shell.relay.mirror.end()
    shell.relay.mirror.run()
    [note] = shell.mirror.notes
    assert note.answer.status == 0


def test_the_end_of_a_connection_ends_the_waiting():
    shell = scene()
    shell.client(T)
    shell.lose(shell.relay.client)
    shell.mirror.end()
    shell.mirror.run()
    assert shell.mirror.waiting is None


def test_nothing_is_kept_of_a_request_of_nobodys():
    shell = scene(rule())
    shell.client(A)
    shell.app(OK)
    assert shell.mirror.queue is None


# --- the sink by itself


class Offer:
    tally = None

    def __init__(self, *rules, intercept=None):
        self.decision = Decision(intercept, rules)


def head(exchange, *, heard=True, at=1.0):
    fields = ((b"host", b"a"),)
    return RequestHead(exchange, HTTP1, b"GET", b"/", b"a", fields, b"", None, 0, ends=True, at=at, heard=heard)


def sink():
    mirror = Mirror(hears_responses=True)
    return mirror, SessionLog(mirror, TapGate(0.0), port=80)


def test_what_is_wanted():
    _, log = sink()
    assert log.wants(1, Offer(FLOWS)) == HEAD | ANSWER
    assert log.wants(3, Offer(intercept=TAP)) == HEAD | ANSWER
    assert log.wants(5, Offer(TAP)) == NOTHING
    assert (log.holds(1), log.holds(5)) == (ANSWER, NOTHING)
    log.missed(1)
    assert log.holds(1) == NOTHING


def test_an_answer_that_cannot_be_heard_is_not_waited_for():
    mirror, log = sink()
    log.wants(1, Offer(FLOWS))
    log.consume(head(1, heard=False))
    [note] = mirror.notes
    assert (note.number, note.answer) == (0, None)
    assert log.holds(1) == NOTHING


def test_more_than_so_many_answers_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(session_log, "OPEN", 2)
    mirror, log = sink()
    for number in (1, 3, 5):
        log.wants(number, Offer(FLOWS))
        log.consume(head(number))
    assert [each.number for each in mirror.notes] == [0]
    log.consume(ResponseHead(1, Answerer.APP, 200, b"HTTP/1.1 200 OK\r\n\r\n", None, 2.0))
    log.consume(ResponseEnd(1, None, 3.0, [1, 2]))
    assert [each.answer for each in mirror.notes][1].received == 2
    log.consume(Gap(1, 0, {3}))
    assert mirror.notes[-1].answer.status == 0
    assert mirror.waiting is None


# --- HTTP/2


ALL = (Rule("all", "shop/all", lambda method, path, fields: True, heads_only=True),)


def peers_of(*, taps, tells, handler=None, app=None):
    mirror = wiretap_mirror(Ledger(), port=80, tells=tells)
    app = app or Endpoint(answer=reply(b"app", b"hello", trailers=((b"grpc-status", b"0"),)))
    peers = Peers(Endpoint(), app, handler=handler or (lambda _: None), taps=taps, mirror=mirror)
    notes = []
    peers.check = lambda: notes.extend(note for note in mirror.notes if not any(note is each for each in notes))
    return peers, notes


def test_streams_are_told_with_their_answers():
    peers, notes = peers_of(taps=ALL, tells=True)
    peers.client.send(request(b"/a"))
    peers.client.send(request(b"/b", method=b"POST", body=b"12345"))
    peers.run()
    assert [(each.path, each.answer.status, each.answer.by) for each in notes] == [
        (b"/a", 200, "app"),
        (b"/b", 200, "app"),
    ]
    assert [(each.answer.sent, each.answer.received) for each in notes] == [(0, 5), (5, 5)]
    assert all(each.answer.is_whole for each in notes)
    assert not peers.mirror.is_listening


def test_a_diverted_stream_is_answered_although_the_apps_answers_are_not_decoded():
    handler = Endpoint(answer=reply(b"handler", b"dev"))
    peers, notes = peers_of(taps=(), tells=False, handler=lambda _: handler)
    peers.client.send(request(b"/x", MATCH))
    peers.client.send(request(b"/y"))
    peers.run()
    diverted, answer = notes
    assert (diverted.path, answer.is_answer, answer.number) == (b"/x", True, diverted.number)
    assert (answer.answer.status, answer.answer.by, answer.answer.received) == (200, "handler", 3)
    assert not peers.mirror.responses
