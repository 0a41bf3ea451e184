"""Requests that a firewall judges as a whole: what is asked, what is held meanwhile, what becomes of each answer."""

from __future__ import annotations

import gzip

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.asking import Reason
from sidestep.engine.inspection.firewall import Firewall
from sidestep.model.inspection import Mode
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http2 import DATA, END_STREAM, HEADERS, RST_STREAM, ErrorCode, frame, settings
from sidestep.protocols.waf_messages import Outcome, Verdict
from sidestep.snapshots.waf import PortWaf, Profile
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import Message, request
from tests.unit.engine.inspection.inspecting import (
    NO_SECRET,
    SECRET,
    Recorder,
    answer,
    chunked,
    gate,
    get,
    inspection,
    post,
)
from tests.unit.engine.shell import Shell, rule

PASS, BLOCK = Verdict(1, Outcome.PASS), Verdict(1, Outcome.BLOCK, (942100, 949110), 5)
GRPC = (b"content-type", b"application/grpc")


class Asked:
    """Who is asked, and answers when the test says so."""

    def __init__(self) -> None:
        self.questions = []
        self.waiting = []

    def __call__(self, subject, *, seconds, on_answer):
        self.questions.append(subject)
        self.waiting.append(on_answer)

    def answer(self, *answers):
        for each in answers:
            self.waiting.pop(0)(each)


def port_waf(mode="Enforce", *, fails=False, body_bytes=65536, blocks=True, responses=False, custom_responses=""):
    enforces = mode == "Enforce"
    profile = Profile(1, 5, 256, responses=responses, custom_responses=custom_responses)
    return PortWaf(("shop/p",), profile, body_bytes, 0.25, blocks, enforces, enforces and fails, "shop/p", "shop/p")


def made_gate(seen, asked, waf, rules=()):
    inspected = inspection(*rules, mode=Mode.ENFORCE if waf.enforces else Mode.DETECT)
    inspected.waf = waf
    return gate(inspected, seen, firewall=Firewall(waf, asked, ("10.0.0.9", 5000), ("10.0.0.2", 8443)))


class Http1(Shell):
    """A shell around an HTTP/1 relay whose requests are judged."""

    def __init__(self, mode="Enforce", *, route=None, **waf):
        self.seen, self.asked = Recorder(), Asked()
        made = made_gate(self.seen, self.asked, port_waf(mode, **waf))
        super().__init__(Http1Relay(SteeredPort(8443, route or Route()), tls=True, gate=made), app_open=True, auto=True)
        made.wake = self.answered

    @property
    def statuses(self):
        return [int(part[:3]) for part in self.to_client.split(b"HTTP/1.1 ")[1:]]


class Http2(Talk):
    """The same for HTTP/2."""

    def __init__(self, mode="Enforce", *, rules=(), **waf):
        self.seen, self.asked = Recorder(), Asked()
        made = made_gate(self.seen, self.asked, port_waf(mode, **waf), rules)
        super().__init__(relay=lambda port: Http2Relay(port, tls=True, gate=made))
        made.wake = self.wake

    def wake(self, call):
        self.peers.shell.answered(call)
        self.peers.run()

    def status(self, stream):
        found = self.heads(self.client, stream)
        return int(dict(found[0])[b":status"]) if found else None

    def at_app(self, stream):
        """Whether the app has got a head of the stream, on whichever connection."""
        return any(
            end.of(HEADERS, stream, skip=skip) for end, skip in [(self.app, 0), *((s, 24) for s in self.seconds)]
        )

    def body_at_app(self, stream):
        """The data of the stream that the app has got, on whichever connection."""
        ends = [(self.app, 0), *((second, 24) for second in self.seconds)]
        return b"".join(payload for end, skip in ends for _, payload in end.of(DATA, stream, skip))


# --- HTTP/1 -----------------------------------------------------------------------------------------------------------


