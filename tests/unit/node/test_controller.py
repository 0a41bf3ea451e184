"""From a change to a plan."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from sidestep.aio.time_limit import time_limit
from sidestep.config.annotation_names import DOWNSTREAM_SECRET
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import RefusedError
from sidestep.model.pod import Location, PodKey
from sidestep.node.conditions import Conditions
from sidestep.node.controller import Controller
from sidestep.node.manifests import Reading
from sidestep.node.planning.plan import Plan
from tests.unit.node.scenes import intercept, inventory, pod

POD = PodKey("shop", "orders-1")
PLAIN = intercept(port="8080")


class Sink:
    """Notes the plans."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.came = asyncio.Event()

    def apply(self, plan: Plan, /, *, drain_timeout: float) -> None:
        self.plans.append(plan)
        self.came.set()


def controlled(*intercepts, stock=None) -> tuple[Controller, Conditions, list]:
    conditions, wanted = Conditions(), []
    controller = Controller(node_name="n1", conditions=conditions, node_addresses=frozenset())
    controller._intercepts = lambda: intercepts
    controller._want_secrets = wanted.append
    controller.replace_inventory(Reading(stock or inventory(pod(annotations={}))))
    return controller, conditions, wanted


def test_a_plan_is_made_once_for_all_changes_that_come_together():
    async def go() -> list[Plan]:
        controller, _, _ = controlled(PLAIN)
        sink, told = Sink(), []
        for _ in range(3):
            controller.changed()
        running = asyncio.ensure_future(controller.run(sink, lambda: told.append(1)))
        async with time_limit(5):
            await sink.came.wait()
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])
        assert len(told) == len(sink.plans)
        return sink.plans

    [made] = asyncio.run(go())
    assert list(made.pods) == [POD]


def test_a_daemon_that_stops_plans_nothing_and_lets_nobody_in():
    async def go() -> None:
        controller, _, _ = controlled(PLAIN)
        controller.stopping = True
        sink = Sink()
        await controller.plan_once(sink)
        assert sink.plans == []
        with pytest.raises(RefusedError, match="is stopping"):
            controller.check(PLAIN)
        assert controller.refusal(PLAIN) == "the node daemon is stopping"

    asyncio.run(go())


def test_conditions_of_the_last_plan_go_with_their_reason():
    async def go() -> None:
        controller, conditions, _ = controlled(intercept())
        await controller.plan_once(Sink())
        assert [each.type for each in conditions.of(POD)] == [ConditionType.NO_CERTIFICATE]
        controller._intercepts = tuple
        await controller.plan_once(Sink())
        assert conditions.all() == ()

    asyncio.run(go())


def test_what_is_wrong_with_a_reading_is_told_until_the_next():
    controller, conditions, _ = controlled()
    stated = Condition(ConditionType.CLUSTER_UNREADABLE, "node n1", "pods cannot be listed")
    controller.replace_inventory(Reading(inventory(), conditions=(stated,)))
    assert conditions.all() == (stated,)
    controller.replace_inventory(Reading(inventory()))
    assert conditions.all() == ()


def test_pods_whose_namespace_is_not_there_are_told():
    controller, conditions, _ = controlled()
    controller.look_at_locations()
    [condition] = conditions.of(POD)
    assert condition.type is ConditionType.NETNS_UNAVAILABLE
    assert "/run/netns/orders-1" in condition.text
    controller.replace_inventory(Reading(inventory(pod(ended=True))))
    controller.look_at_locations()
    assert conditions.all() == ()


def test_node_annotations_are_this_nodes_or_those_of_the_only_one():
    stock = inventory(pod(), nodes={"n1": {"a": "1"}, "n2": {"a": "2"}})
    controller, _, _ = controlled(stock=stock)
    assert controller.node_annotations() == {"a": "1"}
    controller.replace_inventory(Reading(inventory(pod(), nodes={"other": {"a": "3"}})))
    assert controller.node_annotations() == {"a": "3"}


def test_the_basis_of_a_refusal_is_the_same_until_something_changes():
    controller, _, _ = controlled(stock=inventory(pod(annotations={f"{DOWNSTREAM_SECRET}.8443": "tls"})))
    basis = controller.basis()
    assert controller.basis() == basis
    controller.replace_inventory(Reading(inventory(pod())))
    assert controller.basis() != basis


def test_an_intercept_that_no_pod_can_serve_is_refused_with_the_reason():
    controller, _, _ = controlled()
    assert "no certificate is configured" in controller.refusal(intercept())
    assert "no workload" in controller.refusal(intercept(workload="carts"))
    assert controller.refusal(PLAIN) == ""
    with pytest.raises(RefusedError, match="no certificate is configured"):
        controller.check(intercept())


def test_a_pod_that_is_just_starting_refuses_nobody():
    starting = replace(pod(annotations={}), location=Location(searched=True))
    undeclared = intercept(port="9999")
    for stock in (inventory(starting), inventory(replace(starting, ips=()))):
        controller, _, _ = controlled(stock=stock)
        controller.check(PLAIN)
        controller.check(undeclared)
        assert controller.refusal(PLAIN) == controller.refusal(undeclared) == ""
