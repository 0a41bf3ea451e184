"""Requests on connections that were opened as ones to a server: by which policies and names each is judged."""

from ipaddress import ip_network

import pytest

from sidestep.model.egress import Destination
from sidestep.model.filter import Filter, PathCondition, PathTest
from sidestep.model.inspection import Action, Match, Pattern, Rule
from sidestep.policy.egress import EgressPolicies
from sidestep.policy.inspected_exchange import Unread
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.outbound_hosts import OpenedHosts
from tests.unit.policy.test_egress import PRIVATE, WEB, compiled

ADMIN = Match(Filter(paths=(PathCondition(PathTest.PREFIX, "/admin"),)))


def opened(*policies, name="a.test", judging=None):
    """The connection to a server of this name, to which `judging` apply; all policies if it is None."""
    current = EgressPolicies(policies)
    applying = current.policies if judging is None else judging
    hosts = OpenedHosts(lambda: current, WEB, 443, name=name, judging=applying)
    facts = ConnectionFacts(PRIVATE, name, (), WEB, 443, binds_host=True, hosts=hosts)
    return Inspection([each.whole for each in current.policies]).connection(facts)


def hits(connection, host, path=b"/", now=0.0):
    """The rules that apply to a request, and what could not be judged of it."""
    exchange = connection.request(b"GET", path, [(b"accept", b"*/*"), (b"host", host)], now)
    return [f"{each.policy} {each.rule}" for each in exchange.verdict.hits], set(exchange.unread)


@pytest.mark.parametrize(
    ("name", "host", "other"),
    [
        ("a.test", b"a.test", False),
        ("A.test", b"a.TEST:443", False),
        ("a.test.", b"a.test", False),
        ("a.test", b"a.test.", False),
        ("a.test", b"a.test:", True),
        ("2001:db8::1", b"[2001:db8::1]:80", False),
        ("2001:db8::1", b"[2001:DB8::1]", False),
        ("192.0.2.1", b"192.0.2.1:80", False),
        ("a.test", b"b.test", True),
        ("a.test", b"www.a.test", True),
        ("a.test", b"", True),
        ("a.test", b"user@a.test", True),
    ],
)
def test_which_requests_are_for_another_host(name, host, other):
    assert hits(opened(compiled(), name=name), host) == ([], {Unread.HOST} if other else set())


def test_no_head_is_remembered_or_cleared_by_its_needles():
    connection = opened(compiled(rules=[Rule("a", Action.ALERT, match=ADMIN)]))
    assert not connection.clears(b"/", [(b"host", b"a.test")])
    assert (connection.clean, connection.asked, connection.is_quick) == (None, None, False)


def test_a_rule_about_another_name_applies_to_requests_for_it():
    named = Match(server_names=("b.test", "*.b.test"))
    connection = opened(compiled(rules=[Rule("no-b", Action.BLOCK, match=named)]))
    assert hits(connection, b"a.test") == ([], set())
    assert hits(connection, b"B.test.:443") == (["shop/p no-b"], {Unread.HOST})
    assert hits(connection, b"www.b.test")[0] == ["shop/p no-b"]
    assert hits(connection, b"c.test") == ([], {Unread.HOST})
    for host in (b"b.test:", b"c.test:", b"b%2etest", b""):
        assert hits(connection, host) == (["shop/p no-b"], {Unread.HOST}), "servers may take it for any"


def test_a_rule_about_the_name_of_the_connection_applies_whatever_the_host_is():
    match = Match(ADMIN.filter, server_names=("a.test",))
    connection = opened(compiled(rules=[Rule("no-admin", Action.BLOCK, match=match)]))
    for host in (b"a.test", b"b.test", b"", b"a.test:"):
        assert hits(connection, host, b"/admin")[0] == ["shop/p no-admin"]


def test_an_exception_has_to_hold_for_both_names():
    exception = Match(server_names=("a.test", "b.test"))
    connection = opened(compiled(rules=[Rule("none", Action.BLOCK, match=ADMIN, exception=exception)]))
    assert hits(connection, b"a.test", b"/admin") == ([], set())
    assert hits(connection, b"b.test", b"/admin") == ([], {Unread.HOST})
    for host in (b"c.test", b"", b"a.test:"):
        assert hits(connection, host, b"/admin")[0] == ["shop/p none"]


def test_rules_that_look_at_connections_alone_are_not_told_again():
    """They were judged before the connection was opened; those about the other name were not."""
    rules = [
        Rule("port", Action.ALERT, match=Match(ports=(443,))),
        Rule("other", Action.ALERT, match=Match(server_names=("b.test",))),
        Rule("key", Action.ALERT, patterns=(Pattern(regex="sk_live_[0-9]{4}"),)),
    ]
    connection = opened(compiled(rules=rules))
    assert hits(connection, b"a.test") == ([], set())
    assert hits(connection, b"a.test", b"/?sk_live_1234")[0] == ["shop/p key"]
    assert hits(connection, b"b.test")[0] == ["shop/p other"]


def test_policies_about_another_host_apply_beside_those_of_the_connection():
    all_of = [Rule("all", Action.ALERT)]
    mine = compiled(Destination("a", names=("a.test",)), rules=[Rule("no-admin", Action.BLOCK, match=ADMIN)], name="a")
    other = compiled(Destination("b", names=("b.test",)), rules=all_of, name="b")
    far = compiled(
        Destination("net", names=("b.test",), networks=(ip_network("192.0.2.0/24"),)), rules=all_of, name="c"
    )
    connection = opened(mine, other, far, judging=[mine])
    assert hits(connection, b"a.test") == ([], set())
    for host in (b"b.test", b"b.test:", b"b%2etest", b""):
        assert hits(connection, host, b"/admin")[0] == ["shop/a no-admin", "shop/b all"]
    assert hits(connection, b"c.test", b"/admin")[0] == ["shop/a no-admin"]


@pytest.mark.parametrize("fails", ["a", "b", "c"])
def test_a_host_without_a_certain_name_is_refused_where_a_policy_that_may_be_about_it_fails_closed(fails):
    """The connection is that of `a`, and `c` cannot be about anything on it."""
    far = Destination("net", names=("b.test",), networks=(ip_network("192.0.2.0/24"),))
    destinations = {"a": Destination("a", names=("a.test",)), "b": Destination("b", names=("b.test",)), "c": far}
    policies = [compiled(each, name=name, fail=fails == name) for name, each in destinations.items()]
    connection = opened(*policies, judging=policies[:1])
    closing = {host: connection.of_request([(b"host", host)]).closing for host in (b"a.test", b"b.test", b"b.test:")}
    refuses = "" if fails == "c" else f"shop/{fails}"
    assert closing == {b"a.test": "", b"b.test": "", b"b.test:": refuses}
