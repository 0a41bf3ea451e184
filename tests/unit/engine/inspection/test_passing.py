"""Requests and answers that are looked at as they pass are judged as those that are read, held and judged.

The same is said to two relays: one whose shell and gate know the fast ways, and one that reads everything. What the
app and the client get, and what observers are told, must not differ.
"""

import functools
import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.inspection.sampling import Sampling
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import (
    Action,
    Builtin,
    Direction,
    FailurePolicy,
    InspectionPolicy,
    Match,
    Pattern,
    Rule,
    Threshold,
)
from sidestep.policy.accepted_policy import accept
from sidestep.policy.inspection import Inspection
from sidestep.protocols.http1 import LIMITS, parse_request, read_plain
from sidestep.protocols.http1_skim import Skimmer
from tests.effort import examples
from tests.unit.engine.hostile_heads import HOSTILE
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    ENFORCE,
    FAIL,
    NO_ADMIN,
    NO_LEAK,
    NO_SECRET,
    SECRET,
    Inspected,
    answer,
    get,
    inspection,
    post,
)

CARD = b"4111 1111 1111 1111"
CARDS = (Pattern(builtin=Builtin.CARD_NUMBER),)
TOLD = Rule("told", Action.ALERT, Direction.RESPONSE, patterns=(Pattern(regex=r"attack\sat dawn$"), *CARDS))
SENT = Rule("sent", Action.LOG, patterns=CARDS)
OFTEN = Rule("often", Action.BLOCK, Direction.RESPONSE, patterns=CARDS, threshold=Threshold(2, 60.0))
NARROW = Rule(
    "narrow", Action.BLOCK, Direction.RESPONSE, match=Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/p"),))),
    exception=Match(Filter(paths=(PathCondition(PathTest.EQUAL, "/p"),))), patterns=NO_SECRET.patterns,
)  # fmt: skip
EXCEPT = Rule(
    "except", Action.BLOCK, Direction.RESPONSE, exception=Match(Filter(paths=(PathCondition(PathTest.EQUAL, "/p"),))),
    patterns=NO_SECRET.patterns,
)  # fmt: skip
OF_ANSWERS = [NO_LEAK, TOLD, OFTEN, EXCEPT]
"""Rules that search the answer to each request ..."""
OTHERS = [NO_ADMIN, NO_SECRET, SENT, NARROW]
"""... and others."""

texts = st.one_of(
    st.sampled_from([b"ok", SECRET, CARD, b"ends as a head\r\n\r\n"]),
    st.lists(st.sampled_from([b"attack at ", b"dawn", b"4111111111111112", b"+", b"%41", b"x" * 900]), max_size=3).map(
        b"".join
    ),
)
asked = st.one_of(
    st.just(get(b"/same")),
    st.integers(0, 9).map(lambda number: get(b"/one/%d?a=b" % number, b"X-Number: %d" % number)),
    texts.map(lambda text: get(b"/q", b"X-Text: " + text)),
    st.just(get(b"/admin/x")),
    st.just(get(b"/same", b"X-Tail:  two blanks  ")),
    st.just(get(b"/same").replace(b"GET", b"HEAD", 1)),
    st.builds(lambda text, target: post(text, target=target), texts, st.sampled_from([b"/p", b"/p/q", b"/%70"])),
    texts.map(lambda text: post(gzip.compress(text, mtime=0), b"Content-Encoding: gzip")),
    texts.map(lambda text: post(text, chunk=7)),
)
answered = st.one_of(
    texts.map(answer),
    texts.map(lambda text: answer(b"ok", b"X-Text: " + text)),
    texts.map(lambda text: answer(gzip.compress(text, mtime=0), b"Content-Encoding: gzip")),
    texts.map(lambda text: answer(text, chunk=5)),
    st.just(b"HTTP/1.1 204 No Content\r\n\r\n"),
    st.just(b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer(b"ok")),
)
exchanges = st.lists(st.tuples(asked, answered), min_size=1, max_size=5)


class Thorough(Gate):
    """A gate that has every request and answer read."""

    __slots__ = ()
    asks = False

    def clears(self, target, fields, body=b""):
        return False


