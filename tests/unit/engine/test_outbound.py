"""Connections that the pod makes, by their first bytes: what is seen, however it arrives, and what follows from it."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.classification import PEEK, AskApp, Event, Wait
from sidestep.engine.outbound import Decision, Opening, Seen, blocks_whatever_follows, decide, see, tls_port
from sidestep.model.egress import Destination, EgressMode
from sidestep.model.inspection import Action, Match, Mode, Pattern, Rule, Threshold
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.egress import EgressPolicies
from sidestep.policy.inspection_match import ConnectionFacts
from tests.effort import examples
from tests.harness.client_hello import hello_of_ssl
from tests.unit.policy.test_egress import BLOCK, PRIVATE, WEB, compiled

HELLO = hello_of_ssl("API.test", ["h2", "http/1.1"])
GET = b"GET /a?b HTTP/1.1\r\nHost: Api.test:8080\r\nAccept: */*\r\n\r\nmore"
FACTS = ConnectionFacts(PRIVATE, destination=WEB, port=443)


def with_ech(hello):
    """The same hello with an encrypted_client_hello extension at its end, as the record and message lengths say."""
    added = b"\xfe\x0d\x00\x04abcd"
    record, message, body = hello[:5], hello[5:9], hello[9:]
    at = 2 + 32
    at += 1 + body[at]
    at += 2 + int.from_bytes(body[at : at + 2])
    at += 1 + body[at]
    extensions = int.from_bytes(body[at : at + 2]) + len(added)
    body = body[:at] + extensions.to_bytes(2) + body[at + 2 :] + added
    return record[:3] + (len(body) + 4).to_bytes(2) + message[:1] + len(body).to_bytes(3) + body


@pytest.mark.parametrize(
    ("data", "protocol", "name", "doubt"),
    [
        (HELLO, "tls", "API.test", ""),
        (hello_of_ssl(None), "tls", "", "no-server-name"),
        (with_ech(HELLO), "tls", "API.test", "encrypted-client-hello"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "tls", "", "not-a-client-hello"),
        (GET, "http", "Api.test", ""),
        (b"GET http://a.test:80/x HTTP/1.1\r\nHost: a.test:80\r\n\r\n", "http", "a.test", ""),
        (b"CONNECT a.test:443 HTTP/1.1\r\nHost: b.test\r\n\r\n", "http", "a.test", ""),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "http", "2001:db8::1", ""),
        (b"GET / HTTP/1.0\r\n\r\n", "http", "", "no-server-name"),
        (b"GET / HTTP/1.1\r\nHost: a.test:\r\n\r\n", "http", "", "no-server-name"),
        (b"GET / HTTP/1.1\r\nHost: a.test:000080\r\n\r\n", "http", "", "no-server-name"),
        (b"GET / HTTP/1.1\r\nHost: %61.test\r\n\r\n", "http", "", "no-server-name"),
        (hello_of_ssl("a_b.test"), "tls", "a_b.test", ""),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", "http", "", "h1-host"),
        (b"GET / HTTP/1.1\r\nHost : a.test\r\n\r\n", "http", "", "h1-field"),
        (b"GET / HTTP/1.1\nHost: a.test\n\n", "http", "", "h1-bare-lf"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * PEEK, "http", "", "h1-head-too-large"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http", "", "http2-in-clear"),
        (b"SSH-2.0-x\r\n", "", "", "not-http"),
        (b"\x00\x01\x02\x03", "", "", "not-http"),
        (b"\r\n\n" + GET, "http", "", "h1-leading-empty-line"),
        (b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http", "", "h1-leading-empty-line"),
        (b"\r\n\x00\x01", "", "", "not-http"),
        (b"GET  /admin HTTP/1.1\r\nHost: a.test\r\n\r\n", "http", "", "h1-request-line"),
        (b"GET\t/admin HTTP/1.1\r\n\r\n", "http", "", "h1-request-line"),
        (b"GET \x0b\x0c/admin HTTP/1.1\r\n\r\n", "http", "", "h1-request-line"),
        (b"GET abc://a.test/admin HTTP/1.1\r\n\r\n", "http", "", "h1-request-line"),
        (b"get  http://a.test/ HTTP/1.1\r\n\r\n", "http", "", "h1-request-line"),
        (b"M" * 33 + b" / HTTP/1.1\r\n\r\n", "http", "", "h1-request-line"),
        (b"OPTIONS  * HTTP/1.1\r\n\r\n", "http", "", "h1-request-line"),
        (b" GET /admin HTTP/1.1\r\n\r\n", "http", "", "h1-leading-empty-line"),
        (b"\t GET  /admin HTTP/1.1\r\n\r\n", "http", "", "h1-request-line"),
        (b"set key:1 0 0 3\r\nabc\r\n", "", "", "not-http"),
        (b"NICK ada\r\nUSER ada\r\n", "", "", "not-http"),
        (b"a1 LOGIN ada secret\r\n", "", "", "not-http"),
        (b"*1\r\n$4\r\nPING\r\n", "", "", "not-http"),
    ],
)
def test_what_is_seen_however_it_arrives(data, protocol, name, doubt):
    found = see(Event.DATA, data)
    assert (found.protocol, found.name, found.doubt) == (protocol, name, doubt)
    assert bool(found.fingerprints) is (found.hello is not None)
    for end in range(1, min(len(data), 700)):
        before = see(Event.DATA, data[:end])
        if not isinstance(before, Wait):
            assert (before.protocol, before.name, bool(before.doubt)) == (protocol, name, bool(doubt))


def test_a_wait_asks_for_no_more_than_comes():
    wait = see(Event.DATA, HELLO[:40])
    assert isinstance(wait, Wait)
    assert 0 < wait.more <= len(HELLO) - 40


def test_every_wait_has_an_end():
    assert isinstance(see(Event.ACCEPTED), Wait)
    assert isinstance(see(Event.SILENT), AskApp)
    for event in (Event.STILL_SILENT, Event.EOF, Event.INCOMPLETE, Event.SERVER_FIRST):
        assert isinstance(see(event), Seen)


@settings(max_examples=examples(300))
@given(st.binary(max_size=300))
def test_whatever_comes_is_seen_or_waited_for(data):
    assert isinstance(see(Event.DATA, data), Wait | Seen)


def test_where_no_policy_has_anything_to_say_nothing_is_judged():
    policies = EgressPolicies([compiled(Destination("a", networks=(ip_network("198.51.100.0/24"),)), fail=True)])
    assert decide(policies, FACTS, see(Event.DATA, HELLO), 0.0) == Decision()
    assert decide(EgressPolicies([]), FACTS, Seen(doubt="not-http"), 0.0) == Decision()


def test_a_name_and_a_fingerprint_are_judged():
    seen = see(Event.DATA, HELLO)
    rules = [
        Rule("name", Action.ALERT, match=Match(server_names=("api.test",))),
        Rule("print", Action.BLOCK, match=Match(fingerprints=(seen.fingerprints[1],))),
        Rule("other", Action.BLOCK, match=Match(server_names=("other.test",))),
    ]
    found = decide(EgressPolicies([compiled(rules=rules)]), FACTS, seen, 0.0)
    assert [hit.rule for hit in found.verdict.hits] == ["name", "print"]
    assert found.blocks
    assert (found.reason, found.closes, found.is_judged) == ("", False, True)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (Seen(doubt="server-first"), "server-first"),
        (Seen("tls", "a.test", "encrypted-client-hello"), "encrypted-client-hello"),
    ],
)
@pytest.mark.parametrize("fail", [False, True])
def test_what_cannot_be_named_is_told_and_closed_where_a_policy_fails_closed(seen, reason, fail):
    by_rule = compiled(rules=[BLOCK], fail=fail)
    by_destination = compiled(Destination("a", names=("b.test",)), fail=fail)
    for policy in (by_rule, by_destination):
        found = decide(EgressPolicies([policy]), FACTS, seen, 0.0)
        assert (found.reason, found.closes, found.blocks) == (reason, fail, False)


UNREADABLE = {
    "bare LF": see(Event.DATA, b"GET /admin HTTP/1.1\nHost: a.test\n\n"),
    "an empty line before": see(Event.DATA, b"\r\n" + GET),
    "a head that is too large": see(Event.DATA, b"GET / HTTP/1.1\r\nX: " + b"a" * PEEK),
    "a head that goes on later": see(Event.INCOMPLETE, b"GET /ad"),
    "a client that speaks later": see(Event.STILL_SILENT),
}


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("way", UNREADABLE)
def test_a_request_that_cannot_be_read_is_told_and_closed_where_a_rule_looks_at_requests(way, fail):
    """Its server may read it: no name is needed for that."""
    seen = UNREADABLE[way]
    looks = Rule("keys", Action.BLOCK, patterns=(Pattern(regex="key"),))
    net = Rule("net", Action.ALERT, match=Match(networks=(ip_network("198.51.100.0/24"),)))
    for mode in EgressMode:
        found = decide(EgressPolicies([compiled(Destination("a", mode), rules=[looks], fail=fail)]), FACTS, seen, 0.0)
        assert (found.reason, found.closes, found.opening) == (seen.doubt, fail, None)
    observed = [compiled(rules=[net], fail=fail), compiled(rules=[looks], name="other")]
    found = decide(EgressPolicies(observed[:1]), FACTS, seen, 0.0)
    assert (found.reason, found.closes) == ("", False)
    found = decide(EgressPolicies(observed), FACTS, seen, 0.0)
    assert (found.reason, found.closes) == (seen.doubt, False), "the policy that looks at requests does not fail closed"


@pytest.mark.parametrize("seen", [Seen(doubt="server-first"), Seen(doubt="not-http"), see(Event.DATA, HELLO)])
def test_what_is_no_request_passes_rules_about_requests(seen):
    looks = Rule("keys", Action.BLOCK, patterns=(Pattern(regex="key"),))
    found = decide(EgressPolicies([compiled(rules=[looks], fail=True)]), FACTS, seen, 0.0)
    assert (found.reason, found.closes) == ("", False)


def test_a_doubt_that_changes_nothing_is_not_told():
    rule = Rule("net", Action.ALERT, match=Match(networks=(ip_network("203.0.113.0/24"),)))
    found = decide(EgressPolicies([compiled(rules=[rule], fail=True)]), FACTS, Seen(doubt="server-first"), 0.0)
    assert (found.reason, found.closes) == ("", False)
    assert found.verdict.outcome is Outcome.ALERT


@pytest.mark.parametrize(
    ("mode", "seen", "opening", "reason"),
    [
        (EgressMode.OBSERVE, Seen("tls", "a.test"), None, ""),
        (EgressMode.OBSERVE, Seen("http", "a.test"), None, ""),
        (EgressMode.ORIGINATE, Seen("tls", "a.test"), None, ""),
        (EgressMode.ORIGINATE, Seen("http", "a.test"), Opening.ORIGINATE, ""),
        (EgressMode.ORIGINATE, Seen("http", "a.test", asks_proxy=True), None, "asks-a-proxy"),
        (EgressMode.ORIGINATE, Seen(doubt="server-first"), None, "server-first"),
        (EgressMode.ORIGINATE, Seen(), None, "not-opened"),
        (EgressMode.DECRYPT, Seen("http", "a.test"), None, ""),
        (EgressMode.DECRYPT, Seen("tls", "a.test"), Opening.DECRYPT, ""),
        (EgressMode.DECRYPT, Seen("tls", doubt="no-server-name"), None, "no-server-name"),
        (EgressMode.DECRYPT, Seen("tls", "a.test", "encrypted-client-hello"), None, "encrypted-client-hello"),
        (EgressMode.DECRYPT, Seen(doubt="not-http"), None, "not-http"),
    ],
)
def test_what_is_opened_and_what_cannot_be_is_told_and_closed_where_a_policy_fails_closed(mode, seen, opening, reason):
    for fail in (False, True):
        policies = EgressPolicies([compiled(Destination("a", mode), fail=fail)])
        found = decide(policies, FACTS, seen, 0.0)
        assert (found.opening, found.reason) == (opening, reason)
        assert found.closes is (fail and bool(reason))


@pytest.mark.parametrize("data", [GET, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("mode", [EgressMode.OBSERVE, EgressMode.DECRYPT])
def test_clear_http_is_read_whatever_its_first_host_is(data, mode):
    named = compiled(Destination("a", mode, names=("bank.test",)), rules=[BLOCK], fail=True)
    found = decide(EgressPolicies([named]), FACTS, see(Event.DATA, data), 0.0)
    assert (found.opening, found.reason, found.closes, found.blocks) == (Opening.READ, "", False, False)
    assert found.reading == (named,)
    elsewhere = compiled(Destination("a", mode, networks=(ip_network("198.51.100.0/24"),)))
    assert decide(EgressPolicies([elsewhere]), FACTS, see(Event.DATA, data), 0.0) == Decision()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2-in-clear"),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "asks-a-proxy"),
        (b"GET / HTTP/1.0\r\n\r\n", "no-server-name"),
    ],
)
def test_clear_http_that_is_wanted_in_tls_is_told_and_read_or_closed(data, reason):
    for fail in (False, True):
        policies = EgressPolicies([compiled(Destination("a", EgressMode.ORIGINATE), fail=fail)])
        found = decide(policies, FACTS, see(Event.DATA, data), 0.0)
        assert (found.opening, found.reason, found.closes) == (None if fail else Opening.READ, reason, fail)


def test_a_tunnel_is_not_read():
    seen = see(Event.DATA, b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert seen.clear_http is None
    assert decide(EgressPolicies([compiled(rules=[BLOCK], fail=True)]), FACTS, seen, 0.0).opening is None


def test_what_a_connection_is_opened_with_is_said_by_the_first_policy_that_opens_it():
    mine = compiled(Destination("a", EgressMode.DECRYPT), name="a")
    of_cluster = compiled(Destination("a", EgressMode.DECRYPT, names=("a.test",)), namespace="")
    policies = EgressPolicies([mine, of_cluster, compiled(name="0")])
    found = decide(policies, FACTS, Seen("tls", "a.test"), 0.0)
    assert found.opener is of_cluster
    assert decide(policies, FACTS, Seen("tls", "b.test"), 0.0).opener is mine
    assert len(found.treatment.policies) == 3


def test_what_cannot_be_opened_after_all():
    for fail in (False, True):
        found = decide(
            EgressPolicies([compiled(Destination("a", EgressMode.DECRYPT), fail=fail)]),
            FACTS,
            Seen("tls", "a.test"),
            0.0,
        )
        left = found.unopened("no-issuer")
        assert (left.opening, left.reason, left.closes, left.is_judged) == (None, "no-issuer", fail, True)


def test_the_port_of_tls():
    assert [tls_port(each) for each in (80, 443, 8080)] == [443, 443, 8080]


@pytest.mark.parametrize(
    ("data", "asks"),
    [
        (GET, False),
        (b"OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n", False),
        (b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", True),
        (b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", True),
    ],
)
def test_who_asks_a_proxy(data, asks):
    assert see(Event.DATA, data).asks_proxy is asks


@pytest.mark.parametrize("mode", [EgressMode.DECRYPT, EgressMode.ORIGINATE])
def test_the_doubts_of_a_policy_that_fails_open_do_not_let_pass_what_another_closes(mode):
    strict, lax = compiled(Destination("all", mode), fail=True), compiled(Destination("b", names=("b.test",)))
    for seen in (Seen(doubt="server-first"), Seen(doubt="not-http")):
        assert decide(EgressPolicies([strict]), FACTS, seen, 0.0).closes
        assert decide(EgressPolicies([strict, lax]), FACTS, seen, 0.0).closes
        assert not decide(EgressPolicies([lax]), FACTS, seen, 0.0).closes


@pytest.mark.parametrize(
    ("rule", "mode", "blocked"),
    [
        (Rule("a", Action.BLOCK), Mode.ENFORCE, True),
        (
            Rule("a", Action.BLOCK, match=Match(networks=(ip_network("203.0.113.0/24"),), ports=(443,))),
            Mode.ENFORCE,
            True,
        ),
        (Rule("a", Action.BLOCK, match=Match(ports=(80,))), Mode.ENFORCE, False),
        (Rule("a", Action.BLOCK), Mode.DETECT, False),
        (Rule("a", Action.BLOCK, threshold=Threshold(2, 60.0)), Mode.ENFORCE, False),
        (Rule("a", Action.ALERT), Mode.ENFORCE, False),
        (BLOCK, Mode.ENFORCE, False),
        (Rule("a", Action.BLOCK, exception=Match(server_names=("a.test",))), Mode.ENFORCE, False),
        (Rule("a", Action.BLOCK, exception=Match(networks=(ip_network("203.0.113.0/24"),))), Mode.ENFORCE, False),
        (Rule("a", Action.BLOCK, match=Match(fingerprints=("0" * 32,))), Mode.ENFORCE, False),
    ],
)
def test_what_an_address_alone_blocks(rule, mode, blocked):
    policies = EgressPolicies([compiled(rules=[rule], mode=mode)])
    assert blocks_whatever_follows(policies, WEB, 443) is blocked
    if blocked:
        assert decide(policies, FACTS, Seen(), 0.0).blocks
    assert not blocks_whatever_follows(policies, ip_address("10.0.0.1"), 443)


def test_a_client_that_ends_without_a_byte_can_hide_no_request():
    assert not see(Event.EOF).may_hide_request
    assert see(Event.STILL_SILENT).may_hide_request
