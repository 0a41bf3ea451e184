"""Random policies on random exchanges, cut at random.

Under Enforce and Fail no byte of a blocked request reaches the app, clients get what the policies say, verdicts do not
depend on how bytes are cut, and what is held is bounded. What the policies say is asked of `policy.inspection` with
whole heads and bodies.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.inspection.limits import LIMITS
from sidestep.engine.inspection.sampling import Sampling
from sidestep.engine.leg import Ending, Leg
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import Action, Direction, Match, Pattern, Rule
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.route import Route
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import parse_request
from sidestep.protocols.http1_requests import RequestReader
from tests.effort import examples
from tests.unit.engine.http2_peers import Endpoint, Message, Peers, rule
from tests.unit.engine.inspection.inspecting import FAIL, Inspected, Recorder, answer, gate, get, inspection, post

WORDS = (b"alpha", b"bravo", b"delta")
PATHS = (b"/a", b"/b", b"/%61", b"/c/../a", b"//b")
MATCH = (b"x-dev", b"me")
MEMORY = 1 << 20
"""Bytes above anything that one connection of these tests keeps for verdicts."""


@dataclass
class Exchange:
    """A request and what the app answers; `mark` is in the target of this request only."""

    mark: bytes
    path: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    chunk: int
    reply: bytes
    reply_chunk: int

    @property
    def target(self) -> bytes:
        return self.path + b"?" + self.mark

    @property
    def method(self) -> bytes:
        return b"POST" if self.body else b"GET"

    @property
    def http1(self) -> bytes:
        lines = [name + b": " + value for name, value in self.fields]
        return post(self.body, *lines, target=self.target, chunk=self.chunk) if self.body else get(self.target, *lines)

    @property
    def answer(self) -> bytes:
        return answer(self.reply, chunk=self.reply_chunk)


def some_text(random: Random, size: int) -> bytes:
    words = [random.choice(WORDS) if random.random() < 0.05 else b"filler" for _ in range(random.randrange(size))]
    return b" ".join(words)


def exchanges(random: Random) -> list[Exchange]:
    made = []
    for number in range(random.randint(1, 5)):
        fields = [(b"x-kind", random.choice((b"1", b"2")))]
        if random.random() < 0.3:
            fields.append((b"x-note", random.choice(WORDS)))
        if random.random() < 0.3:
            fields.append(MATCH)
        body = some_text(random, random.choice((1, 20, 1500))) if random.random() < 0.6 else b""
        if body and random.random() < 0.3:
            fields.append((b"content-encoding", b"gzip"))
            body = gzip.compress(body)
        made.append(
            Exchange(
                b"mark%dmark" % number,
                random.choice(PATHS),
                fields,
                body,
                random.choice((0, 1, 100, 5000)) if len(body) < 500 else random.choice((0, 100, 5000)),
                some_text(random, random.choice((1, 20, 1500))),
                random.choice((0, 100)),
            )
        )
    return made


def rules(random: Random) -> list[Rule]:
    made = []
    for number in range(random.randint(1, 4)):
        direction = random.choice((Direction.REQUEST, Direction.RESPONSE))
        match = Filter()
        roll = random.random()
        if roll < 0.3:
            match = Filter(paths=(PathCondition(PathTest.PREFIX, random.choice(("/a", "/b"))),))
        elif roll < 0.5:
            match = Filter(methods=("POST",))
        elif roll < 0.7 and direction is Direction.REQUEST:
            match = Filter((HeaderCondition("x-kind", HeaderTest.EXACT, "1"),))
        patterns = (Pattern(regex=random.choice(WORDS).decode()),) if roll > 0.4 or random.random() < 0.5 else ()
        action = random.choice((Action.BLOCK, Action.BLOCK, Action.ALERT, Action.LOG))
        made.append(Rule(f"r{number}", action, direction, match=Match(match), patterns=patterns))
    return made


def plain(body: bytes) -> bytes:
    """A body without its encoding."""
    return gzip.decompress(body) if body.startswith(b"\x1f\x8b") else body


def expected(inspected, exchange: Exchange, host: bytes) -> tuple[bool, bool]:
    """Whether the request is blocked, and whether the answer is."""
    fields = [(b"host", host), *exchange.fields]
    judged = inspected.connection(ConnectionFacts()).request(exchange.method, exchange.target, fields, 0.0)
    if exchange.body:
        judged.request_body(plain(exchange.body), 0.0)
    judged.request_end(0.0)
    if judged.verdict.outcome is Outcome.BLOCK:
        return True, False
    judged.response_head([], 0.0)
    judged.response_body(exchange.reply, 0.0)
    judged.response_end(0.0)
    return False, judged.verdict.outcome is Outcome.BLOCK


class Server:
    """Answers whole requests by their marks, in order, when it is let."""

    def __init__(self, made: list[Exchange]) -> None:
        self._by_mark = {each.mark: each for each in made}
        self._reader = RequestReader()
        self._taken = 0
        self._current: Exchange | None = None
        self.out = bytearray()

    def take(self, sent: bytes) -> None:
        data, at = sent[self._taken :], 0
        self._taken = len(sent)
        while at < len(data):
            at = self._reader.read(data, at)
            if self._reader.event == messages.HEADED:
                head = parse_request(self._reader.head)
                assert not isinstance(head, str)
                self._current = self._by_mark[head.target.partition(b"?")[2]]
                self._reader.begin(head.body)
                if not head.body:
                    self.out += self._current.answer
            elif self._reader.event == messages.COMPLETE:
                self.out += self._current.answer


def cut(random: Random, data: bytearray, largest: int) -> bytes:
    size = random.randint(1, largest)
    piece = bytes(data[:size])
    del data[:size]
    return piece


def talk_http1(shell: Inspected, made: list[Exchange], random: Random, largest: int) -> None:
    """Let client, app and handlers say what they have to, in pieces of any size, in any order."""
    client = bytearray(b"".join(each.http1 for each in made))
    servers: dict[Leg, Server] = {}
    ends = random.random() < 0.4
    while True:
        for leg in (*shell.apps, *shell.handlers):
            servers.setdefault(leg, Server(made)).take(shell.to(leg))
        talkers = [leg for leg, server in servers.items() if server.out and leg.ending <= Ending.FINISH and leg.open]
        client_talks = bool(client) and not shell.relay.done and shell.relay.reads(shell.relay.client)
        if ends and not client and not shell.relay.done:
            ends = False
            shell.eof(shell.relay.client)
            continue
        if not talkers and not client_talks:
            return
        if client_talks and (not talkers or random.random() < 0.5):
            shell.client(cut(random, client, largest))
        else:
            leg = random.choice(talkers)
            shell.receive(leg, cut(random, servers[leg].out, largest))
        assert shell.relay.client.queued + held_by(shell) < LIMITS.window + 2 * (1 << 16) + 4096
        assert shell.gate.memory.held < MEMORY


def held_by(shell: Inspected) -> int:
    relay: Any = shell.relay
    current = relay._from_client._current
    held = sum(map(len, current.held or ())) if current is not None else 0
    answer_ = relay._inspection.answer
    return held + (sum(map(len, answer_._held or ())) if answer_ is not None else 0)


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.timeout(600)
@settings(max_examples=examples(150), deadline=None)
@given(st.integers(0, 1 << 40))
def test_http1(seed):
    random = Random(seed)
    made, chosen = exchanges(random), rules(random)
    inspected = inspection(*chosen, **FAIL)
    route = Route((rule("dev", MATCH),)) if random.random() < 0.4 else Route()
    sampling = Sampling(0.0, seed) if random.random() < 0.5 else None  # somebody reads records
    shell = Inspected(inspected=inspected, route=route, sampling=sampling)
    talk_http1(shell, made, random, random.choice((3, 100, 1 << 16)))
    reached = shell.to_app + shell.to_handler
    verdicts = [expected(inspected, each, b"app.test") for each in made]
    got = statuses(shell.to_client)
    for exchange, (blocked, answer_blocked), status in zip(made, verdicts, got, strict=False):
        assert status == (403 if blocked or answer_blocked else 200)
        assert (exchange.mark in reached) is not blocked
    for exchange, (blocked, _) in zip(made, verdicts, strict=True):
        assert not (blocked and exchange.mark in reached)
    if len(got) < len(made) and not shell.shut.get(shell.relay.client):
        raise AssertionError("answers are missing")
    if 403 not in got:
        assert reached.count(b"HTTP/1.1\r\n") == len(made)
        assert shell.relay.idle or shell.relay.client in shell.ended
    assert shell.seen.reasons == []
    bodies = {hashlib.sha256(plain(each)).hexdigest() for exchange in made for each in (exchange.body, exchange.reply)}
    assert {each.sha256 for each in shell.seen.files if each.is_whole} <= bodies


@pytest.mark.timeout(600)
@settings(max_examples=examples(150), deadline=None)
@given(st.integers(0, 1 << 40))
def test_http1_cuts(seed):
    random = Random(seed)
    made, chosen = exchanges(random)[:1], rules(random)
    outcomes = []
    for largest in (1 << 20, random.choice((5, 50, 500))):
        shell = Inspected(*chosen, **FAIL)
        talk_http1(shell, made, random, largest)
        refused = 403 in statuses(shell.to_client)
        # A refused exchange is not read any further, so rules that would only have alerted may not be told.
        told = {hit for hit in shell.seen.told if not refused}
        outcomes.append((statuses(shell.to_client), b"" if refused else shell.to_app, told))
    assert outcomes[0] == outcomes[1]


def talk_http2(
    made: list[Exchange], inspected: Inspection, random: Random, largest: int
) -> tuple[Endpoint, list[Endpoint], Recorder, Peers]:
    """Let client, app and handlers say what they have to, in pieces of at most `largest` bytes, in any order."""
    recorder = Recorder()
    by_mark = {each.mark: each for each in made}

    def respond(head):
        exchange = by_mark[dict(head)[b":path"].partition(b"?")[2]]
        return Message(head=[(b":status", b"200")], pieces=[exchange.reply] if exchange.reply else [], ended=True)

    ends: list[Endpoint] = []

    def server() -> Endpoint:
        ends.append(Endpoint(answer=respond, rng=random))
        return ends[-1]

    client = Endpoint(rng=random)
    peers = Peers(
        client,
        server(),
        second=server,
        handler=lambda _: server(),
        rules=(rule("dev", MATCH),),
        rng=random,
        chunk=largest,
        relay=lambda port: Http2Relay(port, tls=True, gate=gate(inspected, recorder)),
    )
    for each in made:
        head = [(b":method", each.method), (b":scheme", b"https"), (b":authority", b"shop"), (b":path", each.target)]
        client.send(Message(head=[*head, *each.fields], pieces=[each.body] if each.body else [], ended=True))
    peers.run()
    return client, ends, recorder, peers


@pytest.mark.timeout(600)
@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 1 << 40))
def test_http2(seed):
    random = Random(seed)
    made, chosen = exchanges(random), rules(random)
    inspected = inspection(*chosen, **FAIL)
    client, ends, recorder, peers = talk_http2(made, inspected, random, random.choice((30, 1000, 1 << 16)))
    reached = {dict(message.head)[b":path"] for end in ends for message in end.seen.values() if message.head}
    for number, each in enumerate(made):
        blocked, answer_blocked = expected(inspected, each, b"shop")
        seen = client.seen[1 + 2 * number]
        assert dict(seen.head)[b":status"] == (b"403" if blocked or answer_blocked else b"200")
        assert (each.target in reached) is not blocked
        if not (blocked or answer_blocked):
            assert seen.body == each.reply
    assert recorder.reasons == []
    assert peers.relay.idle


@pytest.mark.timeout(600)
@settings(max_examples=examples(100), deadline=None)
@given(st.integers(0, 1 << 40))
def test_http2_cuts(seed):
    random = Random(seed)
    made, chosen = exchanges(random)[:1], rules(random)
    outcomes = []
    for largest in (1 << 20, random.choice((5, 50, 500))):
        client, ends, recorder, _ = talk_http2(made, inspection(*chosen, **FAIL), random, largest)
        seen = client.seen[1]
        status = dict(seen.head)[b":status"]
        refused = status == b"403"
        bodies = [] if refused else [(each.head, each.body) for end in ends for each in end.seen.values() if each.head]
        outcomes.append((status, seen.body, bodies, {hit for hit in recorder.told if not refused}))
    assert outcomes[0][0::2] == outcomes[1][0::2]
    assert outcomes[0][3] == outcomes[1][3]
    assert outcomes[0][0] == b"403" or outcomes[0][1] == outcomes[1][1] == made[0].reply
