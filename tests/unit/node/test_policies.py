"""Accepting policies: each once, the last good version of one that is edited, and what is told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from msgspec.structs import replace

from sidestep.model.condition import ConditionType
from sidestep.model.filter import Filter, HeaderCondition, HeaderTest
from sidestep.model.inspection import Action, Egress, InspectionPolicy, Match, Mode, Pattern, Rule
from sidestep.model.workload import LabelSelector
from sidestep.node import policies
from sidestep.node.conditions import Conditions
from sidestep.node.policies import CHECKING, PolicyStore
from sidestep.policy.egress_rows import to_egress_snapshot
from sidestep.policy.inspection_rows import to_snapshot

GOOD = InspectionPolicy("orders", "shop", LabelSelector(), rules=(Rule("all", Action.BLOCK),))
BASE = InspectionPolicy("orders", "", LabelSelector(), namespace_selector=LabelSelector(), rules=GOOD.rules)
NAME = ("shop", "orders")


def searching(regex):
    return replace(GOOD, rules=(Rule("find", Action.BLOCK, patterns=(Pattern(regex=regex),)),))


BROKEN = replace(
    GOOD,
    rules=(Rule("x", Action.LOG, match=Match(Filter((HeaderCondition("x-a", HeaderTest.REGEX, "(a"),)))),),
)
SLOW = searching("[ab]*a[ab]{400}c")


@asynccontextmanager
async def running():
    """A store at work, its conditions, and how often others were in force."""
    conditions, changes = Conditions(), []
    store = PolicyStore(conditions=conditions, on_change=lambda: changes.append(store.in_force))
    task = asyncio.ensure_future(store.run())
    try:
        yield store, conditions, changes
    finally:
        task.cancel()
        await asyncio.wait([task])


async def offered(store, *written, invalid=None):
    store.offer(written, invalid or {})
    await store.settle(within=20)


def names(store):
    return [each.policy.display for each in store.in_force]


def test_policies_are_accepted_and_come_in_their_order():
    async def go():
        async with running() as (store, conditions, changes):
            store.offer((BASE, GOOD), {})
            assert [each.problem for each in store.entries] == [CHECKING, CHECKING]
            assert store.in_force == ()
            await store.settle(within=20)
            assert names(store) == ["orders", "shop/orders"]
            assert [each.problem for each in store.entries] == ["", ""]
            assert conditions.all() == ()
            assert changes[-1] is store.in_force
            assert store.in_force[0].size > 20
            await offered(store, searching("abc[0-9]{100}"))
            assert 100 < store.in_force[0].instructions < 200

    asyncio.run(go())


def test_a_policy_that_cannot_be_compiled_or_is_too_slow_is_told():
    async def go():
        async with running() as (store, conditions, _):
            await offered(store, BROKEN)
            [condition] = conditions.all()
            assert (condition.type, condition.subject) == (
                ConditionType.POLICY_INVALID,
                "InspectionPolicy shop/orders",
            )
            assert condition.text.startswith("spec.rules[0].match.headers[0]")
            assert condition.text.endswith("; it is not in force")
            await offered(store, SLOW)
            [condition] = conditions.all()
            assert "per KiB of hostile text" in condition.text
            assert store.in_force == ()
            await offered(store)
            assert conditions.all() == store.entries == ()

    asyncio.run(go())


def test_rules_about_what_pods_send_are_judged_too():
    async def go():
        async with running() as (store, conditions, _):
            await offered(store, replace(GOOD, egress=Egress()))
            assert store.in_force[0].egress == to_egress_snapshot(replace(GOOD, egress=Egress()))
            await offered(store, replace(GOOD, egress=Egress(rules=BROKEN.rules)))
            [condition] = conditions.all()
            assert condition.text.startswith("spec.egress.rules[0].match.headers[0]")
            assert condition.text.endswith("; its last good version stays in force")
            await offered(store, replace(GOOD, egress=Egress(rules=SLOW.rules)))
            [condition] = conditions.all()
            assert "per KiB of hostile text" in condition.text
            await offered(store, GOOD)
            assert store.in_force[0].egress is None

    asyncio.run(go())


def test_the_last_good_version_stays_until_another_is_accepted_or_the_policy_goes():
    async def go():
        async with running() as (store, conditions, _):
            await offered(store, GOOD)
            [first] = store.in_force
            await offered(store, BROKEN)
            assert store.in_force == (first,)
            assert conditions.all()[0].text.endswith("; its last good version stays in force")
            await offered(store, invalid={NAME: "spec.mode: is none"})
            assert store.in_force == (first,)
            assert "spec.mode: is none" in conditions.all()[0].text
            store.offer((searching("abc"),), {})
            assert store.in_force == (first,)  # while the new one is checked
            await store.settle(within=20)
            [second] = store.in_force
            assert second.policy.rules[0].name == "find"
            assert conditions.all() == ()
            await offered(store)
            assert store.in_force == ()
            await offered(store, BROKEN)
            assert store.in_force == ()

    asyncio.run(go())


def test_what_was_judged_is_not_judged_again(monkeypatch):
    judged, real = [], policies.judged
    monkeypatch.setattr(policies, "judged", lambda policy: (judged.append(policy.name), real(policy))[1])

    async def go():
        async with running() as (store, _, changes):
            await offered(store, GOOD)
            [first] = store.in_force
            store.offer((replace(GOOD),), {})
            assert store.in_force == (first,)
            assert len(changes) == 1
            store.offer((replace(GOOD, mode=Mode.ENFORCE),), {})
            assert store.in_force[0].policy.mode is Mode.ENFORCE
            store.offer((GOOD, replace(GOOD, name="other")), {})
            assert names(store) == ["shop/orders", "shop/other"]
            assert judged == ["orders"]

    asyncio.run(go())


def test_a_policy_that_is_edited_while_it_is_judged_is_judged_as_it_stands():
    async def go():
        async with running() as (store, _, _):
            store.offer((searching("abc"),), {})
            await asyncio.sleep(0)
            await offered(store, searching("abcd"))
            [only] = store.in_force
            assert only.policy.rules[0].patterns[0].regex == "abcd"

    asyncio.run(go())


def test_the_number_of_policies_is_bounded(monkeypatch):
    monkeypatch.setattr(policies, "MAX_POLICIES", 2)

    async def go():
        async with running() as (store, conditions, _):
            many = [replace(GOOD, name=f"p{number}") for number in range(3)]
            await offered(store, *many)
            assert names(store) == ["shop/p0", "shop/p1"]
            assert "2 policies already" in conditions.all()[0].text
            others = [replace(GOOD, name=f"q{number}") for number in range(2)]
            await offered(store, *others, invalid={("shop", "p0"): "x", ("shop", "p1"): "x"})
            assert names(store) == ["shop/q0", "shop/q1"]

    asyncio.run(go())


def test_judgements_are_bounded(monkeypatch):
    monkeypatch.setattr(policies, "MAX_REMEMBERED", 2)

    async def go():
        async with running() as (store, _, _):
            many = [replace(searching(f"abc{number}"), name=f"p{number}") for number in range(4)]
            await offered(store, *many)
            assert len(store.in_force) == 4

    asyncio.run(go())


def test_waiting_for_judgements_has_an_end():
    async def go():
        store = PolicyStore(conditions=Conditions(), on_change=lambda: None)
        store.offer((GOOD,), {})
        await store.settle(within=0.01)
        assert store.in_force == ()

    asyncio.run(go())


def test_no_namespace_takes_the_room_of_another_or_of_the_cluster(monkeypatch):
    monkeypatch.setattr(policies, "MAX_POLICIES", 4)

    async def go():
        async with running() as (store, _, _):
            await offered(store, BASE, GOOD)
            before = store.in_force
            flood = [replace(GOOD, name=f"p{number}", namespace="aaa") for number in range(9)]
            await offered(store, *flood, BASE, GOOD)
            assert names(store) == ["orders", "aaa/p0", "aaa/p1", "shop/orders"]
            assert [each for each in store.in_force if each in before] == list(before)
            await offered(store, *flood, BASE, invalid={NAME: "broken"})
            assert names(store) == ["orders", "aaa/p0", "aaa/p1", "shop/orders"]
            await offered(store, *flood[:1], BASE, GOOD)
            assert names(store) == ["orders", "aaa/p0", "shop/orders"]

    asyncio.run(go())


def test_policies_of_namespaces_with_pods_come_before_others(monkeypatch):
    monkeypatch.setattr(policies, "MAX_POLICIES", 3)

    async def go():
        async with running() as (store, _, _):
            many = [replace(GOOD, namespace=f"n{number}") for number in range(9)]
            store.offer((*many, BASE), {}, present={"n8"})
            await store.settle(within=20)
            assert names(store) == ["orders", "n0/orders", "n8/orders"]

    asyncio.run(go())


def test_who_edits_without_end_keeps_no_other_namespace_waiting(monkeypatch):
    order = []

    def judge(policy):
        order.append(policy.display)
        return policies.Judgement()

    monkeypatch.setattr(policies, "judged", judge)

    def written(edit):
        many = [replace(searching(f"abc{edit}x{number}"), name=f"p{number}", namespace="aaa") for number in range(9)]
        return (*many, searching("abc"), replace(BASE, rules=searching("def").rules))

    async def go():
        async with running() as (store, _, _):
            edits = 0
            while ("shop", "orders") not in {(each.policy.namespace, each.policy.name) for each in store.in_force}:
                store.offer(written(edits := edits + 1), {})
                await asyncio.sleep(0)
                assert len(order) < 50
            assert order[:3] == ["orders", "aaa/p0", "shop/orders"]

    asyncio.run(go())


def test_a_judgement_costs_nothing_for_the_policies_that_still_wait(monkeypatch):
    """Their snapshots are made once: with hundreds of large policies the daemon would do nothing else for minutes."""
    made = []

    def snapshot(policy):
        made.append(policy.display)
        return to_snapshot(policy)

    monkeypatch.setattr(policies, "to_snapshot", snapshot)
    monkeypatch.setattr(policies, "judged", lambda _policy: policies.Judgement())

    async def go():
        async with running() as (store, _, _):
            many = [replace(searching(f"abc{number}"), name=f"p{number}") for number in range(30)]
            await offered(store, *many)
            assert len(store.in_force) == 30
            assert sorted(made) == sorted(set(made))

    asyncio.run(go())
