"""Several policies of a port: the strictest of each setting."""

from itertools import permutations

import pytest

from sidestep.model.filter import PathCondition, PathTest
from sidestep.model.waf import OverLimit, Waf, WafException, WafLimits
from sidestep.policy.seclang import CustomRules, custom_rules
from sidestep.policy.waf import PolicyWaf, alone, join, most_profiles
from sidestep.snapshots.waf import MAX_CUSTOM, MAX_OUTWARD, Exemption

NOTHING = CustomRules()


def policy(name="a", *, enforces=False, closes=False, custom=NOTHING, limits=None, **settings):
    """What one policy says."""
    return PolicyWaf(name, enforces, closes, Waf(**settings, limits=WafLimits(**(limits or {}))), custom)


def test_one_policy_is_itself():
    found = join([policy(paranoia=2, threshold=7, excluded=(942100,))])
    assert (found.profile.paranoia, found.profile.threshold, found.profile.excluded) == (2, 7, (942100,))
    assert (found.profile.arguments, found.body_bytes, found.seconds) == (256, 65536, 0.25)
    assert (found.blocks_over_limit, found.enforces, found.closes) == (True, False, False)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ({"paranoia": 1}, {"paranoia": 3}, lambda found: found.profile.paranoia == 3),
        ({"threshold": 5}, {"threshold": 50}, lambda found: found.profile.threshold == 5),
        ({"excluded": (1, 2)}, {"excluded": (2, 3)}, lambda found: found.profile.excluded == (2,)),
        ({"excluded": (1, 2)}, {}, lambda found: found.profile.excluded == ()),
        ({"responses": True}, {}, lambda found: found.profile.responses),
        ({}, {}, lambda found: not found.profile.responses),
        ({"enforces": True}, {}, lambda found: found.enforces),
        ({"enforces": True, "closes": True}, {"enforces": True}, lambda found: found.closes),
        ({"limits": {"fields": 10}}, {"limits": {"fields": 20}}, lambda found: found.profile.arguments == 10),
        ({"limits": {"body_bytes": 10}}, {"limits": {"body_bytes": 20}}, lambda found: found.body_bytes == 10),
        (
            {"limits": {"body_bytes": 10, "fields": 30, "over_limit": OverLimit.PASS}},
            {"limits": {"body_bytes": 20, "fields": 5, "over_limit": OverLimit.BLOCK}},
            lambda found: (found.body_bytes, found.profile.arguments, found.blocks_over_limit) == (20, 5, True),
        ),
        (
            {"limits": {"body_bytes": 10, "fields": 30, "over_limit": OverLimit.PASS}},
            {"limits": {"body_bytes": 20, "fields": 5, "over_limit": OverLimit.PASS}},
            lambda found: (found.body_bytes, found.profile.arguments, found.blocks_over_limit) == (20, 30, False),
        ),
        (
            {"limits": {"verdict_seconds": 0.1}},
            {"limits": {"verdict_seconds": 0.5}},
            lambda found: found.seconds == 0.5,
        ),
        (
            {"enforces": True, "closes": True, "limits": {"verdict_seconds": 0.3}},
            {"limits": {"verdict_seconds": 0.1}},
            lambda found: found.seconds == 0.3,
        ),
    ],
)
def test_the_strictest_counts_in_any_order(first, second, value):
    for pair in permutations((policy("a", **first), policy("b", **second))):
        assert value(join(pair))


def path(value, test=PathTest.EQUAL):
    return PathCondition(test, value)


