"""Verdicts on exchanges: rule by rule, and random policies against a plain reading of what they say."""

import random
import re
import time
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.config.field_error import FieldError
from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest, PathCondition, PathTest
from sidestep.model.inspection import (
    Action,
    Builtin,
    Direction,
    ExistingConnections,
    FailurePolicy,
    InspectionPolicy,
    Match,
    Mode,
    ParameterCondition,
    Pattern,
    RateLimit,
    Redaction,
    Rule,
    Threshold,
)
from sidestep.policy.accepted_policy import MAX_REGEXES, Outcome, accept
from sidestep.policy.inspected_exchange import Hit, Unread, Verdict
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.regex_set import MAX_INSTRUCTIONS
from tests.effort import examples
from tests.unit.policy import secrets_made

RESPONSE = Direction.RESPONSE
HOST = (b"host", b"shop.test")


def path(value, test=PathTest.PREFIX):
    return Match(Filter(paths=(PathCondition(test, value),)))


def header(name, value):
    return Match(Filter((HeaderCondition(name, HeaderTest.EXACT, value),)))


def policy(*rules, name="p", namespace="shop", mode=Mode.ENFORCE, **more):
    return InspectionPolicy(name, namespace, rules=rules, mode=mode, **more)


def inspection(*policies, **more):
    return Inspection([accept(each) for each in policies], **more)


def begin(inspected, target=b"/", *, method=b"GET", fields=(HOST,), client="192.0.2.7", now=0.0, **facts):
    connection = inspected.connection(ConnectionFacts(client and ip_address(client), **facts))
    return connection.request(method, target, fields, now)


def outcome(*rules, **request):
    return begin(inspection(policy(*rules)), **request).verdict.outcome


# --- one rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "expected"), [("Log", 1), ("Alert", 2), ("Block", 3)])
def test_actions(action, expected):
    [hit] = begin(inspection(policy(Rule("all", Action(action))))).verdict.hits
    assert hit == Hit("shop/p", "all", Outcome(expected))


def test_detect_reports_what_would_be_blocked():
    [hit] = begin(inspection(policy(Rule("all", Action.BLOCK), mode=Mode.DETECT))).verdict.hits
    assert hit == Hit("shop/p", "all", Outcome.ALERT, would_block=True)


def test_nothing_to_say():
    exchange = begin(inspection(policy(Rule("admin", Action.BLOCK, match=path("/admin")))), b"/orders")
    assert exchange.verdict == Verdict()
    assert exchange.verdict.outcome is Outcome.PASS
    assert exchange.verdict.blocker is None
    assert not any([exchange.reads_request, exchange.reads_response, exchange.holds_request, exchange.holds_response])
    assert exchange.request_body(b"x", 0) == exchange.request_end(0) == ()
    assert exchange.response_head((), 0) == exchange.response_body(b"x", 0) == exchange.response_end(0) == ()
    assert begin(inspection()).verdict.outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("match", "request_", "expected"),
    [
        (path("/admin"), {"target": b"/x/..//%61dmin?y"}, True),
        (path("/admin"), {"target": b"/"}, False),
        (path("^/a.m", PathTest.REGEX), {"target": b"/admin"}, True),
        (Match(Filter(methods=("PUT",))), {"method": b"PUT"}, True),
        (Match(Filter(methods=("PUT",))), {}, False),
        (header("x-a", "1"), {"fields": (HOST, (b"x-a", b"1"))}, True),
        (header("x-a", "1"), {"fields": (HOST, (b"x-a", b"12"))}, False),
        (Match(parameters=(ParameterCondition("a", HeaderTest.PRESENT),)), {"target": b"/?%61"}, True),
        (Match(sources=(ip_network("192.0.2.0/24"),)), {}, True),
        (Match(sources=(ip_network("192.0.3.0/24"),)), {}, False),
        (Match(server_names=("shop.test",)), {"server_name": "shop.test"}, True),
        (Match(server_names=("shop.test",)), {}, False),
        (Match(client_certificates=("CN=ada",)), {"certificate_names": ("CN=ada",)}, True),
        (Match(client_certificates=("CN=ada",)), {}, False),
    ],
)
def test_matches(match, request_, expected):
    assert (outcome(Rule("r", Action.BLOCK, match=match), **request_) is Outcome.BLOCK) is expected