class Reading(Inspected):
    """A relay whose shell has it read everything."""

    def __init__(self, *rules, **options):
        super().__init__(*rules, **options)
        self.gate.__class__ = Thorough

    def _passes(self, leg, data):
        return None


def told(shell):
    """What observers were told, without the names that exchanges get."""
    seen = shell.seen
    hits = [
        (each.rule, each.action, each.pattern, each.in_response, each.exchange.number, each.exchange.target,
         each.exchange.status, list(each.exchange.fields), list(each.exchange.answer))
        for each in seen.records
    ]  # fmt: skip
    samples = [(each.number, each.method, each.target, each.status, each.length) for each in seen.exchanges]
    answers = [(each.number, each.status, each.length) for each in seen.answers]
    files = [(each.exchange.number, each.in_response, each.size, each.sha256) for each in seen.files]
    return hits, samples, answers, files, seen.reasons


def conclusion(shell):
    """What came of it all; a refusal names the exchange, whose names differ."""
    lines = [line for line in shell.to_client.split(b"\n") if b"sidestep: policy" not in line]
    return lines, shell.to_app, shell.relay.client.ending, told(shell)


@functools.cache
def accepted(rules, mode, failure_policy):
    return accept(InspectionPolicy("p", "shop", rules=rules, mode=mode, failure_policy=failure_policy))


@given(
    st.lists(st.sampled_from(OF_ANSWERS), unique_by=id, max_size=2),
    st.lists(st.sampled_from(OTHERS), unique_by=id, max_size=2),
    st.sampled_from([DETECT, ENFORCE, FAIL]), st.sampled_from([0.0, 40.0, 100.0]),
    st.sampled_from([frozenset(), frozenset({(b"GET", b"/same")})]), exchanges, st.data(),
)  # fmt: skip
@settings(max_examples=examples(250), deadline=None)
def test_what_passes_is_judged_as_what_is_read(of_answers, others, policy, percent, exempt, exchanges, data):
    mode, failure_policy = policy["mode"], policy.get("failure_policy", FailurePolicy.FAIL)
    compiled = accepted((*of_answers, *others), mode, failure_policy)
    shells = [
        kind(inspected=Inspection([compiled]), sampling=Sampling(percent, 5), exempt=exempt)
        for kind in (Inspected, Reading)
    ]  # fmt: skip
    ahead = data.draw(st.integers(1, 3))
    for at in range(0, len(exchanges), ahead):
        for request, _ in exchanges[at : at + ahead]:
            say(shells, "client", request)
        if data.draw(st.integers(0, 5)) == 0:
            for shell in shells:
                if not shell.relay.done and shell.relay.client not in shell.ended:
                    shell.eof(shell.relay.client)
        for _, said in exchanges[at : at + ahead]:
            cut = data.draw(st.sampled_from([0, 0, 0, 1, 40])) or len(said)
            say(shells, "app", said[:cut])
            if said[cut:]:
                say(shells, "app", said[cut:])
    fast, reading = map(conclusion, shells)
    assert fast == reading


def say(shells, who, data):
    """Say it to both relays, unless they listen no more."""
    for shell in shells:
        leg = getattr(shell.relay, who)
        if leg.open and not leg.ending and not shell.relay.done and leg not in shell.ended:
            shell.receive(leg, data)


@pytest.mark.parametrize("rule", [NO_LEAK, TOLD, EXCEPT])
def test_an_answer_takes_the_fast_way_unless_something_is_found(rule):
    shell = Inspected(NO_ADMIN, rule, sampling=Sampling(100.0, 1), **FAIL)
    relay = shell.relay
    shell.client(get(b"/same"))
    shell.app(answer(b"ok"))
    for number, target in enumerate((b"/same", b"/same", b"/other?a=b"), 1):
        assert relay.passes(relay.client, get(target)) is relay.app
        assert relay.passes(relay.app, answer(b"fine")) is relay.client
        assert (shell.seen.exchanges[-1].target, shell.seen.exchanges[-1].number) == (target, number)
    assert relay.passes(relay.client, get(b"/leak", b"X-Is: kept")) is relay.app
    assert relay.passes(relay.app, answer(SECRET)) is None
    shell.app(answer(SECRET))
    (hit,) = shell.seen.records
    assert (hit.exchange.target, hit.exchange.number, hit.exchange.status) == (b"/leak", 4, 200)
    assert (b"x-is", b"kept") in list(hit.exchange.fields)
    assert (b" 403 " in shell.to_client) is (rule is not TOLD)
    assert len(shell.seen.exchanges) == 4  # the hit tells of the fifth


