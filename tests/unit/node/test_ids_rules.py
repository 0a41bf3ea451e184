"""Accepting Suricata rules: each text once, the last good set of each policy, and what is told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from sidestep.ids.rules import parse
from sidestep.model.condition import ConditionType
from sidestep.model.config_map_key import ConfigMapKey
from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.inventory import ConfigMap
from sidestep.model.workload import LabelSelector
from sidestep.node import ids_rules
from sidestep.node.conditions import Conditions
from sidestep.node.ids_rules import IdsRuleStore

GOOD = "alert http any any -> any any (sid:1;)"
NEWER = "alert http any any -> any any (sid:2;)"
POLICY = InspectionPolicy("orders", "shop", LabelSelector(), ids=ConfigMapKey("shop", "rules", "a"))
PLAIN = InspectionPolicy("plain", "shop", LabelSelector())


class Judge:
    """Reads rules, and refuses some as Suricata would."""

    def __init__(self):
        self.asked = []

    async def __call__(self, text):
        self.asked.append(text)
        await asyncio.sleep(0)
        if "broken" in text:
            raise ConfigurationError("Suricata refuses the rules: broken")
        if "no landlock" in text:
            raise KernelError("landlock_create_ruleset", 95, doing="looking for Landlock")
        return parse(text)


@asynccontextmanager
async def running():
    """A store at work: it, its conditions, its judge, and how often others were in force."""
    conditions, judge, changes = Conditions(), Judge(), []
    store = IdsRuleStore(conditions=conditions, on_change=lambda: changes.append(1), judge=judge)
    task = asyncio.ensure_future(store.run())
    try:
        yield store, conditions, judge, changes
    finally:
        task.cancel()
        await asyncio.wait([task])


async def offered(store, text, *policies):
    maps = {} if text is None else {("shop", "rules"): ConfigMap("shop", "rules", {"a": text})}
    store.offer(policies or (POLICY,), maps)
    for _ in range(20):
        await asyncio.sleep(0)


def sids(store):
    found = store.of("shop/orders")
    return None if found is None else [rule.sid for rule in found.rules]


def texts(conditions):
    assert {each.type for each in conditions.all()} <= {ConditionType.IDS_RULES_INVALID}
    return [f"{each.subject}: {each.text}" for each in conditions.all()]


def test_rules_are_tested_once_and_taken():
    async def go():
        async with running() as (store, conditions, judge, changes):
            assert sids(store) is None
            await offered(store, GOOD, POLICY, PLAIN)
            await offered(store, GOOD, POLICY, PLAIN)
            assert sids(store) == [1]
            assert (judge.asked, texts(conditions), len(changes)) == ([GOOD], [], 1)
            await offered(store, NEWER)
            await offered(store, GOOD)
            assert sids(store) == [1]
            assert (judge.asked, len(changes)) == ([GOOD, NEWER], 3)

    asyncio.run(go())


def test_the_last_good_rules_stay():
    async def go():
        async with running() as (store, conditions, _judge, changes):
            await offered(store, GOOD)
            for text, reason in (
                ("broken", "Suricata refuses the rules: broken"),
                ("nonsense", "line 1: no rule"),
                ("no landlock", "Landlock"),
                (None, "there is no ConfigMap shop/rules"),
            ):
                await offered(store, text)
                assert sids(store) == [1]
                [told] = texts(conditions)
                assert told.startswith("InspectionPolicy shop/orders: ids: ")
                assert reason in told
                assert told.endswith("; the last good rules stay in force")
            assert len(changes) == 1
            await offered(store, NEWER)
            assert (sids(store), texts(conditions)) == ([2], [])

    asyncio.run(go())


def test_rules_that_never_were_good():
    async def go():
        async with running() as (store, conditions, _judge, changes):
            await offered(store, "broken")
            assert (sids(store), changes) == (None, [])
            assert texts(conditions)[0].endswith("; its IDS does not run")
            store.offer((POLICY,), {("shop", "rules"): ConfigMap("shop", "rules", {"b": GOOD})})
            assert "has no key a" in texts(conditions)[0]
            store.offer((POLICY,), {("shop", "rules"): ConfigMap("shop", "rules", {}, "may not be read")})
            assert "ids: may not be read" in texts(conditions)[0]

    asyncio.run(go())


def test_a_policy_that_goes_takes_everything_along():
    async def go():
        async with running() as (store, conditions, _judge, _changes):
            await offered(store, GOOD)
            await offered(store, "broken")
            await offered(store, "broken", PLAIN)
            assert (sids(store), texts(conditions)) == (None, [])
            await offered(store, "broken")
            assert sids(store) is None

    asyncio.run(go())


def test_a_policy_whose_rules_change_all_the_time_keeps_nobody_waiting():
    async def go():
        async with running() as (store, _, judge, _):
            quiet = InspectionPolicy("quiet", "shop", LabelSelector(), ids=ConfigMapKey("shop", "rules", "quiet"))
            number = 0

            def offer():
                nonlocal number
                number += 1
                data = {"a": f"alert http any any -> any any (sid:{number};)", "quiet": NEWER}
                store.offer((POLICY, quiet), {("shop", "rules"): ConfigMap("shop", "rules", data)})

            while NEWER not in judge.asked:
                assert len(judge.asked) < 3, judge.asked
                offer()
                await asyncio.sleep(0)

    asyncio.run(go())


def test_tests_are_paced_and_take_the_newest_text(monkeypatch):
    monkeypatch.setattr(ids_rules, "TESTS", (0.001, 2.0))

    async def go():
        async with running() as (store, _, judge, _):
            for number in range(1, 50):
                await offered(store, f"alert http any any -> any any (sid:{number};)")
            assert len(judge.asked) == 2
            assert sids(store) == [2]

    asyncio.run(go())