@pytest.mark.parametrize(
    ("exception", "request_", "expected"),
    [
        (Match(sources=(ip_network("10.0.0.0/8"),)), {"client": "10.0.0.1"}, False),
        (Match(sources=(ip_network("10.0.0.0/8"),)), {"client": "11.0.0.1"}, True),
        (Match(sources=(ip_network("10.0.0.0/8"),)), {"client": None}, True),
        (path("/admin/health"), {"target": b"/admin/health"}, False),
        (path("/admin/health"), {"target": b"/admin/health/../users"}, True),
        (header("x-a", "1"), {"fields": (HOST, (b"x-a", b"1"))}, False),
        (
            Match(path("/admin/health").filter, sources=(ip_network("10.0.0.0/8"),)),
            {"target": b"/admin/health", "client": "10.0.0.1"},
            False,
        ),
        (
            Match(path("/admin/health").filter, sources=(ip_network("10.0.0.0/8"),)),
            {"target": b"/admin/health", "client": "11.0.0.1"},
            True,
        ),
        (
            Match(path("/admin/health").filter, sources=(ip_network("10.0.0.0/8"),)),
            {"target": b"/admin/users", "client": "10.0.0.1"},
            True,
        ),
    ],
)
@pytest.mark.parametrize("patterns", [(), (Pattern(regex="shop"),)])
def test_exceptions(exception, request_, expected, patterns):
    rule = Rule("r", Action.BLOCK, exception=exception, patterns=patterns)
    assert (outcome(rule, **request_) is Outcome.BLOCK) is expected


def test_patterns_in_the_head():
    rule = Rule("r", Action.BLOCK, patterns=(Pattern(regex="^x-a: .*evil"), Pattern(regex=r"^/\?q=.*union select")))
    assert outcome(rule, fields=(HOST, (b"x-a", b"so evil"))) is Outcome.BLOCK
    assert outcome(rule, target=b"/?q=1+union%20select") is Outcome.BLOCK
    assert outcome(rule, fields=(HOST, (b"x-b", b"x-a: evil"))) is Outcome.PASS
    [hit] = begin(inspection(policy(rule)), b"/?q=union select").verdict.hits
    assert hit.pattern == r"regex ^/\?q=.*union select"


def test_patterns_in_the_body():
    rule = Rule("r", Action.BLOCK, match=path("/in"), patterns=(Pattern(Builtin.JWT), Pattern(regex=r"\bevil\b")))
    inspected = inspection(policy(rule))
    exchange = begin(inspected, b"/in")
    assert exchange.reads_request
    assert exchange.holds_request
    assert exchange.request_body(b"x" * 5000 + b" ev", 0) == ()
    [hit] = exchange.request_body(b"il, " + b"y" * 100, 0)
    assert hit == Hit("shop/p", "r", Outcome.BLOCK, pattern=r"regex \bevil\b")
    assert not exchange.reads_request
    assert exchange.request_body(b" evil ", 0) == ()
    assert exchange.verdict.blocker == hit
    token = begin(inspected, b"/in")
    assert token.request_body(secrets_made.jwt(random.Random(1)).encode(), 0) == ()
    [hit] = token.request_end(0)
    assert hit.pattern == "Jwt"
    assert not begin(inspected, b"/out").reads_request


