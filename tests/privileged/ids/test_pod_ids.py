"""A pod's Suricata is started at once; other rules, and one that has ended, take turns with the node's other pods."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.aio.turns import Turns
from sidestep.ids.rules import RuleSet, parse
from sidestep.ids.suricata import RULES_MEMORY
from sidestep.model.condition import ConditionType
from sidestep.model.pod import Pod, PodKey
from sidestep.node.conditions import Conditions, Statements
from sidestep.node.pods.pod_ids import PodIds
from sidestep.node.pods.toolbox import NoRecords
from sidestep.node.proxies.supervisor import SupervisorSettings
from sidestep.snapshots.inspection import PolicySnapshot
from tests.harness.processes import alive

pytestmark = [pytest.mark.privileged, pytest.mark.landlock]

POD = Pod(PodKey("shop", "orders-1"), "uid")
UID = 0x70000321
PATIENCE = 100.0


def rules(sid, memory=0):
    return replace(parse(f"alert http any any -> any any (sid:{sid};)"), memory=memory)


@dataclass
class Rules:
    """The rules in force, by policy."""

    sets: dict[str, RuleSet] = field(default_factory=dict)

    def of(self, policy):
        return self.sets.get(policy)


@dataclass
class Tools:
    """What a `Toolbox` has for an IDS."""

    ids_rules: Rules
    ids_starts: Turns
    records: NoRecords = field(default_factory=NoRecords)
    supervisor: SupervisorSettings = field(default_factory=SupervisorSettings)


class Scene:
    """A pod's IDS, with rules that a test changes; what a proxy would hold of it."""

    def __init__(self, turns, policies, uid):
        self.rules = Rules()
        self.conditions = Conditions()
        statements = Statements(self.conditions, POD.key)
        statements.begin()
        self.fed = []
        self.ids = PodIds(POD, uid, Tools(self.rules, turns), statements=statements, feed=self._feed)
        self.policies = [
            PolicySnapshot(name, "shop", "Detect", "Ignore", "Keep", 0.0, (), ids=True) for name in policies
        ]

    async def _feed(self, fd):
        self.fed.append(os.dup(fd))

    def use(self, **sets):
        self.rules.sets = {f"shop/{name}": each for name, each in sets.items()}
        self.ids.follow(POD, self.policies)

    async def until(self, condition):
        async with time_limit(PATIENCE):
            while not condition():  # noqa: ASYNC110 - another process decides
                await asyncio.sleep(0.02)

    async def running(self, count):
        """Wait until so many have been fed, and the last one is shown; its view."""
        await self.until(lambda: len(self.fed) == count and self.ids.engine().state == "running")
        return self.ids.engine()


@asynccontextmanager
async def scene(*policies, turns=None, uid=UID):
    made = Scene(turns or Turns(rate=100.0, burst=10.0), policies or ("orders",), uid)
    try:
        yield made
    finally:
        await made.ids.aclose()
        for fd in made.fed:
            os.close(fd)


@asynccontextmanager
async def running_one():
    """A pod whose Suricata runs, the turns that it waits for, and what was shown of it first."""
    turns = Turns(rate=1000.0, burst=1.0)
    async with scene(turns=turns) as pod:
        pod.use(orders=rules(1))
        yield pod, turns, await pod.running(1)


async def others_start():
    """Have Suricatas of another pod started twice, one after the other: longer than any start here takes."""
    async with scene(uid=UID + 1) as other:
        for number in (1, 2):
            other.use(orders=rules(number))
            await other.running(number)


def test_other_rules_wait_for_a_turn_and_are_the_newest():
    async def go():
        async with running_one() as (pod, turns, first):
            async with turns._first:  # somebody else's turn
                pod.use(orders=rules(2))
                pod.use(orders=RuleSet((*rules(3).rules, *rules(4).rules), "newest"))
                await others_start()
                assert (pod.ids.engine().pid, len(pod.fed)) == (first.pid, 1)
            second = await pod.running(2)
            assert (second.rules, second.restarts) == (2, 0)
            assert second.pid != first.pid

    asyncio.run(go())


def test_one_that_has_ended_waits_for_a_turn_and_is_counted():
    async def go():
        async with running_one() as (pod, turns, first):
            async with turns._first:
                os.kill(first.pid, signal.SIGKILL)
                await pod.until(lambda: pod.ids.engine().state == "paused")
                await others_start()
                assert (pod.ids.engine().state, len(pod.fed)) == ("paused", 1)
                assert "ended with status -9" in pod.ids.engine().problem
                assert [each.type for each in pod.conditions.all()] == [ConditionType.IDS_NOT_RUNNING]
            second = await pod.running(2)
            assert (second.restarts, second.problem) == (1, "")

    asyncio.run(go())


def test_a_policy_that_goes_ends_it_although_others_have_the_turn():
    async def go():
        async with running_one() as (pod, turns, first):
            async with turns._first:
                pod.use(orders=rules(2))
                await asyncio.sleep(0)
                pod.use()
                await pod.until(lambda: not alive(first.pid))
            assert pod.ids.engine() is None

    asyncio.run(go())


def test_a_pod_may_go_while_its_ids_is_being_ended():
    async def go():
        async with running_one() as (pod, _, first):
            pod.use()
            while pod.ids._listening:  # noqa: ASYNC110 - whatever turn of the loop it takes
                await asyncio.sleep(0)
            for _ in range(3):  # until the process has been killed, and is waited for
                await asyncio.sleep(0)
            async with time_limit(PATIENCE):
                await pod.ids.aclose()
            return first.pid

    assert not Path(f"/proc/{asyncio.run(go())}").exists()  # no zombie either


def test_rules_that_find_no_room_beside_those_of_others_are_left_out():
    async def go():
        async with scene("a", "b", "c") as pod:
            most = RULES_MEMORY * 3 // 4
            pod.use(a=rules(1, most), b=rules(1, most), c=rules(1))
            shown = await pod.running(1)
            assert shown.policies == ("shop/a", "shop/c")
            [told] = pod.conditions.all()
            assert told.type is ConditionType.IDS_RULES_LEFT_OUT
            assert "policy shop/b find no room" in told.text
            pod.use(a=rules(1), b=rules(1, most), c=rules(1))
            assert (await pod.running(2)).policies == ("shop/a", "shop/b", "shop/c")
            assert pod.conditions.all() == ()

    asyncio.run(go())
