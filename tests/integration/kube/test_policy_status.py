"""Statuses of inspection policies at an API server: two nodes, counts, upgrades, daemons that are gone; Events."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
from msgspec.structs import replace

from sidestep.aio.time_limit import time_limit
from sidestep.kube.api import Api
from sidestep.kube.policies import DaemonEntry
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Pod, PodKey
from sidestep.node.cluster import policy_publisher as module
from sidestep.node.cluster.policy_publisher import PolicyPublisher
from sidestep.node.planning.plan import Plan
from sidestep.policy.survey import PodSurvey
from sidestep.tunnel.messages import PodState
from sidestep.tunnel.views import GapView, InspectedView, PolicyView
from tests.harness.fake_api import run
from tests.integration.kube.test_cluster_cache import V1, scene
from tests.integration.kube.test_policies import CLUSTER, GROUP, NAMESPACED, baseline, policy
from tests.integration.kube.test_watch import until


def view(name="orders", namespace="shop", **changes):
    values = {"mode": "Enforce", "failure_policy": "Fail", "accepted": True, "in_force": True}
    return PolicyView(namespace=namespace, name=name, **{**values, **changes})


class Node:
    """One node's publisher. What it says of policies is set by tests; what is written comes from the API server."""

    def __init__(self, found, name, started):
        self.inventory, self.plan = Inventory(), Plan()
        self.said = ()
        self.found = found
        self.clock = 1000.0
        own = DaemonEntry("sidestep", f"sidestep-{name}", started)
        client = Api(found.client.access)
        self.publisher = PolicyPublisher(client, name, own, found.source.policies, self, self, lambda: self.clock)

    def policies(self):
        return self.said

    async def once(self):
        """A round some seconds later, with what was read last."""
        self.clock += 5.0
        self.inventory = self.found.inventory
        await self.publisher.once()


@asynccontextmanager
async def nodes(api, *names):
    async with scene(api) as found:
        made = [Node(found, name, f"2026-01-01T00:00:0{number}Z") for number, name in enumerate(names)]
        try:
            yield made
        finally:
            for each in made:
                await each.publisher.api.aclose()


def status(api, name="orders", namespace="shop", plural=NAMESPACED):
    return api.get(GROUP, plural, namespace, name).get("status", {})


def conditions(api, **which):
    return {each["type"]: each["reason"] for each in status(api, **which).get("conditions", ())}


def shows(node, version):
    return [each.resource_version for each in node.found.source.policies()] == [version]


async def settle(api, *nodes, want):
    """Rounds of all nodes until the statuses are as wanted, and the watch has shown them."""
    source = nodes[0].found.source

    def shown():
        written = [each for plural in (NAMESPACED, CLUSTER) for each in api.objects.get((GROUP, plural), {}).values()]
        versions = {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in written}
        return versions == {each.uid: each.resource_version for each in source.policies()}

    try:
        async with time_limit(20):
            while True:
                for each in nodes:
                    await each.once()
                await until(shown)
                if want():
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not settled: {[each.status for each in source.policies()]}") from None


def test_two_nodes_write_one_status():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy(generation=3))
        async with nodes(api, "n1", "n2") as (one, two):
            failing = (PodState("shop/b", "failed", "no certificate"),)
            one.said = (view(programmed=("shop/a",), bypassed={"tls": 2}),)
            two.said = (view(failing=failing, failing_pods=1),)
            await settle(api, one, two, want=lambda: status(api).get("programmedPods") == 1)
            found = status(api)
            assert conditions(api) == {"Accepted": "Accepted", "Programmed": "Failing", "Conflicted": "NoConflict"}
            assert {each["observedGeneration"] for each in found["conditions"]} == {3}
            assert (found["observedGeneration"], found["programmedPods"], found["bypassed"]) == (3, 1, 2)
            assert found["nodes"]["n1"]["daemon"]["pod"] == "sidestep-n1"
            [pod] = found["nodes"]["n2"]["failingPods"]
            assert pod == {"pod": "shop/b", "state": "failed", "reason": "no certificate"}
            two.said = (view(programmed=("shop/b",)),)
            await settle(api, one, two, want=lambda: status(api)["programmedPods"] == 2)
            assert conditions(api)["Programmed"] == "Programmed"
            two.said = (view(),)
            await settle(api, one, two, want=lambda: list(status(api)["nodes"]) == ["n1"])

    run(test)


def test_nothing_is_written_while_nothing_changes():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        async with nodes(api, "n1") as (one,):
            one.said = (view(programmed=("shop/a",)),)
            await settle(api, one, want=lambda: conditions(api).get("Programmed") == "Programmed")
            version = api.version
            for _ in range(5):
                await one.once()
            assert api.version == version

    run(test)