def test_a_body_is_not_held_for_what_does_not_block():
    patterns = (Pattern(regex="x"),)
    alert, block = Rule("a", Action.ALERT, patterns=patterns), Rule("b", Action.BLOCK, patterns=patterns)
    assert not begin(inspection(policy(alert))).holds_request
    assert not begin(inspection(policy(block, mode=Mode.DETECT))).holds_request
    assert begin(inspection(policy(alert, block))).holds_request


def test_responses():
    cards = Rule("cards", Action.BLOCK, RESPONSE, patterns=(Pattern(Builtin.CARD_NUMBER),))
    server = Rule("server", Action.ALERT, RESPONSE, match=header("server", "old"))
    inspected = inspection(policy(cards, server))
    exchange = begin(inspected)
    assert not exchange.reads_request
    assert exchange.reads_response
    assert exchange.holds_response
    [hit] = exchange.response_head(((b"server", b"old"),), 0)
    assert hit.rule == "server"
    assert exchange.reads_response
    assert exchange.response_body(b'{"card":"4111 1111 1111 ', 0) == ()
    [hit] = exchange.response_body(b'1111"}' + b" " * 64, 0)
    assert (hit.rule, hit.pattern) == ("cards", "CardNumber")
    assert not exchange.reads_response
    assert [each.rule for each in exchange.verdict.hits] == ["server", "cards"]
    other = begin(inspected)
    assert other.response_head(((b"server", b"new"), (b"x-card", b"4111111111111111")), 0)[0].rule == "cards"


def test_a_response_of_a_request_that_no_rule_is_about():
    rule = Rule("r", Action.BLOCK, RESPONSE, match=path("/in"), patterns=(Pattern(regex="x"),))
    inspected = inspection(policy(rule))
    assert begin(inspected, b"/in").reads_response
    assert not begin(inspected, b"/out").reads_response


def test_an_exception_of_a_rule_for_responses():
    exception = Match(Filter((HeaderCondition("x-ok", HeaderTest.PRESENT),), paths=path("/public").filter.paths))
    inspected = inspection(policy(Rule("r", Action.BLOCK, RESPONSE, exception=exception)))
    for target, fields, count in (
        (b"/public", ((b"x-ok", b""),), 0),
        (b"/public", (), 1),
        (b"/other", ((b"x-ok", b""),), 1),
    ):
        assert len(begin(inspected, target).response_head(fields, 0)) == count
    only_path = inspection(policy(Rule("r", Action.BLOCK, RESPONSE, exception=path("/public"))))
    assert begin(only_path, b"/public").response_head((), 0) == ()
    assert len(begin(only_path, b"/other").response_head((), 0)) == 1


def test_messages_of_a_stream():
    exchange = begin(inspection(policy(Rule("r", Action.BLOCK, patterns=(Pattern(regex=r"\Aab\z"),)))))
    for message in (b"a", b"b", b"xab"):
        assert exchange.request_body(message, 0) == exchange.request_end(0) == ()
    exchange.request_body(b"ab", 0)
    assert len(exchange.request_end(0)) == 1


def test_what_is_not_looked_at_is_told():
    query = Rule("q", Action.BLOCK, match=Match(parameters=(ParameterCondition("a", HeaderTest.EXACT, "1"),)))
    assert begin(inspection(policy(query)), b"/?" + b"a&" * 600).unread == {Unread.PARAMETERS}
    cards = Rule("c", Action.BLOCK, patterns=(Pattern(Builtin.CARD_NUMBER),))
    exchange = begin(inspection(policy(cards)))
    exchange.request_body(b"4000 0000 0000 0000 " * 300, 0)
    assert exchange.unread == {Unread.CANDIDATES}
    assert begin(inspection(policy(cards)), fields=((b"a", b"4000000000000000 " * 100),)).unread == {Unread.CANDIDATES}


