"""The cluster read once: everything that may be read, in pages."""

import asyncio

import pytest

from sidestep.kube import snapshot
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.snapshot import list_all, read_inventory
from sidestep.model.pod import PodKey
from tests.harness.fake_api import FakeApi
from tests.integration.kube.test_cluster_cache import populate


def run(test):
    async def body():
        async with FakeApi() as api:
            await populate(api)
            client = Api(api.access())
            try:
                await asyncio.wait_for(test(api, client), 20)
            finally:
                await client.aclose()
                await asyncio.sleep(0.01)

    asyncio.run(body())


def test_pods_have_their_owners_and_services():
    async def test(_api, client):
        found = await read_inventory(client, "shop")
        assert found.pods
        assert all(key.namespace == "shop" for key in found.pods)
        assert found.services
        assert any(pod.owners for pod in found.pods.values())

    run(test)


def test_what_may_not_be_read_is_left_out_but_for_pods():
    async def test(api, client):
        api.forbid("list", "services")
        api.forbid("list", "deployments")
        assert (await read_inventory(client)).services == ()
        api.forbid("list", "pods")
        with pytest.raises(ApiError):
            await read_inventory(client)

    run(test)


def test_lists_come_in_pages(monkeypatch):
    async def test(api, client):
        monkeypatch.setattr(snapshot, "PAGE", 2)
        for number in range(5):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "many", "name": f"p{number}"}}
            await api.put("/api/v1", "pods", pod | {"spec": {"containers": []}})
        names = [each["metadata"]["name"] for each in await list_all(client, "/api/v1/namespaces/many/pods")]
        assert sorted(names) == [f"p{number}" for number in range(5)]
        assert PodKey("many", "p0") in (await read_inventory(client, "many")).pods

    run(test)