def test_a_request_is_held_until_it_is_judged():
    shell = Http1()
    shell.client(get(b"/a?b=1", b"X-A: 1"))
    assert shell.to_app == b""
    [question] = shell.asked.questions
    assert (question.method, question.target, question.version) == (b"GET", b"/a?b=1", "1.1")
    assert (b"x-a", b"1") in question.fields
    assert (question.client, question.server) == (("10.0.0.9", 5000), ("10.0.0.2", 8443))
    shell.asked.answer(PASS)
    assert shell.to_app == get(b"/a?b=1", b"X-A: 1")
    shell.app(answer())
    assert shell.statuses == [200]
    assert shell.seen.told == []


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_body_is_asked_about_as_a_whole(chunk):
    shell = Http1()
    sent = post(b"hello world", chunk=chunk)
    for at in range(0, len(sent), 5):
        shell.client(sent[at : at + 5])
    assert shell.to_app == b""
    assert shell.asked.questions[0].body == b"hello world"
    shell.asked.answer(PASS)
    assert shell.to_app == sent


def test_no_head_goes_ahead_of_the_verdict():
    shell = Http1()
    sent = post(b"evil", b"Expect: 100-continue", target=b"/?id=1")
    shell.client(sent[:-4])
    assert shell.to_app == b""
    assert shell.to_client == b"HTTP/1.1 100 Continue\r\n\r\n"
    shell.client(sent[-4:])
    shell.asked.answer(BLOCK)
    assert shell.to_app == b""
    assert shell.statuses == [100, 403]

    shell.client(sent)
    shell.asked.answer(PASS)
    assert shell.to_app == sent
    shell.app(b"HTTP/1.1 100 Continue\r\n\r\n" + answer())
    assert shell.statuses == [100, 403, 100, 100, 200]


def test_a_malicious_request_is_refused_and_the_connection_goes_on():
    shell = Http1()
    shell.client(post(b"evil"))
    shell.asked.answer(BLOCK)
    assert shell.to_app == b""
    assert shell.to_client.endswith(b"sidestep: policy shop/p, id x1\n")
    [hit] = shell.seen.records
    assert (hit.policy, hit.rule, hit.pattern, hit.would_block) == ("shop/p", "WAF", "942100 949110", False)
    shell.client(get(b"/next"))
    shell.asked.answer(PASS)
    shell.app(answer())
    assert shell.statuses == [403, 200]


def test_requests_that_come_together_are_judged_one_after_the_other_and_answered_in_order():
    shell = Http1()
    shell.client(get(b"/1") + get(b"/2") + post(b"3") + get(b"/4"))
    assert [each.target for each in shell.asked.questions] == [b"/1"]
    shell.asked.answer(PASS)
    shell.app(answer())
    shell.asked.answer(BLOCK)
    shell.asked.answer(PASS)
    shell.app(answer())
    shell.asked.answer(BLOCK)
    assert shell.statuses == [200, 403, 200, 403]
    assert shell.to_app == get(b"/1") + post(b"3")


def test_what_a_handler_wants_is_judged_first():
    shell = Http1(route=Route(intercepts=(rule(),)))
    shell.client(get(b"/", b"X-Dev: me"))
    assert not shell.handlers
    shell.asked.answer(BLOCK)
    assert not shell.handlers
    shell.client(get(b"/", b"X-Dev: me"))
    shell.asked.answer(PASS)
    assert len(shell.handlers) == 1


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("fails", [False, True])
def test_without_a_verdict_a_request_passes_or_is_unavailable(reason, fails):
    shell = Http1(fails=fails)
    shell.client(get())
    shell.asked.answer(reason)
    assert shell.seen.reasons == [(f"waf-{reason}", fails)]
    if fails:
        assert shell.statuses == [503]
        assert shell.to_app == b""
    else:
        assert shell.to_app == get()


def test_detect_asks_and_holds_nothing():
    shell = Http1("Detect")
    shell.client(post(b"evil"))
    assert shell.to_app == post(b"evil")
    assert shell.asked.questions[0].body == b"evil"
    shell.asked.answer(BLOCK)
    assert [each.would_block for each in shell.seen.records] == [True]
    shell.app(answer())
    assert shell.statuses == [200]


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("chunk", [0, 10])
def test_a_body_over_the_limit_is_not_judged(blocks, chunk):
    shell = Http1(body_bytes=100, blocks=blocks)
    sent = post(b"x" * 101, chunk=chunk)
    shell.client(sent)
    assert shell.asked.questions == []
    if blocks:
        assert shell.statuses == [403]
        assert shell.to_app == b""
        assert shell.seen.records[0].pattern == "over-limit"
    else:
        assert shell.to_app == sent
        assert shell.seen.reasons == [("waf-over-limit", False)]


