"""Responses that a firewall judges: which, how much of them, what is told, and that nothing waits for it."""

from __future__ import annotations

import gzip

import pytest

from sidestep.engine.inspection.asking import Reason
from sidestep.policy.accepted_policy import Outcome as PolicyOutcome
from sidestep.protocols.http2 import DATA, END_STREAM, frame
from sidestep.protocols.waf_messages import Outcome, Verdict
from tests.unit.engine.inspection.inspecting import answer, get
from tests.unit.engine.inspection.test_firewall import Http1, Http2, ask

PASS, LEAK = Verdict(1, Outcome.PASS), Verdict(1, Outcome.BLOCK, (951230, 959100), 0)
TEXT = b"Content-Type: text/html; charset=utf-8"


def http1(mode="Detect", **waf):
    """A shell whose request was judged, and let pass."""
    shell = Http1(mode, responses=True, **waf)
    shell.client(get(b"/a?b=1"))
    shell.asked.answer(PASS)
    shell.asked.questions.clear()
    return shell


@pytest.mark.parametrize("mode", ["Detect", "Enforce"])
@pytest.mark.parametrize("chunk", [0, 3])
def test_a_response_is_judged_and_passes_meanwhile(mode, chunk):
    shell = http1(mode)
    sent = answer(b"error in your SQL syntax", TEXT, status=b"500 Oops", chunk=chunk)
    shell.app(sent)
    assert shell.to_client == sent
    [question] = shell.asked.questions
    assert (question.method, question.target, question.status) == (b"GET", b"/a?b=1", 500)
    assert question.body == b"error in your SQL syntax"
    assert (b"content-type", b"text/html; charset=utf-8") in question.fields
    shell.asked.answer(LEAK)
    [hit] = shell.seen.records
    assert (hit.rule, hit.action, hit.would_block, hit.in_response) == ("WAF", PolicyOutcome.ALERT, False, True)
    assert hit.pattern == "951230 959100"
    assert hit.exchange.status == 500
    shell.client(get(b"/next"))
    shell.asked.answer(PASS)
    assert shell.to_app.endswith(get(b"/next"))


def test_nothing_is_told_of_a_response_that_passes():
    shell = http1()
    shell.app(answer(b"hello", TEXT))
    shell.asked.answer(PASS)
    assert not shell.seen.records
    assert not shell.seen.reasons


def test_without_a_verdict_it_is_counted_and_never_closed():
    shell = http1("Enforce", fails=True)
    shell.app(answer(b"hello", TEXT))
    shell.asked.answer(Reason.DEADLINE)
    assert shell.seen.reasons == [("waf-deadline", False)]
    assert shell.statuses == [200]


@pytest.mark.parametrize(
    "sent",
    [
        answer(b"\x89PNG", b"Content-Type: image/png"),
        answer(b"hello"),
        answer(b"data: 1\n\n", b"Content-Type: text/event-stream"),
        b"HTTP/1.1 304 Not Modified\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_what_is_no_text_or_a_stream_is_not_judged(sent):
    shell = http1()
    shell.app(sent)
    assert shell.to_client == sent
    assert not shell.asked.questions
    shell.client(get(b"/next"))
    assert [each.target for each in shell.asked.questions] == [b"/next"]


def test_a_body_is_judged_as_far_as_the_limit_goes_and_not_kept_beyond():
    shell = http1(body_bytes=100)
    body = b"x" * 60
    shell.app(b"HTTP/1.1 200 OK\r\nContent-Length: 6000\r\n" + TEXT + b"\r\n\r\n" + body)
    assert not shell.asked.questions
    shell.app(body)
    [question] = shell.asked.questions
    assert question.body == b"x" * 100
    for _ in range(98):
        shell.app(body)
    assert len(shell.asked.questions) == 1
    assert shell.to_client.endswith(body)


def test_a_body_is_judged_as_it_decodes():
    shell = http1()
    zipped = gzip.compress(b"error in your SQL syntax")
    shell.app(answer(zipped, TEXT, b"Content-Encoding: gzip"))
    [question] = shell.asked.questions
    assert question.body == b"error in your SQL syntax"
    assert not [value for name, value in question.fields if name == b"content-encoding"]


def test_what_was_broken_off_is_judged_as_far_as_it_came():
    shell = http1()
    shell.app(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n" + TEXT + b"\r\n\r\nerror")
    shell.eof(shell.relay.app)
    assert [each.body for each in shell.asked.questions] == [b"error"]


def test_a_large_head_is_not_judged():
    shell = http1()
    shell.app(answer(b"hello", TEXT, *[b"X: y"] * 600))
    assert not shell.asked.questions
    assert shell.seen.reasons == [("waf-response-head", False)]


def test_responses_are_left_alone_where_no_policy_wants_them():
    shell = Http1("Detect")
    shell.client(get())
    shell.asked.answer(PASS)
    shell.app(answer(b"error in your SQL syntax", TEXT))
    assert len(shell.asked.questions) == 1


def test_a_refused_request_has_no_response():
    shell = Http1("Enforce", responses=True)
    shell.client(get())
    shell.asked.answer(Verdict(1, Outcome.BLOCK, (942100,), 5))
    assert shell.statuses == [403]
    assert len(shell.asked.questions) == 1


def test_streams():
    talk = Http2("Detect", responses=True)
    for stream in (1, 3):
        ask(talk, stream, b"/%d" % stream)
    talk.asked.answer(PASS, PASS)
    talk.asked.questions.clear()
    for stream in (3, 1):
        talk.from_app(talk.respond(stream, (b"content-type", b"text/html"), ends=False))
        talk.from_app(frame(DATA, END_STREAM, stream, b"error %d" % stream))
    assert [(each.target, each.body) for each in talk.asked.questions] == [(b"/3", b"error 3"), (b"/1", b"error 1")]
    assert {(each.version, each.status) for each in talk.asked.questions} == {("2", 200)}
    talk.asked.answer(LEAK, PASS)
    assert [(each.rule, each.in_response) for each in talk.seen.records] == [("WAF", True)]
    assert [payload for _, payload in talk.client.of(DATA, 1)] == [b"error 1"]
