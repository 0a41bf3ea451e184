"""Requests that are forwarded first, and asked about afterwards: what is asked and told is what it is without that.

The same is said to two relays: one whose shell takes requests that have passed, and one that judges each on its way.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.asking import HeadSubject, Reason, Subject
from sidestep.engine.inspection.firewall import Firewall
from sidestep.engine.inspection.judged import Judged
from sidestep.engine.inspection.sampling import Sampling
from sidestep.inspector.worker import read_head
from sidestep.model.inspection import Mode
from sidestep.policy.route import Route, SteeredPort
from sidestep.protocols.http2 import DATA, END_STREAM, HEADERS, PREFACE, SETTINGS_ACK, frame, settings
from sidestep.protocols.waf_messages import MAX_FIELDS, Outcome, Verdict
from tests.harness.table import each_row
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import MATCH, Message, request
from tests.unit.engine.inspection.inspecting import (
    NO_ADMIN,
    NO_SECRET,
    SECRET,
    Recorder,
    answer,
    gate,
    get,
    inspection,
    post,
)
from tests.unit.engine.inspection.test_firewall import GRPC, Asked, port_waf
from tests.unit.engine.shell import Shell

BLOCK = Verdict(1, Outcome.BLOCK, (942100,), 5)
PATHS = (b"/", b"/a?b=1", b"/admin", b"/%61dmin", b"/c")


def read(asked):
    """What an inspector reads in a head."""
    question = read_head(asked.message(1, 0, 0.0))
    return Subject(
        asked.profile, question.method, question.target, question.version, question.fields, asked.client, asked.server
    )


class Told(Asked):
    """Who is asked, also about requests that have passed."""

    def __init__(self):
        super().__init__()
        self.passed = []

    def pass_by(self, passed):
        self.passed.append(passed)

    def collect(self):
        """Ask about those that have passed."""
        passed, self.passed = self.passed, []
        for each in passed:
            subject = each.subject()
            if isinstance(subject, HeadSubject):
                subject = read(subject)
            if subject is not None:
                self(subject, seconds=each.settings.seconds, on_answer=each.answered)

    @property
    def asked(self):
        return Counter((each.method, each.target, each.version, each.fields, each.body) for each in self.questions)


def made(asked, seen, *, later, rules=(), mode="Detect", exempt=frozenset(), sampling=None, **waf):
    settings = port_waf(mode, **waf)
    inspected = inspection(*rules, mode=Mode.ENFORCE if settings.enforces else Mode.DETECT)
    inspected.waf = settings
    pass_by = asked.pass_by if later else None
    firewall = Firewall(settings, asked, ("10.0.0.9", 5000), ("10.0.0.2", 8443), pass_by)
    return gate(inspected, seen, sampling=sampling, exempt=exempt, firewall=firewall)


class Http1(Shell):
    def __init__(self, *, later=True, **more):
        self.seen, self.asked = Recorder(), Told()
        gate = self.gate = made(self.asked, self.seen, later=later, **more)
        super().__init__(Http1Relay(SteeredPort(8443, Route()), tls=True, gate=gate), app_open=True, auto=True)
        gate.wake = self.answered
        self.client(get(b"/first"))  # the first request of a connection is read
        self.app(answer())
        self.asked.answer(Verdict(1, Outcome.PASS))
        self.asked.questions.clear()

    def told(self):
        """What the observer was told; names of exchanges are given in another order."""
        return Counter((each.rule, each.would_block, each.exchange.target) for each in self.seen.records)


class Http2(Talk):
    def __init__(self, *, later=True, begin=True, **more):
        self.seen, self.asked = Recorder(), Told()
        gate = self.gate = made(self.asked, self.seen, later=later, **more)
        super().__init__(relay=lambda port: Http2Relay(port, tls=True, gate=gate), begin=begin)

    told = Http1.told


def no_exchange(monkeypatch):
    """Have the test fail where an exchange is made."""

    def fail(*_, **__):
        raise AssertionError("an exchange was made")

    monkeypatch.setattr(Judged, "__init__", fail)


def test_a_request_has_no_exchange_before_there_is_something_to_tell(monkeypatch):
    shell = Http1(rules=(NO_ADMIN,), sampling=Sampling(0.0, 1))
    no_exchange(monkeypatch)
    sent = b""
    for path in (b"/a?b=1", b"/c"):
        shell.client(get(path))
        shell.app(answer())
        sent += get(path)
    assert shell.to_app.endswith(sent)
    assert shell.asked.questions == []
    shell.asked.collect()
    first, second = shell.asked.questions
    assert (first.method, first.target, first.version, first.body) == (b"GET", b"/a?b=1", "1.1", b"")
    assert (first.client, first.server) == (("10.0.0.9", 5000), ("10.0.0.2", 8443))
    assert second.target == b"/c"
    shell.asked.answer(BLOCK, Verdict(2, Outcome.PASS))
    [hit] = shell.seen.records
    assert (hit.rule, hit.pattern, hit.would_block, hit.exchange.target) == ("WAF", "942100", True, b"/a?b=1")
    assert (hit.exchange.host, hit.exchange.number, hit.exchange.stream) == (b"app.test", 1, 0)


def test_a_stream_has_no_exchange_before_there_is_something_to_tell(monkeypatch):
    talk = Http2(rules=(NO_ADMIN,), sampling=Sampling(0.0, 1))
    no_exchange(monkeypatch)
    for stream in (1, 3, 5):
        talk.send(talk.head(stream, request(b"/a")))
        assert talk.app.of(HEADERS, stream)
    talk.asked.collect()
    assert [each.target for each in talk.asked.questions] == [b"/a"] * 3
    talk.asked.answer(*[Verdict(1, Outcome.PASS)] * 2, BLOCK)
    [hit] = talk.seen.records
    assert (hit.exchange.protocol, hit.exchange.stream, hit.exchange.number) == ("h2", 5, 2)
    assert hit.exchange.host == b"shop"


RULES = [
    pytest.param((), id="no rules"),
    pytest.param((NO_ADMIN,), id="by paths"),
    pytest.param((NO_ADMIN, NO_SECRET), id="by patterns"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rules", RULES)
def test_the_same_is_asked_and_told_over_http1(seed, rules):
    random = Random(seed)
    shells = [Http1(later=later, rules=rules) for later in (True, False)]
    for number in range(60):
        path = random.choice(PATHS)
        body = random.choice((b"hello", SECRET, b"x" * 3000))
        said = random.choice(
            (
                get(path),
                get(path, b"X-N: %d" % number),
                get(path).replace(b"GET", b"HEAD", 1),
                get(path)
                .replace(b"HTTP/1.1", b"HTTP/1.0", 1)
                .replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"),
                get(path) + get(b"/behind"),
                post(body, target=path),
                post(body, target=path, chunk=7),
            )
        )
        cut = random.choice((len(said), random.randint(1, len(said) - 1)))
        for shell in shells:
            shell.client(said[:cut])
            if said[cut:]:
                shell.client(said[cut:])
            for _ in range(1 + said.count(b"/behind ")):
                bodiless = said.startswith(b"HEAD")
                shell.app(answer(b"" if bodiless else b"ok"))
            if random.random() < 0.2:
                shells[0].asked.collect()
    shells[0].asked.collect()
    passed, read = shells
    assert passed.to_app == read.to_app
    assert passed.to_client == read.to_client
    assert passed.asked.asked == read.asked.asked
    for shell in shells:
        shell.asked.answer(*[BLOCK] * len(shell.asked.waiting))
    assert passed.told() == read.told()
    assert passed.seen.reasons == read.seen.reasons


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rules", RULES)
def test_the_same_is_asked_and_told_over_http2(seed, rules):
    random = Random(seed)
    talks = [Http2(later=later, rules=rules) for later in (True, False)]
    for stream in range(1, 80, 2):
        path = random.choice(PATHS)
        kind = random.choice(("get", "get", "post", "late", "grpc", "empty", "websocket"))
        fields = (GRPC,) if kind in ("grpc", "empty") else ()
        message = request(path, *fields, method=b"GET" if kind == "get" else b"POST")
        if kind == "websocket":
            message = Message(head=[(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"),
                                    (b":path", path), (b":authority", b"shop")])  # fmt: skip
        for talk in talks:
            head = talk.head(stream, message, ends=kind in ("get", "empty"))
            if kind == "post":
                talk.send(head + frame(DATA, END_STREAM, stream, b"a=hello"))
            elif kind in ("late", "grpc"):
                talk.send(head)
                talk.send(frame(DATA, END_STREAM, stream, b"\0\0\0\0\1x"))
            else:
                talk.send(head)
    talks[0].asked.collect()
    passed, read = talks
    assert bytes(passed.app.data) == bytes(read.app.data)
    assert passed.asked.asked == read.asked.asked
    for talk in talks:
        talk.asked.answer(*[BLOCK] * len(talk.asked.waiting))
    assert passed.told() == read.told()
    assert passed.seen.reasons == read.seen.reasons


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"mode": "Enforce"}, id="enforces"),
        pytest.param({"responses": True}, id="responses"),
        pytest.param({"exempt": frozenset({(b"GET", b"/healthz")})}, id="probes"),
    ],
)
def test_where_more_may_come_of_a_verdict_nothing_passes(more):
    seen, asked = Recorder(), Told()
    gate = made(asked, seen, later=True, **more)
    assert not gate.tells_later
    shell = Shell(Http1Relay(SteeredPort(8443, Route()), tls=True, gate=gate), app_open=True, auto=True)
    gate.wake = shell.answered
    for _ in range(3):
        shell.client(get(b"/a"))
        asked.answer(Verdict(1, Outcome.PASS))
        shell.app(answer())
    assert asked.passed == []
    assert len(asked.questions) == 3


@pytest.mark.parametrize("reason", list(Reason))
def test_a_request_without_a_verdict_is_counted(reason):
    shell = Http1()
    shell.client(get(b"/a"))
    shell.asked.collect()
    shell.asked.answer(reason)
    assert shell.seen.reasons == [(f"waf-{reason}", False)]


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("where", ["here", "inspector"])
def test_a_request_over_the_limit_is_told_or_counted(where, blocks):
    talk = Http2(blocks=blocks)
    fields = [(b"x-%d" % number, b"1") for number in range(MAX_FIELDS + 1 if where == "here" else 1)]
    talk.send(talk.head(1, request(b"/a", *fields)))
    assert talk.app.of(HEADERS, 1)
    talk.asked.collect()
    if where == "inspector":
        talk.asked.answer(Verdict(1, Outcome.OVER_LIMIT))
    assert talk.asked.waiting == []
    if blocks:
        assert [each.pattern for each in talk.seen.records] == ["over-limit"]
    else:
        assert talk.seen.reasons == [("waf-over-limit", False)]


def test_edited_policies_apply_from_the_next_request_on():
    shell = Http1()
    shell.client(get(b"/a"))
    shell.app(answer())
    newer = inspection(mode=Mode.DETECT)
    newer.waf = port_waf("Detect", body_bytes=10)
    shell.gate.connection.inspection.give_way(newer)
    for path in (b"/b", b"/c"):
        shell.client(get(path))
        shell.app(answer())
    assert shell.gate.firewall.settings is newer.waf
    newer.give_way(inspection(mode=Mode.DETECT))
    for path in (b"/d", b"/e"):
        shell.client(get(path))
        shell.app(answer())
    shell.asked.collect()
    assert sorted(each.target for each in shell.asked.questions) == [b"/a", b"/b", b"/c"]


def test_nothing_is_told_of_streams_once_the_port_has_no_policies():
    talk = Http2()
    talk.gate.connection.inspection.give_way(None)
    talk.send(talk.head(1, request(b"/a")))
    assert talk.app.of(HEADERS, 1)
    talk.asked.collect()
    assert talk.asked.questions == []


# What of a connection decides how a stream is judged. Whatever it is, a stream that is relayed is asked about once.


def follows(talk):
    talk.gate.connection.inspection.give_way(_successor("Detect"))


def cannot_follow(talk):
    """The policies that come next want more than the relay was made for: those with which it began go on."""
    talk.gate.connection.inspection.give_way(_successor("Enforce"))


def _successor(mode):
    newer = inspection(NO_ADMIN, mode=Mode.ENFORCE if mode == "Enforce" else Mode.DETECT)
    newer.waf = port_waf(mode)
    return newer


def nothing(_talk):
    pass


STATES = {"at first": nothing, "policies follow": follows, "policies cannot follow": cannot_follow}
STREAMS = {
    "a head": lambda talk, stream: talk.head(stream, request(b"/a")),
    "a head to which a rule applies": lambda talk, stream: talk.head(stream, request(b"/admin")),
    "a head that is repeated": lambda talk, stream: (
        talk.head(stream, request(b"/a")) + talk.head(stream + 2, request(b"/a"))
    ),
    "a body": lambda talk, stream: (
        talk.head(stream, request(b"/a"), ends=False) + frame(DATA, END_STREAM, stream, b"x=1")
    ),
    "an empty body": lambda talk, stream: (
        talk.head(stream, request(b"/a"), ends=False) + frame(DATA, END_STREAM, stream, b"")
    ),
    "a handler's": lambda talk, stream: talk.head(stream, request(b"/a", MATCH)),
    "what cannot be read": lambda talk, stream: talk.head(stream, request(b"/a", (b"Upper", b"1"))),
}


@pytest.mark.parametrize("rules", RULES)
@each_row("begin", [True, False], ids=["the app has spoken", "the app has yet to speak"])
@each_row("state", STATES)
@each_row("kind", STREAMS)
def test_each_stream_is_asked_about_once_in_each_state(rules, kind, state, begin):
    talk = Http2(rules=rules, begin=begin)
    if not begin:
        talk.send(PREFACE + settings({}))
    STATES[state](talk)
    said = STREAMS[kind](talk, 1)
    talk.send(said)
    if not begin:
        talk.from_app(settings({}) + SETTINGS_ACK)
    if kind == "a handler's":
        talk.open_handler()
    talk.asked.collect()
    paths = [each.target for each in talk.asked.questions]
    assert paths == [b"/admin" if "rule" in kind else b"/a"] * (2 if "repeated" in kind else 1)
    talk.asked.answer(*[BLOCK] * len(paths))
    assert [each.rule for each in talk.seen.records].count("WAF") == len(paths)