def test_what_a_rule_no_longer_needs_is_not_missing():
    patterns = (Pattern(Builtin.CARD_NUMBER), Pattern(regex="evil"))
    exchange = begin(inspection(policy(Rule("c", Action.BLOCK, patterns=patterns))))
    exchange.request_body(b"4000 0000 0000 0000 " * 100 + b"evil" + b" " * 9000, 0)
    exchange.request_end(0)
    assert exchange.verdict.outcome is Outcome.BLOCK
    assert exchange.unread == set()


# --- thresholds and rates --------------------------------------------------------------------------------------------


def test_a_threshold_counts_for_each_client():
    inspected = inspection(policy(Rule("r", Action.BLOCK, threshold=Threshold(3, 60))))

    def blocked(client, now):
        return begin(inspected, client=client, now=now).verdict.outcome is Outcome.BLOCK

    assert [blocked("192.0.2.1", now) for now in range(4)] == [False, False, True, True]
    assert not blocked("192.0.2.2", 4)
    assert not blocked("192.0.2.1", 200)
    # An IPv6 client is whoever has the /64, and an IPv4 client is the same when it comes mapped.
    assert [blocked(f"2001:db8::{each}", 300) for each in (1, 2, 3)] == [False, False, True]
    assert [blocked(each, 400) for each in ("::ffff:192.0.2.9", "192.0.2.9", "192.0.2.9")] == [False, False, True]
    assert [blocked(None, 500) for _ in range(3)] == [False, False, True]


def test_a_rate_limit_is_of_what_is_told_and_not_of_enforcement():
    inspected = inspection(policy(Rule("r", Action.BLOCK, rate_limit=RateLimit(2, 60))))
    hits = [begin(inspected, now=now).verdict.hits[0] for now in (0, 1, 2, 61)]
    assert [hit.told for hit in hits] == [True, True, False, True]
    assert {hit.outcome for hit in hits} == {Outcome.BLOCK}


def test_counts_outlive_a_change_of_policies():
    rule = Rule("r", Action.BLOCK, threshold=Threshold(2, 60))
    before = inspection(policy(rule))
    assert begin(before).verdict.outcome is Outcome.PASS
    after = inspection(policy(rule), thresholds=before.thresholds, limits=before.limits)
    assert begin(after).verdict.outcome is Outcome.BLOCK


# --- several policies ------------------------------------------------------------------------------------------------


def test_the_strictest_wins_and_the_cluster_speaks_first():
    cluster = policy(Rule("base", Action.BLOCK, match=path("/admin")), name="z", namespace="")
    exception = Match(sources=(ip_network("0.0.0.0/0"),))
    namespace = policy(
        Rule("base", Action.LOG, match=path("/admin"), exception=exception), Rule("all", Action.ALERT), mode=Mode.DETECT
    )
    verdict = begin(inspection(namespace, cluster), b"/admin").verdict
    assert [(hit.policy, hit.rule) for hit in verdict.hits] == [("z", "base"), ("shop/p", "all")]
    assert verdict.outcome is Outcome.BLOCK
    assert verdict.blocker.policy == "z"


def test_settings_of_a_port():
    quiet = policy(name="a", sample_percent=1, redaction=Redaction(False, ("x-a",)), mode=Mode.DETECT)
    strict = policy(
        name="b",
        failure_policy=FailurePolicy.FAIL,
        existing_connections=ExistingConnections.RESET,
        sample_percent=5,
        redaction=Redaction(True, ("x-b", "x-a")),
    )
    assert inspection(quiet).redaction == Redaction(False, ("x-a",))
    both = inspection(quiet, strict)
    assert both.redaction == Redaction(True, ("x-a", "x-b"))
    assert (both.closes, both.resets_existing, both.sample_percent) == (True, True, 5)
    assert not inspection(quiet).closes
    assert not inspection(policy(failure_policy=FailurePolicy.FAIL, mode=Mode.DETECT)).closes
    assert inspection().redaction == Redaction()
    with pytest.raises(ConfigurationError, match="two inspection policies of one name"):
        inspection(quiet, quiet)


