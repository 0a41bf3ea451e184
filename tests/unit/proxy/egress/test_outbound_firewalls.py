"""Firewalls of policies about what a pod sends, joined for those that apply to a request."""

import pytest

from sidestep.model.inspection import Egress, InspectionPolicy
from sidestep.model.waf import Waf, WafLimits
from sidestep.policy.egress import compile_egress
from sidestep.policy.seclang import CustomRules
from sidestep.policy.waf import PolicyWaf, alone, strictest
from sidestep.proxy.egress.outbound_firewalls import OutboundFirewalls
from sidestep.snapshots.waf import MAX_OUTWARD

NAMES = [f"shop/p{at}" for at in range(8)]


def policy(place, **settings):
    made = InspectionPolicy(f"p{place}", "shop", egress=Egress())
    waf = alone(PolicyWaf(made.display, False, False, Waf(**settings), CustomRules()), place)
    return compile_egress(made.outward, made.egress, waf)


@pytest.fixture
def changes():
    return []


@pytest.fixture
def firewalls(changes):
    made = OutboundFirewalls(lambda: changes.append(len(made.known)))
    return made


def test_those_of_each_policy_alone_and_of_all_are_known_from_the_beginning(firewalls, changes):
    one, two = policy(0, paranoia=1), policy(1, paranoia=3)
    firewalls.replace([one, two])
    assert firewalls.known == (one.waf, two.waf, strictest([one.waf, two.waf]))
    assert firewalls.of(frozenset(NAMES[:1])) is one.waf
    assert firewalls.of(frozenset((NAMES[1], "shop/without"))) is two.waf
    assert firewalls.of(frozenset(NAMES)).profile.paranoia == 3
    assert firewalls.of(frozenset(("shop/without",))) is None
    assert not changes


def test_others_are_joined_when_they_are_asked_for(firewalls, changes):
    firewalls.replace([policy(at, threshold=10 - at) for at in range(3)])
    assert firewalls.of(frozenset(NAMES[:2])).profile.threshold == 9
    assert changes == [5]
    assert firewalls.of(frozenset(NAMES[:2])) in firewalls.known
    assert changes == [5]


def test_beyond_the_bound_all_rules_judge_and_those_that_apply_say_what_is_blocked(firewalls, changes):
    firewalls.replace([policy(at, threshold=20 - at) for at in range(8)])
    sets = [frozenset(NAMES[at] for at in range(8) if number >> at & 1) for number in range(1, 256)]
    found = [firewalls.of(names) for names in sets]
    assert len(firewalls.known) == MAX_OUTWARD
    assert len(changes) == MAX_OUTWARD - 9
    told = {each.profile for each in firewalls.known}
    assert all(each.profile in told for each in found), "the inspector knows them"
    assert [set(each.names) for each in found] == [set(names) for names in sets]


def test_a_relay_has_room_for_the_longest_body_that_is_judged(firewalls):
    policies = [policy(0, limits=WafLimits(body_bytes=10)), policy(1, limits=WafLimits(body_bytes=900_000))]
    assert strictest([each.waf for each in policies]).body_bytes == 10
    assert firewalls.bound(policies).body_bytes == 900_000
    assert firewalls.bound([]) is None
