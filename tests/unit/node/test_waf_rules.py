"""What policies in force say of a firewall, with the custom rules that were tried."""

from __future__ import annotations

import asyncio

from sidestep.model.condition import ConditionType
from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Egress, FailurePolicy, InspectionPolicy, Mode
from sidestep.model.inventory import ConfigMap
from sidestep.model.waf import Waf
from sidestep.model.workload import LabelSelector
from sidestep.node.conditions import Conditions
from sidestep.node.planning.inspection import PlannedPolicy
from sidestep.node.waf_rules import WafRuleStore
from sidestep.policy.inspection_rows import to_snapshot

KEY = ConfigMapKey("shop", "waf-rules", "custom.conf")
GOOD = 'SecRule ARGS:a "@streq 1" "id:7,phase:2,deny"'
OTHER = 'SecRule ARGS:b "@streq 1" "id:8,phase:2,deny"'


def planned(name="orders", *, waf=None, **settings):
    policy = InspectionPolicy(name, "shop", LabelSelector(), waf=waf, **settings)
    return PlannedPolicy(policy, to_snapshot(policy), 10)


def maps(text):
    return {("shop", "waf-rules"): ConfigMap("shop", "waf-rules", {"custom.conf": text})}


class Inspectors:
    """Those that try rules: `refuses` is why they do not take any."""

    def __init__(self):
        self.tried = []
        self.refuses = ""

    async def check(self, profile, *, uid):
        self.tried.append(profile)
        if self.refuses:
            raise ConfigurationError(self.refuses)


def run(steps):
    async def inside():
        conditions, inspectors, changes = Conditions(), Inspectors(), []
        store = WafRuleStore(inspectors, conditions=conditions, on_change=lambda: changes.append(1))
        running = asyncio.create_task(store.run())
        try:
            await asyncio.wait_for(steps(store, inspectors, conditions, changes), 60)
        finally:
            running.cancel()

    asyncio.run(inside())


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the condition is that of somebody else's objects
        await asyncio.sleep(0.005)


def test_policies_say_what_they_say_without_custom_rules():
    async def steps(store, _inspectors, _conditions, _changes):
        plain = planned("plain")
        strict = planned(waf=Waf(paranoia=3), mode=Mode.ENFORCE, failure_policy=FailurePolicy.FAIL)
        completed = store.complete((plain, strict))
        assert completed[0] is plain
        waf = completed[1].waf
        assert (waf.name, waf.enforces, waf.closes, waf.waf.paranoia) == ("shop/orders", True, True, 3)
        assert store.complete((plain, strict)) is completed
        assert store.complete((strict,))[0] is completed[1], "the same object while nothing of it changes"

    run(steps)


def test_custom_rules_are_tried_before_they_are_in_force_and_the_last_good_ones_stay():
    async def steps(store, inspectors, conditions, changes):
        policy = planned(waf=Waf(rules_from=KEY))
        store.offer([policy.policy], maps(GOOD))
        assert store.complete((policy,))[0].waf.custom.rules == ()
        await until(lambda: changes)
        first = store.complete((policy,))[0]
        assert [number for _, number, _ in first.waf.custom.rules] == [7]
        assert first.size > policy.size
        assert 'ARGS:a "@streq 1"' in inspectors.tried[0].custom

        store.offer([policy.policy], maps('SecRule ARGS "@rx a" "id:1,exec:/bin/sh"'))
        await until(conditions.all)
        assert len(inspectors.tried) == 1, "what is not allowed is never given to the engine"
        inspectors.refuses = "the engine does not take it"
        store.offer([policy.policy], maps(OTHER))
        await until(lambda: len(inspectors.tried) == 2 and "does not take" in str(conditions.all()))
        [condition] = conditions.all()
        assert condition.type is ConditionType.WAF_RULES_INVALID
        assert "the last good rules stay in force" in condition.text
        assert store.complete((policy,))[0] is first

    run(steps)


def test_both_directions_have_the_custom_rules_that_they_name():
    async def steps(store, _inspectors, _conditions, changes):
        egress = Egress(failure_policy=FailurePolicy.FAIL, waf=Waf(paranoia=2, rules_from=KEY))
        both = planned("both", waf=Waf(), mode=Mode.ENFORCE, egress=egress)
        outward = planned("out", egress=egress)
        store.offer([both.policy, outward.policy], maps(GOOD))
        await until(lambda: changes)
        of_both, of_outward = store.complete((both, outward))
        assert (of_both.waf.custom.rules, of_both.waf.closes, of_both.size) == ((), False, both.size)
        assert (of_both.egress_waf.waf.paranoia, of_both.egress_waf.closes) == (2, True)
        assert [number for _, number, _ in of_both.egress_waf.custom.rules] == [7]
        assert (of_outward.waf, of_outward.egress_waf.enforces) == (None, False)

    run(steps)


def test_a_policy_without_its_rules_is_carried_out_without_them():
    async def steps(store, _inspectors, conditions, _changes):
        policy = planned(waf=Waf(rules_from=KEY))
        store.offer([policy.policy], {})
        assert store.complete((policy,))[0].waf.custom.rules == ()
        [condition] = conditions.all()
        assert condition.text == "waf: there is no ConfigMap shop/waf-rules; the Core Rule Set applies without them"

    run(steps)