def test_an_encoded_body_is_judged_decoded_and_without_the_field_that_says_so():
    shell = Http1()
    shell.client(post(gzip.compress(b"a=evil"), b"Content-Encoding: gzip"))
    [question] = shell.asked.questions
    assert question.body == b"a=evil"
    assert not [name for name, _ in question.fields if name == b"content-encoding"]


@pytest.mark.parametrize("encoding", [b"br", b"gzip"])
def test_an_encoding_that_cannot_be_read_is_over_the_limit(encoding):
    shell = Http1()
    shell.client(post(b"no such data", b"Content-Encoding: " + encoding))
    assert shell.asked.questions == []
    assert shell.statuses == [403]


def test_a_body_in_tiny_chunks_is_no_way_around():
    shell = Http1(body_bytes=1000)
    body = chunked(b"x" * 900, 1, trailer=b"").replace(b";a=b", b";" + b"e" * 100)
    shell.client(post(b"", chunk=1).partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body)
    assert shell.to_app == b""
    assert shell.statuses == [403]


def test_a_body_that_does_not_come_is_refused():
    shell = Http1()
    shell.client(post(b"hello")[:-1])
    shell.now = shell.relay.deadline
    shell.expire()
    assert shell.to_app == b""
    assert shell.statuses == [403]


def test_a_client_that_has_finished_sending_gets_its_answer():
    shell = Http1()
    shell.client(get())
    shell.eof(shell.relay.client)
    assert shell.to_app == b""
    shell.asked.answer(PASS)
    assert shell.to_app == get()
    shell.app(answer())
    assert shell.statuses == [200]


def test_an_answer_after_the_end_changes_nothing():
    shell = Http1()
    shell.client(get())
    shell.lose(shell.relay.client)
    shell.asked.answer(BLOCK)
    assert shell.to_app == b""


def test_edited_policies_apply_from_the_next_request_on():
    shell = Http1()
    inspected = shell.relay.gate.connection.inspection
    newer = inspection(mode=Mode.DETECT)
    newer.waf = port_waf("Detect")
    inspected.give_way(newer)
    shell.client(get())
    assert shell.to_app == get()
    shell.app(answer())
    without = inspection(mode=Mode.DETECT)
    newer.give_way(without)
    shell.client(get(b"/2"))
    assert shell.to_app == get() + get(b"/2")
    assert len(shell.asked.questions) == 1


# --- HTTP/2 -----------------------------------------------------------------------------------------------------------


def ask(talk, stream, path=b"/", *fields, body=None):
    talk.send(talk.head(stream, request(path, *fields), ends=body is None))
    if body is not None:
        talk.send(frame(DATA, END_STREAM, stream, body))


def second(talk):
    talk.seconds[-1].out += settings({})
    talk.peers.run()


@pytest.mark.parametrize("body", [None, b"hello"])
def test_a_stream_is_held_until_it_is_judged(body):
    talk = Http2()
    ask(talk, 1, b"/a", body=body)
    assert not talk.at_app(1)
    [question] = talk.asked.questions
    assert (question.target, question.version, question.body) == (b"/a", "2", body or b"")
    assert (b"host", b"shop") in question.fields
    talk.asked.answer(PASS)
    second(talk)
    assert talk.at_app(1)


def test_streams_do_not_wait_for_each_other():
    talk = Http2()
    for stream in (1, 3, 5):
        ask(talk, stream)
    assert len(talk.asked.questions) == 3
    talk.asked.waiting[1](BLOCK)
    assert talk.status(3) == 403
    talk.asked.waiting[2](Reason.DEADLINE)
    second(talk)
    [(flags, _)] = talk.seconds[-1].of(HEADERS, skip=24)
    assert flags & END_STREAM
    talk.asked.waiting[0](PASS)
    assert len(talk.seconds[-1].of(HEADERS, skip=24)) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_without_a_verdict(fails):
    talk = Http2(fails=fails)
    ask(talk, 1)
    talk.asked.answer(Reason.CRASH)
    if fails:
        assert talk.status(1) == 503
    else:
        second(talk)
        assert talk.at_app(1)
    assert talk.seen.reasons == [("waf-crash", fails)]