BEGIN = path("/wiki/", PathTest.PREFIX)


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (WafException((1,), (path("/a"),)), WafException((1,), (path("/a"),)), [Exemption(1, "/a")]),
        (WafException((1,), (path("/a"),)), WafException((1,), (path("/b"),)), []),
        (WafException((1,), (path("/a"),)), WafException((2,), (path("/a"),)), []),
        (WafException((1, 2), (path("/a"), path("/b"))), WafException((1,), (path("/b"),)), [Exemption(1, "/b")]),
        (WafException((1,), (BEGIN,)), WafException((1,), (path("/wiki/x"),)), [Exemption(1, "/wiki/x")]),
        (WafException((1,), (BEGIN,)), WafException((1,), (path("/wiki"),)), []),
        (WafException((1,), (BEGIN,)), WafException((1,), (), ("q",)), []),
        (WafException((1,), (BEGIN,)), WafException((1,), (BEGIN,), ("q",)), [Exemption(1, "/wiki/", True, "q")]),
        (WafException((1,), (), ("q",)), WafException((1,), (BEGIN,), ("q",)), [Exemption(1, "/wiki/", True, "q")]),
        (WafException((1,), (), ("q",)), WafException((1,), (), ("r",)), []),
    ],
)
def test_what_one_policy_does_not_except_no_other_takes_out(first, second, common):
    for pair in permutations((policy("a", exceptions=(first,)), policy("b", exceptions=(second,)))):
        assert list(join(pair).profile.exemptions) == common
    assert join([policy("a", exceptions=(first,)), policy("b")]).profile.exemptions == ()


def test_a_rule_that_another_policy_excludes_may_be_excepted():
    found = join([policy("a", excluded=(1, 2)), policy("b", exceptions=(WafException((1, 3), (path("/a"),)),))])
    assert found.profile.excluded == ()
    assert found.profile.exemptions == (Exemption(1, "/a"),)
    both = join([policy("a", excluded=(1,)), policy("b", excluded=(1,), exceptions=(WafException((1,), (BEGIN,)),))])
    assert (both.profile.excluded, both.profile.exemptions) == ((1,), ())


def test_custom_rules_of_all_apply_with_ids_of_their_own():
    one = custom_rules('SecRule ARGS:a "@rx x" "id:1,deny"')
    other = custom_rules('SecRule ARGS:b "@rx x" "id:1,deny"')
    found = join([policy("a", custom=one), policy("b", custom=other)])
    lines = found.profile.custom.splitlines()
    assert "id:10000001," in lines[0]
    assert "id:10100001," in lines[1]
    assert found.profile.regexes == ("x",)
    assert found.names == ("a", "b")
    assert not found.profile.responses


def test_custom_rules_about_responses_have_responses_judged():
    one = custom_rules('SecRule ARGS:a "@rx x" "id:1,deny"\nSecRule RESPONSE_BODY "@rx y" "id:2,phase:4,deny"')
    other = custom_rules('SecRule RESPONSE_STATUS "@eq 500" "id:2,phase:3,deny"')
    found = join([policy("a", custom=one), policy("b", custom=other)]).profile
    assert found.responses
    assert "10000002" not in found.custom
    assert [line[:29] for line in found.custom_responses.splitlines()] == [
        'SecRule RESPONSE_BODY "@rx y"',
        'SecRule RESPONSE_STATUS "@eq ',
    ]
    assert "id:10100002," in found.custom_responses
    assert found.regexes == ("x", "y")


def test_custom_rules_without_room_are_left_out_as_a_whole():
    many = "".join(f'SecRule RESPONSE_BODY "@rx {"x" * 80}" "id:{number},phase:4"\n' for number in range(1, 250))
    made = [policy(str(at), custom=custom_rules(many + 'SecRule ARGS "@rx y" "id:999"')) for at in range(3)]
    found = join(made).profile
    assert "id:10000001," in found.custom_responses
    assert "id:10200001," not in found.custom_responses + found.custom
    assert len(found.custom) + len(found.custom_responses) <= MAX_CUSTOM


def test_how_many_profiles_there_may_be():
    made = [alone(policy(str(at), threshold=at), 0) for at in range(1, 9)]
    ports = [made[0], None, made[1], made[0]]
    assert [most_profiles(ports, made[:count]) for count in (0, 1, 2, 3, 8)] == [2, 3, 5, 9, 2 + MAX_OUTWARD]
    assert most_profiles((), [None, made[0], made[0]]) == 1
    many = [alone(policy(str(at), threshold=at), 0) for at in range(1, 71)]
    assert most_profiles((), many) == 71, "those that are not joined are known however many they are"