def test_workloads_and_gaps_outlast_the_daemon_that_wrote_them():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        ports = (InspectedView("shop/deployment/orders", (8443,)),)
        async with nodes(api, "n1") as (one,):
            one.said = (view(programmed=("shop/a",), inspected=ports, gaps=(GapView(100.0, 107.0, "no-daemon", 1),)),)
            await settle(api, one, want=lambda: "nodes" in status(api))
            own = msgspec.structs.replace(one.publisher.own, started="2026-01-01T01:00:00Z")
            one.publisher.own = own
            one.said = (view(programmed=("shop/a",), inspected=ports, gaps=(GapView(200.0, 201.0, "no-daemon", 2),)),)
            await settle(api, one, want=lambda: len(status(api)["nodes"]["n1"]["gaps"]) == 2)
            entry = status(api)["nodes"]["n1"]
            assert [(gap["start"][-14:], gap["pods"]) for gap in entry["gaps"]] == [
                ("T00:01:40.000Z", 1),
                ("T00:03:20.000Z", 2),
            ]
            assert entry["inspected"] == [{"workload": "shop/deployment/orders", "ports": [8443], "egress": False}]
            version = api.version
            for _ in range(5):
                await one.once()
            assert api.version == version

    run(test)


def test_a_schema_without_these_fields_is_not_written_to_all_the_time():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        async with nodes(api, "n1") as (one,):
            one.said = (view(programmed=("shop/a",), inspected=(InspectedView("shop/pod/a", (8443,)),)),)
            for _ in range(40):  # 200 s of the publisher's clock
                await one.once()
                found = api.get(GROUP, NAMESPACED, "shop", "orders")
                found.get("status", {}).get("nodes", {}).get("n1", {}).pop("inspected", None)  # pruned
                await api.put(GROUP, NAMESPACED, found)
                version = found["metadata"]["resourceVersion"]
                await until(partial(shows, one, version))
            assert sum("PATCH" in each for each in api.requests) < 10

    run(test)


def test_counts_are_written_once_a_minute():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        async with nodes(api, "n1") as (one,):
            one.said = (view(programmed=("shop/a",), bypassed={"tls": 1, "gone": 1}),)
            await settle(api, one, want=lambda: status(api).get("bypassed") == 2)
            written = sum("PATCH" in each for each in api.requests)
            for count in range(8):
                one.said = (view(programmed=("shop/a",), bypassed={"tls": 10 + count}),)
                await one.once()
            assert sum("PATCH" in each for each in api.requests) == written
            one.clock += module.COUNTED_LEAST
            await one.once()
            assert sum("PATCH" in each for each in api.requests) == written + 1
            assert status(api)["nodes"]["n1"]["bypassed"] == {"tls": 17}
            assert status(api)["bypassed"] == 17

    run(test)


def test_an_invalid_policy_is_told_so_by_one_that_has_no_pods():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy(mode="Strict", generation=2))
        await api.put(GROUP, CLUSTER, baseline())
        async with nodes(api, "n1", "n2") as (one, two):
            for each in (one, two):
                each.said = (
                    view("base", ""),
                    view(accepted=False, in_force=False, problem="spec.mode: no", mode="", failure_policy=""),
                )
            await settle(api, one, two, want=lambda: conditions(api).get("Accepted") == "Invalid")
            assert conditions(api) == {"Accepted": "Invalid", "Programmed": "NotAccepted", "Conflicted": "NoConflict"}
            assert status(api)["observedGeneration"] == 2
            assert "nodes" not in status(api)
            which = {"name": "base", "namespace": "", "plural": CLUSTER}
            await settle(api, one, two, want=lambda: conditions(api, **which).get("Programmed") == "NoPods")

    run(test)


def test_a_verdict_on_an_earlier_document_is_not_written_to_the_next():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy(generation=1))
        async with nodes(api, "n1") as (one,):
            one.said = (view(programmed=("shop/a",)),)
            await settle(api, one, want=lambda: status(api).get("observedGeneration") == 1)
            before = one.found.inventory
            await api.put(GROUP, NAMESPACED, {**policy(generation=2, mode="Enforce"), "status": status(api)})
            await until(lambda: one.found.inventory is not before)
            one.inventory, version = before, api.version
            one.clock += 5
            await one.publisher.once()
            assert api.version == version
            await settle(api, one, want=lambda: status(api)["observedGeneration"] == 2)

    run(test)


def test_the_daemon_that_started_later_writes_and_the_earlier_one_takes_nothing_away():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        async with nodes(api, "n1") as (old,):
            new = Node(old.found, "n1", "2026-01-01T00:00:09Z")
            new.publisher.own = replace_pod(new.publisher.own, "sidestep-new")
            old.said = new.said = (view(programmed=("shop/a",)),)
            await settle(api, old, want=lambda: "n1" in status(api).get("nodes", {}))
            await settle(api, new, want=lambda: status(api)["nodes"]["n1"]["daemon"]["pod"] == "sidestep-new")
            version = api.version
            await old.once()
            await old.publisher.withdraw()
            assert api.version == version
            await new.publisher.withdraw()
            assert status(api)["nodes"] == {}
            assert conditions(api)["Programmed"] == "NoPods"
            await new.publisher.api.aclose()

    run(test)