@pytest.mark.parametrize("request_", [get(b"/same"), get(b"/a?b=c"), post(b"body")])
def test_only_what_is_exempt_passes_unsearched_where_something_is(request_):
    shell = Inspected(NO_LEAK, exempt=frozenset({(b"GET", b"/health")}), **FAIL)
    shell.client(get(b"/health"))
    shell.app(answer(SECRET))
    assert b" 403 " not in shell.to_client
    for _ in range(3):
        shell.client(request_)
        shell.app(answer(b"ok"))
    shell.client(request_)
    shell.app(answer(SECRET))
    assert [each.rule for each in shell.seen.records] == ["no-leak"]
    assert b" 403 " in shell.to_client


def test_a_body_that_ends_as_a_head_is_no_part_of_the_head():
    shell = Inspected(NO_LEAK, sampling=Sampling(100.0, 1), **DETECT)
    shell.client(get(b"/first"))
    shell.app(answer(b"ok"))
    shell.client(post(b"x\r\nHost: other.test\r\n\r\n"))
    shell.app(answer(SECRET))
    shell.client(post(b"x\r\nHost: other.test\r\n\r\n"))
    shell.app(answer(b"ok"))
    (hit,) = shell.seen.records
    assert (hit.exchange.target, hit.exchange.host) == (b"/p", b"app.test")
    assert [each.host for each in shell.seen.exchanges] == [b"app.test"] * 2


def test_heads_of_requests_whose_answers_are_searched_are_counted_until_then():
    shell = Inspected(NO_LEAK, **FAIL)
    shell.client(get(b"/first"))
    shell.app(answer(b"ok"))
    assert isinstance(shell.relay, Http1Relay)
    inspection_ = shell.relay._inspection
    assert inspection_ is not None
    shell.client(get(b"/a"))
    shell.client(post(b"body", target=b"/b"))
    assert inspection_.kept == len(get(b"/a")) + len(post(b"body", target=b"/b")) - len(b"body")
    shell.app(answer(b"ok"))
    shell.app(answer(b"ok"))
    assert inspection_.kept == 0
    assert not inspection_.answers


def test_answers_are_judged_by_the_policies_of_their_requests():
    shell = Inspected(NO_LEAK, **FAIL)
    shell.client(get(b"/first"))
    shell.app(answer(b"ok"))
    assert shell.relay.passes(shell.relay.client, get(b"/a")) is shell.relay.app
    shell.gate.connection.inspection.give_way(inspection(NO_ADMIN, **FAIL))
    shell.app(answer(SECRET))
    assert [each.rule for each in shell.seen.records] == ["no-leak"]
    assert b" 403 " in shell.to_client


names = st.sampled_from([b"X-A", b"x-b", b"User-Agent", b"Cookie"])
values = st.sampled_from([b"1", b"", b" ", b"a b", b"  two", b"tail  ", b"a: b", b"\xff"])
plain_heads = st.builds(
    lambda target, fields: b"\r\n".join(
        (b"GET " + target + b" HTTP/1.1", b"Host: a.test", *(name + b": " + value for name, value in fields), b"", b"")
    ),
    st.sampled_from([b"/", b"/a?b=c:d", b"/%61"]), st.lists(st.tuples(names, values), max_size=5),
)  # fmt: skip


@given(st.one_of(plain_heads, st.sampled_from([data for _, data in HOSTILE])))
@settings(max_examples=examples(200), deadline=None)
def test_plain_heads_are_split_as_they_are_parsed(head):
    if Skimmer((), (), LIMITS).skim(head) is None:
        return
    read, parsed = read_plain(head), parse_request(head)
    assert read is None or read == (parsed.target, parsed.fields)


def test_most_plain_heads_can_be_split():
    assert read_plain(get(b"/a?b", b"X: y")) == (b"/a?b", [(b"host", b"app.test"), (b"x", b"y")])
