"""Connections that pods make: which are meant, how far they are opened, which rules apply; and that policies add up."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.model.egress import EVERYTHING, Destination, EgressMode, Quic
from sidestep.model.filter import Filter
from sidestep.model.inspection import (
    Action,
    Egress,
    FailurePolicy,
    InspectionPolicy,
    Match,
    Mode,
    Pattern,
    RateLimit,
    Rule,
    Threshold,
)
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.egress import REMEMBERED, EgressPolicies, compile_egress, is_external
from sidestep.policy.inspection_match import ConnectionFacts
from tests.effort import examples

WEB = ip_address("203.0.113.7")
PRIVATE = ip_address("10.1.2.3")
JA4 = "t13d1516h2_8daaf6152771_e5627efa2ab1"


def compiled(*destinations, rules=(), name="p", namespace="shop", mode=Mode.ENFORCE, fail=False, quic=Quic.ALLOW):
    failing = FailurePolicy.FAIL if fail else FailurePolicy.IGNORE
    egress = Egress(destinations or EVERYTHING, tuple(rules), failing, quic)
    return compile_egress(InspectionPolicy(name, namespace, mode=mode, egress=egress).outward, egress)


def facts(name="", address=WEB, port=443, fingerprints=()):
    return ConnectionFacts(PRIVATE, name, (), address, port, fingerprints)


def verdict(policies, connection, now=0.0):
    treatment = policies.treatment(connection.destination, connection.port, connection.server_name)
    return policies.verdict(treatment, connection, now)


@pytest.mark.parametrize(
    ("address", "external"),
    [
        ("203.0.113.7", True),
        ("8.8.8.8", True),
        ("100.63.255.255", True),
        ("172.32.0.0", True),
        ("223.255.255.255", True),
        ("2001:db8::1", True),
        ("::ffff:203.0.113.7", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("100.64.0.1", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("172.31.255.255", False),
        ("192.168.1.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:10.0.0.1", False),
        ("fd00::1", False),
        ("fe80::1", False),
        ("ff02::1", False),
    ],
)
def test_which_addresses_are_external(address, external):
    assert is_external(ip_address(address)) is external
    assert EgressPolicies([compiled()]).steers(ip_address(address), 443) is external


def test_without_policies_nothing_is_touched():
    policies = EgressPolicies([])
    assert not policies.steers(WEB, 443)
    assert not policies.blocks_quic(WEB, 443)
    assert policies.treatment(WEB, 443, "a.test").policies == ()


@pytest.mark.parametrize(
    ("destination", "address", "port", "steered"),
    [
        (Destination("a", ports=(443, 80)), WEB, 443, True),
        (Destination("a", ports=(443, 80)), WEB, 8080, False),
        (Destination("a", networks=(ip_network("10.1.0.0/16"),)), PRIVATE, 5432, True),
        (Destination("a", networks=(ip_network("10.1.0.0/16"),)), ip_address("::ffff:10.1.2.3"), 5432, True),
        (Destination("a", networks=(ip_network("10.1.0.0/16"),)), WEB, 443, False),
        (Destination("a", networks=(ip_network("10.1.0.0/16"),), ports=(443,)), PRIVATE, 80, False),
        (Destination("a", names=("a.test",)), WEB, 443, True),
        (Destination("a", names=("a.test",)), PRIVATE, 443, False),
        (Destination("a", networks=(ip_network("2001:db8::/32"),)), ip_address("2001:db8::5"), 443, True),
        (Destination("a", networks=(ip_network("2001:db8::/32"),)), WEB, 443, False),
    ],
)
def test_what_is_steered(destination, address, port, steered):
    policies = EgressPolicies([compiled(destination)])
    assert policies.steers(address, port) is steered
    assert bool(policies.treatment(address, port, "a.test").policies) is steered


def test_the_name_decides_where_a_destination_has_names():
    policy = compiled(Destination("a", EgressMode.DECRYPT, names=("*.a.test",)), fail=True)
    policies = EgressPolicies([policy])
    assert policies.treatment(WEB, 443, "WWW.a.test.").policies == (policy,)
    other = policies.treatment(WEB, 443, "b.test")
    assert (other.policies, other.doubtful, other.closes_unnamed) == ((), (), False)
    unnamed = policies.treatment(WEB, 443)
    assert (unnamed.policies, unnamed.doubtful) == ((), (policy,))
    assert unnamed.closes_unnamed
    assert not unnamed.decrypts
    assert not EgressPolicies([compiled(Destination("a", names=("a.test",)))]).treatment(WEB, 443).closes_unnamed


def test_a_name_that_cannot_change_anything_leaves_no_doubt():
    named, all_of_them = Destination("a", EgressMode.DECRYPT, names=("a.test",)), Destination("b")
    policies = EgressPolicies([compiled(all_of_them, fail=True)])
    assert not policies.treatment(WEB, 443).doubtful
    doubtful = EgressPolicies([compiled(named, all_of_them, fail=True)]).treatment(WEB, 443)
    assert doubtful.policies, "the other destination applies whatever the name is"
    assert doubtful.closes_unnamed, "it might have to be decrypted"


def test_modes_add_up():
    clear, tls = Destination("a", EgressMode.ORIGINATE), Destination("a", EgressMode.DECRYPT, names=("a.test",))
    for policies in ([compiled(clear), compiled(tls, name="q")], [compiled(tls, name="q"), compiled(clear)]):
        treatment = EgressPolicies(policies).treatment(WEB, 443, "a.test")
        assert (treatment.originates, treatment.decrypts) == (True, True)
        treatment = EgressPolicies(policies).treatment(WEB, 443, "b.test")
        assert (treatment.originates, treatment.decrypts) == (True, False)
    treatment = EgressPolicies([compiled()]).treatment(WEB, 443, "a.test")
    assert (treatment.originates, treatment.decrypts) == (False, False)


def test_only_one_that_enforces_and_fails_closes():
    for mode, fail, closes in ((Mode.ENFORCE, True, True), (Mode.ENFORCE, False, False), (Mode.DETECT, True, False)):
        treatment = EgressPolicies([compiled(mode=mode, fail=fail)]).treatment(WEB, 443, "a.test")
        assert treatment.closes_unread is closes


def test_quic():
    policies = EgressPolicies([compiled(Destination("a", ports=(443,)), quic=Quic.BLOCK), compiled(name="q")])
    assert policies.blocks_quic(WEB, 443)
    assert not policies.blocks_quic(WEB, 53)
    assert not policies.blocks_quic(PRIVATE, 443)
    assert not EgressPolicies([compiled()]).blocks_quic(WEB, 443)
    assert not EgressPolicies([compiled(Destination("a", ports=(80,)), quic=Quic.BLOCK)]).blocks_quic(WEB, 443)


BLOCK = Rule("no-paste", Action.BLOCK, match=Match(server_names=("paste.test",)))


@pytest.mark.parametrize(
    ("match", "connection", "applies"),
    [
        (Match(server_names=("paste.test",)), facts("PASTE.test."), True),
        (Match(server_names=("paste.test",)), facts("www.paste.test"), False),
        (Match(server_names=("paste.test",)), facts(), False),
        (Match(networks=(ip_network("203.0.113.0/24"),)), facts(), True),
        (Match(networks=(ip_network("203.0.113.0/24"),)), facts(address=ip_address("::ffff:203.0.113.9")), True),
        (Match(networks=(ip_network("198.51.100.0/24"),)), facts(), False),
        (Match(ports=(443, 8443)), facts(port=8443), True),
        (Match(ports=(443,)), facts(port=80), False),
        (Match(fingerprints=(JA4,)), facts(fingerprints=("other", JA4)), True),
        (Match(fingerprints=(JA4,)), facts(fingerprints=("other",)), False),
        (Match(fingerprints=(JA4,)), facts(), False),
        (Match(server_names=("paste.test",), ports=(443,)), facts("paste.test", port=80), False),
        (Match(), facts(), True),
    ],
)
def test_rules_about_connections(match, connection, applies):
    policies = EgressPolicies([compiled(rules=[Rule("a", Action.BLOCK, match=match)])])
    found = verdict(policies, connection)
    assert found.outcome is (Outcome.BLOCK if applies else Outcome.PASS)
    excepted = EgressPolicies([compiled(rules=[Rule("a", Action.BLOCK, exception=match)])])
    if not match.is_empty:
        assert verdict(excepted, connection).outcome is (Outcome.PASS if applies else Outcome.BLOCK)


def test_what_rules_have_to_be_told():
    by_print = Rule("a", Action.BLOCK, match=Match(fingerprints=(JA4,)))
    but_print = Rule("a", Action.BLOCK, exception=Match(fingerprints=(JA4,)))
    for rule, names, prints in ((BLOCK, True, False), (by_print, True, True), (but_print, True, True)):
        policy = compiled(rules=[rule])
        assert (policy.looks_at_names, policy.looks_at_fingerprints) == (names, prints)
    policy = compiled(rules=[Rule("a", Action.BLOCK, match=Match(ports=(443,)))])
    assert (policy.looks_at_names, policy.looks_at_fingerprints) == (False, False)


def test_in_detect_mode_a_block_is_an_alert():
    [hit] = verdict(EgressPolicies([compiled(rules=[BLOCK], mode=Mode.DETECT)]), facts("paste.test")).hits
    assert (hit.outcome, hit.would_block, hit.policy, hit.rule) == (Outcome.ALERT, True, "shop/p", "no-paste")


def test_rules_of_a_policy_are_about_its_destinations():
    policies = EgressPolicies([compiled(Destination("a", names=("a.test",)), rules=[Rule("all", Action.BLOCK)])])
    assert verdict(policies, facts("a.test")).blocker.rule == "all"
    assert not verdict(policies, facts("b.test")).hits
    assert not verdict(policies, facts()).hits


def test_rules_about_requests_do_not_apply_to_connections():
    rules = [
        Rule("patterns", Action.BLOCK, patterns=(Pattern(regex="a"),)),
        Rule("methods", Action.BLOCK, match=Match(Filter(methods=("GET",)), server_names=("a.test",))),
        Rule("exception", Action.BLOCK, exception=Match(Filter(methods=("GET",)))),
    ]
    policy = compiled(Destination("a", EgressMode.DECRYPT), rules=[*rules, BLOCK])
    assert not verdict(EgressPolicies([policy]), facts("a.test")).hits
    assert [each.rule for each in policy.of_requests.rules] == rules
    assert [each.rule for each in policy.of_connection.rules] == [BLOCK]


def test_thresholds_and_rate_limits_are_counted_across_connections():
    rule = Rule("a", Action.ALERT, threshold=Threshold(2, 60.0), rate_limit=RateLimit(1, 60.0))
    policies = EgressPolicies([compiled(rules=[rule])])
    assert not verdict(policies, facts()).hits
    assert [each.told for each in verdict(policies, facts(), 1.0).hits] == [True]
    later = EgressPolicies(policies.policies, thresholds=policies.thresholds, limits=policies.limits)
    assert [each.told for each in verdict(later, facts(), 2.0).hits] == [False]


def test_the_cluster_comes_first():
    policies = EgressPolicies([compiled(rules=[BLOCK]), compiled(rules=[BLOCK], name="z", namespace="")])
    assert verdict(policies, facts("paste.test")).blocker.policy == "z"


# --- no policy weakens another ---------------------------------------------------------------------------------------

_NAMES = st.sampled_from(["", "a.test", "b.test", "www.a.test"])
_DESTINATIONS = st.builds(
    Destination,
    st.just("d"),
    st.sampled_from(EgressMode),
    st.sampled_from([(), ("a.test",), ("*.a.test", "b.test")]),
    st.sampled_from([(), (ip_network("203.0.113.0/24"),), (ip_network("10.0.0.0/8"),)]),
    st.sampled_from([(), (443,), (80, 8080)]),
)
_RULES = st.lists(
    st.builds(
        Rule,
        st.just("r"),
        st.sampled_from(Action),
        match=st.builds(Match, server_names=st.sampled_from([(), ("a.test",)]), ports=st.sampled_from([(), (443,)])),
    ),
    max_size=1,
)


_POLICIES = st.lists(
    st.tuples(
        st.lists(_DESTINATIONS, min_size=1, max_size=3),
        _RULES,
        st.sampled_from(Mode),
        st.booleans(),
        st.sampled_from(Quic),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=examples(300), deadline=None)
@given(_POLICIES, _NAMES, st.sampled_from([WEB, PRIVATE]), st.sampled_from([80, 443, 5432]))
def test_no_policy_weakens_another(written, name, address, port):
    made = [
        compiled(*destinations, rules=rules, name=f"p{at}", mode=mode, fail=fail, quic=quic)
        for at, (destinations, rules, mode, fail, quic) in enumerate(written)
    ]
    together, fewer = EgressPolicies(made), EgressPolicies(made[1:])
    strict, loose = together.treatment(address, port, name), fewer.treatment(address, port, name)
    assert set(loose.policies) <= set(strict.policies)
    assert set(loose.doubtful) <= set(strict.doubtful)
    for each in ("originates", "decrypts", "closes_unread", "closes_unnamed"):
        assert getattr(strict, each) >= getattr(loose, each)
    assert together.steers(address, port) >= fewer.steers(address, port)
    assert together.blocks_quic(address, port) >= fewer.blocks_quic(address, port)
    connection = facts(name, address, port)
    assert verdict(together, connection).outcome >= verdict(fewer, connection).outcome
    assert together.steers(address, port) or not (strict.policies or strict.doubtful)


def test_what_is_remembered_of_connections_is_bounded_and_changes_nothing():
    blocked = Rule("no", Action.BLOCK, match=Match(server_names=("bad.test",)))
    policies = EgressPolicies([compiled(rules=[blocked])])
    for _ in range(2):
        for number in range(REMEMBERED + 10):
            assert verdict(policies, facts(f"n{number}.test")).outcome < Outcome.BLOCK
            assert len(policies._treatments) <= REMEMBERED
            assert len(policies._clean) <= REMEMBERED
        assert verdict(policies, facts("bad.test")).outcome is Outcome.BLOCK
