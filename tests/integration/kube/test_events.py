"""One Event, as `kubectl describe` looks for it."""

import asyncio

import pytest

from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.events import MAX_MESSAGE, EventSubject, post
from tests.harness.fake_api import FakeApi

POD = EventSubject("v1", "Pod", "shop", "orders-1", "uid-1")
NODE = EventSubject("v1", "Node", "", "n1", "n1")


def run(test):
    async def body():
        async with FakeApi() as api:
            client = Api(api.access())
            try:
                await asyncio.wait_for(test(api, client), 20)
            finally:
                await client.aclose()
                await asyncio.sleep(0.01)

    asyncio.run(body())


def test_an_event_lies_beside_its_object_and_one_of_a_node_in_default():
    async def test(api, client):
        await post(client, POD, reason="CertificateInvalid", message="x" * 5000, node="n1", warning=True)
        await post(client, NODE, reason="Over", message="all is well", node="n1", warning=False)
        events = {namespace: event for (namespace, _), event in api.objects["/api/v1", "events"].items()}
        pod, node = events["shop"], events["default"]
        assert pod["involvedObject"]["uid"] == "uid-1"
        assert (pod["type"], pod["reason"], len(pod["message"])) == ("Warning", "CertificateInvalid", MAX_MESSAGE)
        assert pod["source"]["host"] == "n1"
        assert (node["type"], "namespace" in node["involvedObject"]) == ("Normal", False)
        assert pod["metadata"]["name"].startswith("orders-1.")

    run(test)


def test_what_may_not_be_written_is_an_error():
    async def test(api, client):
        api.forbid("create", "events")
        with pytest.raises(ApiError) as caught:
            await post(client, POD, reason="A", message="b", node="n1", warning=True)
        assert caught.value.forbidden

    run(test)