# --- acceptance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "at"),
    [
        (Rule("r", Action.LOG, patterns=(Pattern(regex="a"), Pattern(regex="("))), "spec.rules[1].patterns[1].regex"),
        (Rule("r", Action.LOG, match=path("(", PathTest.REGEX)), "spec.rules[1].match.paths[0].value"),
        (
            Rule("r", Action.LOG, exception=Match(Filter((HeaderCondition("a", HeaderTest.REGEX, "("),)))),
            "spec.rules[1].except.headers[0].value",
        ),
        (
            Rule("r", Action.LOG, match=Match(parameters=(ParameterCondition("a", HeaderTest.REGEX, "("),))),
            "spec.rules[1].match.queryParameters[0].value",
        ),
    ],
)
def test_an_invalid_regex_has_a_path(rule, at):
    with pytest.raises(FieldError, match="invalid regex") as caught:
        accept(policy(Rule("first", Action.LOG), rule))
    assert caught.value.path == at


@pytest.mark.parametrize(
    "rule",
    [
        Rule("r", Action.LOG, patterns=(Pattern(regex="a[ab]{60}c"),)),
        Rule("r", Action.LOG, RESPONSE, patterns=(Pattern(regex="a[ab]{60}c"),)),
        Rule("r", Action.LOG, match=path("a[ab]{60}c", PathTest.REGEX)),
    ],
)
def test_slow_regexes_are_refused_wherever_they_stand(rule):
    assert accept(policy(rule)).cost == 0
    with pytest.raises(ConfigurationError, match="microseconds per KiB"):
        accept(policy(rule), time.thread_time)


def test_usual_regexes_are_accepted_with_their_cost():
    assert accept(policy(Rule("r", Action.LOG, patterns=(Pattern(regex="evil"),))), time.thread_time).cost > 0


# --- random policies and exchanges -----------------------------------------------------------------------------------

WORDS = ["evil", "good", "a", "4111111111111111", "/admin", "é"]
PATTERNS = [Pattern(regex="evil"), Pattern(regex=r"\bgood\b"), Pattern(Builtin.CARD_NUMBER), Pattern(regex="^a$")]
CLIENTS = ["10.0.0.1", "192.0.2.7", "2001:db8::1"]
_paths = st.builds(
    PathCondition, st.sampled_from([PathTest.PREFIX, PathTest.EQUAL]), st.sampled_from(["/admin", "/", "/a/b"])
)
_headers = st.builds(
    HeaderCondition, st.sampled_from(["x-a", "x-b"]), st.just(HeaderTest.EXACT), st.sampled_from(["evil", "good"])
)


def _few(strategy):
    return st.lists(strategy, max_size=1).map(tuple)


