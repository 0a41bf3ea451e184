"""Responses that a firewall judges: which, how much of them, what is told, which are held, and what becomes of them."""

from __future__ import annotations

import gzip

import pytest

from sidestep.engine.inspection.asking import Reason
from sidestep.engine.leg import Ending
from sidestep.policy.accepted_policy import Outcome as PolicyOutcome
from sidestep.policy.route import Route
from sidestep.protocols.http2 import DATA, END_STREAM, RST_STREAM, ErrorCode, frame
from sidestep.protocols.waf_messages import Outcome, Verdict
from tests.unit.engine.inspection.inspecting import answer, get
from tests.unit.engine.inspection.test_firewall import Http1, Http2, ask, second
from tests.unit.engine.shell import rule

PASS, LEAK = Verdict(1, Outcome.PASS), Verdict(1, Outcome.BLOCK, (951230, 959100), 0)
TEXT = b"Content-Type: text/html; charset=utf-8"


def http1(mode="Detect", **waf):
    """A shell whose request was judged, and let pass."""
    shell = Http1(mode, responses=True, **waf)
    shell.client(get(b"/a?b=1"))
    shell.asked.answer(PASS)
    shell.asked.questions.clear()
    return shell


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_response_is_judged_and_passes_meanwhile(chunk):
    shell = http1()
    sent = answer(b"error in your SQL syntax", TEXT, status=b"500 Oops", chunk=chunk)
    shell.app(sent)
    assert shell.to_client == sent
    [question] = shell.asked.questions
    assert (question.method, question.target, question.status) == (b"GET", b"/a?b=1", 500)
    assert question.body == b"error in your SQL syntax"
    assert (b"content-type", b"text/html; charset=utf-8") in question.fields
    shell.asked.answer(LEAK)
    [hit] = shell.seen.records
    assert (hit.rule, hit.action, hit.would_block, hit.in_response) == ("WAF", PolicyOutcome.ALERT, True, True)
    assert hit.pattern == "951230 959100"
    assert hit.exchange.status == 500
    shell.client(get(b"/next"))
    shell.asked.answer(PASS)
    assert shell.to_app.endswith(get(b"/next"))


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_response_is_held_until_it_is_judged(chunk, step):
    shell = http1("Enforce")
    sent = answer(b"error in your SQL syntax", TEXT, chunk=chunk)
    for at in range(0, len(sent), step):
        assert shell.relay.reads(shell.relay.app)
        shell.app(sent[at : at + step])
    assert shell.to_client == b""
    assert not shell.relay.reads(shell.relay.app)
    [question] = shell.asked.questions
    assert question.body == b"error in your SQL syntax"
    shell.asked.answer(PASS)
    assert shell.to_client == sent
    assert not shell.seen.records
    shell.client(get(b"/next"))
    shell.asked.answer(PASS)
    shell.app(answer(b"\x89PNG", b"Content-Type: image/png"))
    assert shell.to_client == sent + answer(b"\x89PNG", b"Content-Type: image/png")


def refused(shell, status=403):
    """Whether the client has got a refusal, and nothing else."""
    return shell.statuses == [status] and b"sidestep: policy shop/p, id x1\n" in shell.to_client


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_response_that_leaks_is_refused(chunk):
    shell = http1("Enforce")
    shell.app(answer(b"error in your SQL syntax", TEXT, status=b"500 Oops", chunk=chunk))
    shell.asked.answer(LEAK)
    assert refused(shell)
    [hit] = shell.seen.records
    assert (hit.rule, hit.action, hit.would_block, hit.in_response) == ("WAF", PolicyOutcome.BLOCK, False, True)
    assert hit.exchange.status == 500


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("fails", [False, True])
def test_a_response_without_a_verdict_passes_or_is_unavailable(reason, fails):
    shell = http1("Enforce", fails=fails)
    sent = answer(b"hello", TEXT)
    shell.app(sent)
    shell.asked.answer(reason)
    assert shell.seen.reasons == [(f"waf-{reason}", fails)]
    if fails:
        assert refused(shell, 503)
    else:
        assert shell.to_client == sent


@pytest.mark.parametrize("verdict", [PASS, LEAK])
@pytest.mark.parametrize("how", ["eof", "lose"])
def test_an_app_that_goes_away_after_its_response_is_no_reason_to_lose_it(how, verdict):
    shell = http1("Enforce")
    sent = answer(b"hello", TEXT)
    shell.app(sent)
    getattr(shell, how)(shell.relay.app)
    assert shell.to_client == b""
    shell.asked.answer(verdict)
    assert shell.to_client == sent if verdict is PASS else refused(shell)
    assert shell.relay.client.ending


