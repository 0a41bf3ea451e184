"""Inspection policies of a cluster in a node's inventory: parsed, invalid, not installed, installed later, removed."""

from sidestep.kube.watch import WatchLimits
from tests.harness.fake_api import FakeApi, run
from tests.integration.kube import test_cluster_cache
from tests.integration.kube.test_cluster_cache import V1, populate, scene
from tests.integration.kube.test_watch import until

GROUP = "/apis/sidestep.dev/v1alpha1"
NAMESPACED, CLUSTER = "inspectionpolicies", "clusterinspectionpolicies"
RULES = [{"name": "no-admin", "action": "Block", "match": {"paths": [{"match": "Prefix", "value": "/admin"}]}}]


def policy(name="orders", namespace="shop", generation=1, **spec):
    metadata = {"name": name, "namespace": namespace, "generation": generation}
    return {"metadata": metadata, "spec": {"podSelector": {}, "rules": RULES, **spec}}


def baseline(name="base", **spec):
    spec = {"namespaceSelector": {}, "podSelector": {}, "rules": RULES, **spec}
    return {"metadata": {"name": name, "generation": 1}, "spec": spec}


def names(inventory):
    return [each.display for each in inventory.policies]


def test_policies_are_read_and_their_statuses_are_no_news():
    async def test(api):
        await populate(api)
        await api.put(GROUP, NAMESPACED, policy())
        await api.put(GROUP, CLUSTER, baseline())
        await api.put(V1, "namespaces", {"metadata": {"name": "shop", "labels": {"tier": "gold"}}})
        async with scene(api) as found:
            assert names(found.inventory) == ["base", "shop/orders"]
            assert found.inventory.namespace_labels["shop"] == {"tier": "gold"}
            assert found.inventory.invalid_policies == {}
            readings = len(found.readings)
            changed = api.get(GROUP, NAMESPACED, "shop", "orders") | {"status": {"observedGeneration": 1}}
            await api.put(GROUP, NAMESPACED, changed)
            await until(lambda: [each.status.observed_generation for each in found.source.policies()] == [1, 0])
            assert len(found.readings) == readings
            await api.put(GROUP, NAMESPACED, policy(mode="Enforce", generation=2))
            await until(lambda: [each.mode for each in found.inventory.policies] == ["Detect", "Enforce"])
            await api.remove(GROUP, CLUSTER, "", "base")
            await until(lambda: names(found.inventory) == ["shop/orders"])

    run(test)


def test_one_that_cannot_be_parsed_is_named_with_the_reason():
    async def test(api):
        await populate(api)
        await api.put(GROUP, NAMESPACED, policy())
        async with scene(api) as found:
            await api.put(GROUP, NAMESPACED, policy(mode="Strict"))
            await until(lambda: found.inventory.invalid_policies)
            [(key, reason)] = found.inventory.invalid_policies.items()
            assert key == ("shop", "orders")
            assert reason.startswith("spec.mode: ")
            assert found.inventory.policies == ()
            assert found.readings[-1].conditions == (), "the store of policies states the condition"
            await api.put(GROUP, NAMESPACED, policy())
            await until(lambda: names(found.inventory) == ["shop/orders"])
            assert found.inventory.invalid_policies == {}

    run(test)


def test_a_cluster_without_the_definitions_has_no_policies_and_no_problem(monkeypatch):
    """They are picked up when they are installed; when they are removed, their policies are gone after a while."""
    fast = WatchLimits(
        first_pause=0.01, last_pause=0.05, first_refused_pause=0.02, absent_pause=0.05, absent=0.2, duration=0.2
    )
    monkeypatch.setattr(test_cluster_cache, "FAST", fast)

    async def test(api):
        await populate(api)
        api.unknown |= {NAMESPACED, CLUSTER}
        async with scene(api) as found:
            assert found.inventory.policies == ()
            assert found.readings[-1].conditions == ()
            await api.put(GROUP, NAMESPACED, policy())
            api.unknown.clear()
            await until(lambda: names(found.inventory) == ["shop/orders"])
            api.unknown |= {NAMESPACED}
            api.cut()
            await until(lambda: names(found.inventory) == [])
            assert found.readings[-1].conditions == ()

    run(test)


def test_an_api_server_that_does_not_know_them_for_a_moment_takes_no_policy_away(monkeypatch):
    fast = WatchLimits(first_pause=0.01, last_pause=0.05, first_refused_pause=0.02, absent_pause=0.05, duration=0.2)
    monkeypatch.setattr(test_cluster_cache, "FAST", fast)

    async def test(api: FakeApi):
        await populate(api)
        await api.put(GROUP, NAMESPACED, policy())
        async with scene(api) as found:
            api.unknown |= {NAMESPACED}
            api.cut()
            asked = len(api.requests)
            await until(lambda: sum(NAMESPACED in each for each in api.requests[asked:]) > 5)
            api.unknown.clear()
            await api.put(GROUP, NAMESPACED, policy("second"))
            await until(lambda: names(found.inventory) == ["shop/orders", "shop/second"])
            assert all(each.inventory.policies for each in found.readings)

    run(test)


def test_who_may_not_read_them_is_told():
    async def test(api):
        await populate(api)
        api.forbid("list", NAMESPACED)
        async with scene(api) as found:
            [condition] = found.readings[-1].conditions
            assert "inspectionpolicies cannot be watched" in condition.text

    run(test)