def test_a_stream_that_the_client_resets_is_forgotten():
    talk = Http2()
    ask(talk, 1)
    talk.send(frame(RST_STREAM, 0, 1, ErrorCode.CANCEL.to_bytes(4)))
    talk.asked.answer(PASS)
    assert not talk.at_app(1)
    ask(talk, 3)
    talk.asked.answer(BLOCK)
    assert talk.status(3) == 403


def test_detect_relays_streams_and_asks_about_them():
    talk = Http2("Detect")
    ask(talk, 1, body=b"evil")
    ask(talk, 3)
    assert talk.app.of(HEADERS, 1)
    assert talk.app.of(HEADERS, 3)
    assert sorted(each.body for each in talk.asked.questions) == [b"", b"evil"]
    talk.asked.answer(BLOCK, BLOCK)
    assert [each.would_block for each in talk.seen.records] == [True, True]


def test_a_stream_over_the_limit_is_refused():
    talk = Http2(body_bytes=10)
    ask(talk, 1, body=b"x" * 11)
    assert talk.status(1) == 403
    assert talk.asked.questions == []


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0\1x"])
@pytest.mark.parametrize("mode", ["Enforce", "Detect"])
def test_of_calls_of_grpc_the_head_is_judged(mode, body):
    for verdict in (PASS, BLOCK):
        talk = Http2(mode)
        ask(talk, 1, b"/shop.Orders/List", GRPC, body=body)
        [question] = talk.asked.questions
        assert (question.method, question.target, question.body) == (b"GET", b"/shop.Orders/List", b"")
        assert GRPC not in question.fields
        assert talk.at_app(1) is (mode == "Detect")
        talk.asked.answer(verdict)
        is_refused = mode == "Enforce" and verdict is BLOCK
        if mode == "Enforce" and not is_refused:
            second(talk)
        assert talk.at_app(1) is not is_refused
        assert talk.body_at_app(1) == (b"" if is_refused else body)
        assert len(talk.seen.records) == (verdict is BLOCK)


def test_a_content_type_that_is_more_than_that_of_grpc_is_judged():
    talk = Http2()
    odd = (b"content-type", b"application/grpc%{multipart/form-data}")
    ask(talk, 1, b"/a", odd, body=b"\0\0\0\0\1x")
    [question] = talk.asked.questions
    assert odd in question.fields


def test_a_call_of_grpc_that_a_rule_may_block_goes_on_once_both_agree():
    talk = Http2(rules=(NO_SECRET,))
    talk.send(talk.head(1, request(b"/shop.Orders/List", GRPC, method=b"POST"), ends=False))
    message = b"\0" + (20).to_bytes(4) + b"attack at dusk, none"
    talk.send(frame(DATA, 0, 1, message[:10]))
    talk.asked.answer(PASS)
    assert not talk.seconds  # the message may still be one that is blocked
    talk.send(frame(DATA, 0, 1, message[10:]))
    second(talk)
    assert talk.body_at_app(1) == message
    talk.send(frame(DATA, END_STREAM, 1, b"\0" + len(SECRET).to_bytes(4) + SECRET))
    assert [each.rule for each in talk.seen.records] == ["no-secret"]
    assert talk.body_at_app(1) == message


def test_a_websocket_is_judged_by_its_head_and_then_opened():
    talk = Http2()
    head = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/chat"),
            (b":authority", b"shop")]  # fmt: skip
    talk.send(talk.head(1, Message(head=head), ends=False))
    [question] = talk.asked.questions
    assert (question.method, question.target) == (b"GET", b"/chat")
    assert not talk.at_app(1)
    talk.asked.answer(BLOCK)
    assert talk.status(1) == 403