@pytest.mark.parametrize("verdict", [PASS, LEAK])
def test_a_response_that_ends_with_the_connection(verdict):
    shell = http1("Enforce")
    sent = b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + TEXT + b"\r\n\r\nhello"
    shell.app(sent)
    assert not shell.asked.questions
    shell.eof(shell.relay.app)
    assert shell.to_client == b""
    shell.asked.answer(verdict)
    assert shell.to_client == sent if verdict is PASS else refused(shell)
    assert shell.relay.client.ending


def test_a_client_that_goes_away_meanwhile():
    for verdict in (PASS, LEAK):
        shell = http1("Enforce")
        shell.app(answer(b"hello", TEXT))
        shell.lose(shell.relay.client)
        shell.asked.answer(verdict)
        assert shell.to_client == b""


def test_a_client_that_has_finished_sending_meanwhile_gets_the_response():
    shell = http1("Enforce")
    shell.app(answer(b"hello", TEXT))
    shell.eof(shell.relay.client)
    shell.asked.answer(PASS)
    assert shell.to_client == answer(b"hello", TEXT)


def test_a_request_that_comes_meanwhile_waits_for_its_turn():
    shell = http1("Enforce")
    shell.app(answer(b"hello", TEXT))
    shell.client(get(b"/next"))
    assert [each.target for each in shell.asked.questions] == [b"/a?b=1"]
    shell.asked.answer(PASS)
    assert shell.to_client == answer(b"hello", TEXT)
    assert [each.target for each in shell.asked.questions] == [b"/a?b=1", b"/next"]
    shell.asked.answer(PASS)
    assert shell.to_app.endswith(get(b"/next"))
    shell.app(answer(b"two", TEXT))
    shell.asked.answer(PASS)
    assert shell.to_client == answer(b"hello", TEXT) + answer(b"two", TEXT)


@pytest.mark.parametrize("verdict", [PASS, LEAK])
def test_what_comes_behind_a_response_that_nobody_asked_for_does_not_come_first(verdict):
    shell = http1("Enforce")
    shell.app(answer(b"hello", TEXT) + b"HTTP/1.1 200 OK\r\n")
    assert shell.to_client == b""
    shell.asked.answer(verdict)
    assert shell.to_client.startswith(answer(b"hello", TEXT)) if verdict is PASS else refused(shell)


LONG = 200_000


def long_response(shell):
    """A response that does not fit the window, as far as it has come."""
    shell.app(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % LONG + TEXT + b"\r\n\r\n" + b"x" * 70_000)
    assert shell.to_client == b""
    [question] = shell.asked.questions
    assert len(question.body) == 65536
    shell.app(b"x" * 60_000)
    assert len(shell.to_client) > 130_000


def test_a_response_beyond_the_window_goes_on_and_is_broken_off_when_it_leaks():
    shell = http1("Enforce")
    long_response(shell)
    shell.asked.answer(LEAK)
    assert shell.seen.records[0].action is PolicyOutcome.BLOCK
    assert shell.relay.client.ending is Ending.ABORT


def test_of_a_response_that_has_gone_it_is_told_that_it_would_have_been_blocked():
    shell = http1("Enforce", fails=True)
    long_response(shell)
    shell.app(b"x" * (LONG - 130_000))
    shell.asked.answer(LEAK)
    [hit] = shell.seen.records
    assert (hit.action, hit.would_block) == (PolicyOutcome.ALERT, True)
    assert not shell.relay.client.ending
    shell.client(get(b"/next"))
    shell.asked.answer(PASS)
    assert shell.to_app.endswith(get(b"/next"))