_matches = st.builds(
    Match,
    st.builds(Filter, headers=_few(_headers), methods=_few(st.sampled_from(["GET", "PUT"])), paths=_few(_paths)),
    sources=_few(st.sampled_from([ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")])),
    server_names=_few(st.just("shop.test")),
)
_rules = st.builds(
    Rule,
    st.just("r"),
    st.sampled_from(Action),
    st.sampled_from(Direction),
    _matches,
    st.none() | _matches.filter(lambda match: not match.is_empty),
    st.lists(st.sampled_from(PATTERNS), max_size=2, unique=True).map(tuple),
)
_policies = st.builds(
    lambda rules, mode: policy(*(_named(rule, number) for number, rule in enumerate(rules)), mode=mode),
    st.lists(_rules, min_size=1, max_size=4),
    st.sampled_from(Mode),
)
_fields = st.lists(st.tuples(st.sampled_from([b"x-a", b"x-b"]), st.sampled_from([b"evil", b"good", b"a"])), max_size=3)
_bodies = st.lists(st.sampled_from([*WORDS, " ", "\n", "x" * 4000]), max_size=5).map(
    lambda parts: "".join(parts).encode()
)
_targets = st.sampled_from([b"/", b"/admin", b"/a/b", b"/a/b/../../admin", b"/%61dmin/x?evil", b"/a//b", b"/x?good"])
_exchanges = st.fixed_dictionaries(
    {
        "target": _targets,
        "method": st.sampled_from([b"GET", b"PUT"]),
        "fields": _fields,
        "client": st.sampled_from(CLIENTS),
        "server_name": st.sampled_from(["", "shop.test", "other.test"]),
        "request": _bodies,
        "response_fields": _fields,
        "response": _bodies,
    }
)


def _named(rule, number):
    return Rule(f"r{number}", rule.action, rule.direction, rule.match, rule.exception, rule.patterns)


def run(policies, exchange, *, size=1 << 20):
    """The verdict on an exchange whose bodies arrive in pieces of this size."""
    inspected = inspection(*policies)
    found = begin(
        inspected,
        exchange["target"],
        method=exchange["method"],
        fields=exchange["fields"],
        client=exchange["client"],
        server_name=exchange["server_name"],
    )
    for body, feed, end in (
        (exchange["request"], found.request_body, found.request_end),
        (exchange["response"], found.response_body, found.response_end),
    ):
        for at in range(0, len(body), size):
            feed(body[at : at + size], 0)
        end(0)
        if feed == found.request_body:
            found.response_head(exchange["response_fields"], 0)
    return found


def plain_reading(rule, exchange):
    """Whether a rule applies, read off its words: no needles, no sets, no windows."""
    path = exchange["target"].partition(b"?")[0].decode()
    decoded = path.replace("%61", "a")
    normal = {"/a/b/../../admin": "/admin", "/a//b": "/a/b"}.get(decoded, decoded)
    request_side = rule.direction is Direction.REQUEST
    fields = exchange["fields"] if request_side else exchange["response_fields"]

    def holds(match, quantifier):
        wanted = match.filter
        client = ip_address(exchange["client"])
        return (
            all(any((each.name.encode(), each.value.encode()) == field for field in fields) for each in wanted.headers)
            and (not wanted.methods or exchange["method"].decode() in wanted.methods)
            and quantifier(
                not wanted.paths
                or any(
                    form == each.value or (each.test is PathTest.PREFIX and form.startswith(each.value))
                    for each in wanted.paths
                )
                for form in (path, decoded, normal)
            )
            and (not match.sources or any(client in network for network in match.sources))
            and (not match.server_names or exchange["server_name"] in match.server_names)
        )

    def has(pattern, text):
        if pattern.builtin:
            return re.search(r"(?<![0-9A-Za-z_.%-])4111111111111111(?![0-9A-Za-z_])", text) is not None
        return re.search(pattern.regex, text, re.MULTILINE | re.ASCII) is not None

    lines = [f"{name.decode()}: {value.decode()}" for name, value in fields]
    if request_side:
        query = exchange["target"].partition(b"?")[1:]
        lines += [form + b"".join(query).decode() for form in (path, decoded)] + [decoded, normal]
    body = exchange["request" if request_side else "response"].decode()
    return (
        holds(rule.match, any)
        and not (rule.exception is not None and holds(rule.exception, all))
        and (not rule.patterns or any(has(each, text) for each in rule.patterns for text in ("\n".join(lines), body)))
    )


def applied(found):
    return {(hit.policy, hit.rule, hit.outcome, hit.would_block) for hit in found.verdict.hits}


@settings(max_examples=examples())
@given(_policies, _exchanges)
def test_verdicts_are_what_the_rules_say(wanted, exchange):
    found = run([wanted], exchange)
    expected = {rule.name for rule in wanted.rules if plain_reading(rule, exchange)}
    assert {hit.rule for hit in found.verdict.hits} == expected
    assert len(found.verdict.hits) == len(expected)


@settings(max_examples=examples())
@given(_policies, _exchanges, st.integers(1, 5000))
def test_how_bodies_are_cut_makes_no_difference(wanted, exchange, size):
    pieces, whole = run([wanted], exchange, size=size), run([wanted], exchange)
    assert applied(pieces) == applied(whole)
    assert pieces.unread == whole.unread


@settings(max_examples=examples())
@given(_policies, _policies, _exchanges)
def test_a_further_policy_never_weakens(one, other, exchange):
    baseline = policy(*one.rules, name="base", namespace="", mode=one.mode)
    alone, together = run([baseline], exchange), run([other, baseline], exchange)
    assert applied(alone) <= applied(together)
    assert alone.verdict.outcome <= together.verdict.outcome
    assert together.verdict.outcome == max((hit.outcome for hit in together.verdict.hits), default=Outcome.PASS)


@settings(max_examples=examples())
@given(_policies, _exchanges)
def test_detect_says_what_enforce_would_do(wanted, exchange):
    detected = run([policy(*wanted.rules, mode=Mode.DETECT)], exchange)
    enforced = run([policy(*wanted.rules, mode=Mode.ENFORCE)], exchange)
    assert detected.verdict.outcome < Outcome.BLOCK
    assert {hit.rule for hit in detected.verdict.hits} == {hit.rule for hit in enforced.verdict.hits}
    assert {hit.rule for hit in detected.verdict.hits if hit.would_block} == {
        hit.rule for hit in enforced.verdict.hits if hit.outcome is Outcome.BLOCK
    }


EVERYTHING = inspection(
    policy(
        *(Rule(f"r{number}", Action.BLOCK, patterns=(Pattern(each),)) for number, each in enumerate(Builtin)),
        Rule("p", Action.BLOCK, match=path(".a.", PathTest.REGEX)),
        Rule("q", Action.BLOCK, match=Match(parameters=(ParameterCondition("a", HeaderTest.REGEX, "b"),))),
    )
)


@settings(max_examples=examples())
@given(st.binary(max_size=60), st.binary(max_size=20), st.binary(max_size=200))
def test_no_bytes_raise(target, value, body):
    found = begin(EVERYTHING, target, fields=((b"x", value),))
    found.request_body(body, 0)
    found.request_end(0)


@pytest.mark.alone
def test_the_cost_of_a_head_without_a_hit_grows_little_with_the_rules():
    def cost(count):
        rules = [Rule(f"r{each}", Action.BLOCK, match=path(f"/admin/{each}")) for each in range(count)]
        connection = inspection(policy(*rules)).connection(ConnectionFacts(ip_address("192.0.2.7")))
        fields = [HOST, *((f"x-{each}".encode(), b"value") for each in range(10))]
        best = float("inf")
        for _ in range(10):
            began = time.process_time()
            for _ in range(500):
                connection.request(b"GET", b"/orders/17?page=2", fields, 0)
            best = min(best, time.process_time() - began)
        return best

    assert cost(200) < 3 * cost(1)


def test_the_regexes_of_a_policy_are_bounded_together():
    def searching(*regexes):
        patterns = (tuple(Pattern(regex=regex) for regex in regexes[at : at + 32]) for at in range(0, len(regexes), 32))
        return policy(*(Rule(f"r{number}", Action.LOG, patterns=each) for number, each in enumerate(patterns)))

    large = [f"[a-z]{{{960 + number}}}x" for number in range(35)]
    assert 31_000 < accept(searching(*large[:32])).instructions <= MAX_INSTRUCTIONS
    with pytest.raises(FieldError, match=f"more than {MAX_INSTRUCTIONS} instructions") as caught:
        accept(searching(*large))
    assert caught.value.path == "spec.rules[1].patterns[1].regex"
    many = [f"a{number}" for number in range(MAX_REGEXES + 1)]
    accept(searching(*many[:-1]))
    with pytest.raises(ConfigurationError, match=f"at most {MAX_REGEXES}"):
        accept(searching(*many))
