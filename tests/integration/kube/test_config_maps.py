"""ConfigMaps that policies name, from an API server: read one by one, kept while it is away, or told why not."""

import asyncio
from contextlib import asynccontextmanager

from sidestep.kube import config_maps
from sidestep.kube.api import Api
from sidestep.node.cluster.inventory import ClusterInventory
from tests.harness.fake_api import run
from tests.integration.kube.test_cluster_cache import FAST
from tests.integration.kube.test_watch import until

RULES = "alert http any any -> any any (sid:1;)"
NAME = ("shop", "ids-rules")
POLICIES = "/apis/sidestep.dev/v1alpha1"


async def put_map(api, rules=RULES, name="ids-rules"):
    await api.put(
        "/api/v1", "configmaps", {"metadata": {"name": name, "namespace": "shop"}, "data": {"local.rules": rules}}
    )


async def put_policy(api, name="orders", config="ids-rules"):
    ids = {"rulesFrom": {"configMapRef": {"name": config, "key": "local.rules"}}}
    spec = {"podSelector": {}, "ids": ids}
    await api.put(POLICIES, "inspectionpolicies", {"metadata": {"name": name, "namespace": "shop"}, "spec": spec})


@asynccontextmanager
async def watching(api, monkeypatch):
    """Readings of a cluster, and the inventory of the last."""
    monkeypatch.setattr(config_maps, "POLL", 0.1)
    client, crashes = Api(api.access()), []
    source = ClusterInventory(
        client,
        node="n1",
        service_account="sidestep:sidestep-node",
        on_crash=lambda *crash: crashes.append(crash),
        find=lambda _wanted: {},
        limits=FAST,
    )
    readings = [await source.load()]
    task = asyncio.ensure_future(source.watch(readings.append))
    try:
        yield lambda: readings[-1].inventory
    finally:
        task.cancel()
        await asyncio.wait([task])
        await source.aclose()
        await client.aclose()
        assert crashes == []


def test_what_a_policy_names_is_read_and_read_again(monkeypatch):
    async def go(api):
        await put_map(api)
        await put_map(api, "secret", name="others")
        await put_policy(api)
        async with watching(api, monkeypatch) as inventory:
            await until(lambda: NAME in inventory().config_maps)
            assert inventory().config_maps[NAME].data == {"local.rules": RULES}
            await put_map(api, RULES.replace("1", "2"))
            await until(lambda: "sid:2" in inventory().config_maps[NAME].data["local.rules"])
            same = inventory()
            asked = len(api.requests)
            await until(lambda: len(api.requests) > asked + 3)
            assert inventory() is same  # nothing has changed
            await api.remove(POLICIES, "inspectionpolicies", "shop", "orders")
            await until(lambda: inventory().config_maps == {})
        assert not [each for each in api.requests if "configmaps/others" in each or each.endswith("/configmaps")]

    run(go)


def test_why_one_is_not_there(monkeypatch):
    async def go(api):
        await put_policy(api)
        async with watching(api, monkeypatch) as inventory:

            def problem():
                found = inventory().config_maps.get(NAME)
                return found.problem if found is not None else ""

            await until(lambda: problem() == "there is no ConfigMap shop/ids-rules")
            api.forbid("get", "configmaps", "shop")
            await until(lambda: "may not be read" in problem())
            assert "--clusterrole=sidestep-policy-config --serviceaccount=sidestep:sidestep-node -n shop" in problem()
            api.forbidden.clear()
            await put_map(api)
            await until(lambda: not problem())

    run(go)


def test_an_api_server_that_is_away_takes_nothing_along(monkeypatch):
    async def go(api):
        await put_map(api)
        await put_policy(api)
        async with watching(api, monkeypatch) as inventory:
            await until(lambda: NAME in inventory().config_maps)
            await api.stop()
            await asyncio.sleep(0.3)  # some readings fail
            assert inventory().config_maps[NAME].data == {"local.rules": RULES}
            await api.start()
            await put_map(api, RULES.replace("1", "3"))
            await until(lambda: "sid:3" in inventory().config_maps[NAME].data["local.rules"])

    run(go)