def replace_pod(own, pod):
    return DaemonEntry(own.namespace, pod, own.started)


def test_the_entry_of_a_daemon_that_is_gone_is_removed():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        await api.put(V1, "pods", {"metadata": {"name": "sidestep-n2", "namespace": "sidestep"}, "spec": {}})
        async with nodes(api, "n1", "n2") as (one, two):
            one.said = two.said = (view(programmed=("shop/a",)),)
            await settle(api, one, two, want=lambda: len(status(api).get("nodes", {})) == 2)
            # n1, which reports, is gone: n2 notices that it has no pod, and reports.
            two.said = (view(programmed=("shop/a", "shop/b")),)
            two.clock += 2 * module.LOOK_FOR_DAEMONS
            await settle(api, two, want=lambda: list(status(api)["nodes"]) == ["n2"])
            await settle(api, two, want=lambda: status(api)["programmedPods"] == 2)
            # A node that reports looks after the others, whose pods are there.
            one.said = (view(programmed=("shop/a",)),)
            await api.put(V1, "pods", {"metadata": {"name": "sidestep-n1", "namespace": "sidestep"}, "spec": {}})
            await settle(api, one, want=lambda: len(status(api)["nodes"]) == 2)
            one.clock += 2 * module.LOOK_FOR_DAEMONS
            await one.once()
            assert len(status(api)["nodes"]) == 2

    run(test)


@pytest.mark.parametrize("code", [403, 404, 429, 500])
def test_a_status_that_is_refused_holds_up_no_other(code):
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        await api.put(GROUP, CLUSTER, baseline())
        if code == 403:
            api.forbid("patch", f"{CLUSTER}/status")
        async with nodes(api, "n1") as (one,):
            if code == 404:
                api.unknown.add(f"{GROUP}/{CLUSTER}/base/status")
            elif code != 403:
                api.failing[f"{GROUP}/{CLUSTER}/base/status"] = code
            one.said = (view("base", "", programmed=("shop/a",)), view(programmed=("shop/a",)))
            await settle(api, one, want=lambda: conditions(api).get("Programmed") == "Programmed")
            assert conditions(api, name="base", namespace="", plural=CLUSTER) == {}

    run(test)


def test_a_pod_that_leaves_a_policy_gets_an_event():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        async with nodes(api, "n1") as (one,):
            key = PodKey("shop", "a")
            pod = Pod(key, uid="uid-a", labels={"app": "orders"})
            one.plan = Plan(surveys={key: PodSurvey(pod, ())}, inspected={key: {8080: ("shop/orders",)}})
            await one.once()
            one.plan = Plan(surveys={key: PodSurvey(replace(pod, labels={"app": "x"}), ())})
            await one.once()
            [event] = api.objects[V1, "events"].values()
            assert event["involvedObject"] == {
                "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "uid-a", "namespace": "shop",
            }  # fmt: skip
            assert (event["reason"], event["type"]) == ("InspectionEnded", "Warning")
            assert "InspectionPolicy shop/orders selects it no longer" in event["message"]

    run(test)


def test_an_entry_that_cannot_be_removed_keeps_no_other():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        await api.put(GROUP, CLUSTER, baseline())
        async with nodes(api, "n1") as (one,):
            one.said = (view("base", "", programmed=("shop/a",)), view(programmed=("shop/a",)))
            await settle(api, one, want=lambda: conditions(api).get("Programmed") == "Programmed")
            api.failing[f"{GROUP}/namespaces/shop/{NAMESPACED}/orders/status"] = 500
            await one.publisher.withdraw()
            assert list(status(api)["nodes"]) == ["n1"]
            assert status(api, name="base", namespace="", plural=CLUSTER)["nodes"] == {}

    run(test)


def test_pods_whose_labels_flap_leave_room_for_the_events_of_others():
    async def test(api):
        await api.put(GROUP, NAMESPACED, policy())
        async with nodes(api, "n1") as (one,):
            pods = [
                Pod(PodKey("shop", f"p{number}"), f"uid-{number}", labels={"app": "orders"}) for number in range(30)
            ]
            for turn in range(100):
                there = pods if turn % 2 == 0 else [replace(pod, labels={"app": "x"}) for pod in pods]
                surveys = {pod.key: PodSurvey(pod, ()) for pod in there}
                selected = {pod.key: {8080: ("shop/orders",)} for pod in there if turn % 2 == 0}
                one.plan = Plan(surveys=surveys, inspected=selected)
                await one.publisher.once()
            assert len(one.publisher._leaving) <= len(pods)

    run(test)