def test_a_verdict_that_comes_before_the_end_of_a_long_response_lets_it_go():
    shell = http1("Enforce", body_bytes=10)
    shell.app(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n" + TEXT + b"\r\n\r\n" + b"x" * 20)
    shell.asked.answer(PASS)
    assert shell.to_client.endswith(b"x" * 20)
    shell.app(b"x" * 10)
    assert shell.to_client.endswith(b"x" * 30)


@pytest.mark.parametrize("verdict", [PASS, LEAK])
@pytest.mark.parametrize("after", ["nothing", "more", "end"])
def test_a_response_of_a_handler(after, verdict):
    shell = Http1("Enforce", responses=True, route=Route(intercepts=(rule(),)))
    shell.client(get(b"/", b"X-Dev: me"))
    shell.asked.answer(PASS)
    sent = answer(b"error", TEXT)
    shell.handler(sent)
    assert shell.to_client == b""
    if after == "more":
        shell.handler(b"HTTP/1.1 200 OK\r\n")
    elif after == "end":
        shell.eof(shell.handlers[-1])
    assert shell.to_client == b""
    shell.asked.answer(verdict)
    assert shell.to_client == sent if verdict is PASS else refused(shell)
    if verdict is PASS:
        shell.client(get(b"/next"))
        assert shell.asked.questions[-1].target == b"/next"


def test_nothing_is_told_of_a_response_that_passes():
    shell = http1()
    shell.app(answer(b"hello", TEXT))
    shell.asked.answer(PASS)
    assert not shell.seen.records
    assert not shell.seen.reasons


def test_without_a_verdict_it_is_counted_where_nothing_is_blocked():
    shell = http1()
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
@pytest.mark.parametrize("mode", ["Detect", "Enforce"])
def test_what_is_no_text_or_a_stream_is_not_judged(sent, mode):
    shell = http1(mode)
    shell.app(sent)
    assert shell.to_client == sent
    assert not shell.asked.questions
    shell.client(get(b"/next"))
    assert [each.target for each in shell.asked.questions] == [b"/next"]


CUSTOM = 'SecRule RESPONSE_STATUS "@eq 418" "id:10000001,phase:3,deny"'
HEADS = [
    answer(b"\x89PNG", b"Content-Type: image/png"),
    answer(b"", b"Location: https://evil.example/", status=b"302 Found"),
    b"HTTP/1.1 304 Not Modified\r\nContent-Type: text/html\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
]
"""Responses without a body that is text."""


@pytest.mark.parametrize("sent", HEADS)
def test_of_what_is_no_text_the_head_is_judged_by_custom_rules(sent):
    shell = http1(custom_responses=CUSTOM)
    shell.app(sent)
    assert shell.to_client == sent
    [question] = shell.asked.questions
    assert (question.status, question.body) == (int(sent[9:12]), b"")
    shell.asked.answer(LEAK)
    [hit] = shell.seen.records
    assert (hit.action, hit.would_block, hit.in_response) == (PolicyOutcome.ALERT, True, True)


@pytest.mark.parametrize("verdict", [PASS, LEAK])
@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("sent", HEADS)
def test_what_is_no_text_is_held_until_its_head_is_judged(sent, step, verdict):
    shell = http1("Enforce", custom_responses=CUSTOM)
    for at in range(0, len(sent), step):
        shell.app(sent[at : at + step])
    assert shell.to_client == b""
    assert len(shell.asked.questions) == 1
    shell.asked.answer(verdict)
    assert shell.to_client == sent if verdict is PASS else refused(shell)
    if verdict is PASS:
        shell.client(get(b"/next"))
        shell.asked.answer(PASS)
        assert shell.to_app.endswith(get(b"/next"))


def test_what_is_no_text_goes_on_when_its_head_is_judged_before_its_end():
    shell = http1("Enforce", custom_responses=CUSTOM)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Type: image/png\r\n\r\n"
    shell.app(head + b"\x89P")
    assert shell.to_client == b""
    shell.asked.answer(PASS)
    assert shell.to_client == head + b"\x89P"
    shell.app(b"NG")
    assert shell.to_client == head + b"\x89PNG"


@pytest.mark.parametrize("mode", ["Detect", "Enforce"])
def test_streams_are_not_judged_by_custom_rules(mode):
    shell = http1(mode, custom_responses=CUSTOM)
    sent = answer(b"data: 1\n\n", b"Content-Type: text/event-stream")
    shell.app(sent)
    assert shell.to_client == sent
    assert not shell.asked.questions


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


class Held(Http2):
    """Streams of which requests were let pass, and responses are judged."""

    def __init__(self, *streams, **waf):
        super().__init__("Enforce", responses=True, **waf)
        for stream in streams:
            ask(self, stream, b"/%d" % stream)
        self.asked.answer(*[PASS] * len(streams))
        self.asked.questions.clear()
        second(self)

    def respond_to(self, stream, body=b"error in your SQL syntax", *, ends=True):
        """The app answers the stream, on its second connection."""
        self.seconds[-1].out += self.respond(stream, (b"content-type", b"text/html"), ends=False)
        self.more(stream, body, ends=ends)

    def more(self, stream, body, *, ends=True):
        while body or ends:
            piece, body = body[:16384], body[16384:]
            last = ends and not body
            self.seconds[-1].out += frame(DATA, END_STREAM if last else 0, stream, piece)
            self.peers.run()
            if last or not body:
                return

    def got(self, stream):
        return b"".join(payload for _, payload in self.client.of(DATA, stream))


def test_a_stream_is_held_until_its_response_is_judged():
    talk = Held(1, 3)
    talk.respond_to(1)
    talk.respond_to(3, b"fine")
    assert (talk.status(1), talk.status(3)) == (None, None)
    assert [each.body for each in talk.asked.questions] == [b"error in your SQL syntax", b"fine"]
    talk.asked.waiting.pop(1)(PASS)
    assert (talk.status(1), talk.status(3), talk.got(3)) == (None, 200, b"fine")
    talk.asked.answer(PASS)
    assert (talk.status(1), talk.got(1)) == (200, b"error in your SQL syntax")
    assert not talk.relay.reads(talk.relay.app) or not talk.relay.done


@pytest.mark.parametrize("verdict", [PASS, LEAK])
@pytest.mark.parametrize("head_only", [False, True])
def test_the_head_of_a_stream_is_judged_by_custom_rules(head_only, verdict):
    talk = Held(1, custom_responses=CUSTOM)
    talk.seconds[-1].out += talk.respond(1, (b"content-type", b"image/png"), ends=head_only)
    talk.peers.run()
    if not head_only:
        talk.more(1, b"image")
    assert talk.status(1) is None
    assert [(each.status, each.body) for each in talk.asked.questions] == [(200, b"")]
    talk.asked.answer(verdict)
    if verdict is PASS:
        assert (talk.status(1), talk.got(1)) == (200, b"" if head_only else b"image")
    else:
        assert (talk.status(1), talk.got(1)[:22]) == (403, b"sidestep: policy shop/")


def test_under_detect_the_head_of_a_stream_is_judged_as_it_passes():
    talk = Http2("Detect", responses=True, custom_responses=CUSTOM)
    ask(talk, 1)
    talk.asked.answer(PASS)
    talk.asked.questions.clear()
    talk.from_app(talk.respond(1, (b"content-type", b"image/png")))
    assert talk.status(1) == 200
    assert [each.status for each in talk.asked.questions] == [200]
    talk.asked.answer(LEAK)
    assert [(each.would_block, each.in_response) for each in talk.seen.records] == [(True, True)]


def test_a_stream_whose_response_leaks_is_refused():
    talk = Held(1)
    talk.respond_to(1)
    talk.asked.answer(LEAK)
    assert talk.status(1) == 403
    assert talk.got(1).startswith(b"sidestep: policy shop/p, id ")
    [hit] = talk.seen.records
    assert (hit.action, hit.would_block, hit.in_response) == (PolicyOutcome.BLOCK, False, True)


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_without_a_verdict_on_its_response(fails):
    talk = Held(1, fails=fails)
    talk.respond_to(1)
    talk.asked.answer(Reason.DEADLINE)
    assert talk.status(1) == (503 if fails else 200)
    assert talk.seen.reasons == [("waf-deadline", fails)]


def test_a_stream_that_the_client_resets_meanwhile():
    for verdict in (PASS, LEAK):
        talk = Held(1)
        talk.respond_to(1)
        talk.send(frame(RST_STREAM, 0, 1, ErrorCode.CANCEL.to_bytes(4)))
        talk.asked.answer(verdict)
        assert talk.status(1) is None


def test_a_response_beyond_the_window_is_reset_when_it_leaks():
    talk = Held(1, body_bytes=1000)
    talk.respond_to(1, b"x" * 30_000, ends=False)
    assert talk.status(1) is None
    talk.more(1, b"x" * 60_000, ends=False)
    assert talk.status(1) == 200
    talk.asked.answer(LEAK)
    assert talk.client.of(RST_STREAM, 1)
    assert talk.seen.records[0].action is PolicyOutcome.BLOCK


def test_a_stream_goes_on_when_its_verdict_comes_before_its_end():
    talk = Held(1, body_bytes=10)
    talk.respond_to(1, b"x" * 20, ends=False)
    talk.asked.answer(PASS)
    assert talk.got(1) == b"x" * 20
    talk.more(1, b"y")
    assert talk.got(1) == b"x" * 20 + b"y"
