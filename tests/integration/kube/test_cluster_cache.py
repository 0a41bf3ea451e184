"""The mirror: an inventory like that of manifests, from watches; Secrets one by one; no location from annotations."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from sidestep.kube import secret_names
from sidestep.kube.api import Api
from sidestep.kube.processes import PodToLocate
from sidestep.kube.watch import WatchLimits
from sidestep.model.pod import Location, Owner, PodKey
from sidestep.node.certificates.reader import Reader, ReadError
from sidestep.node.certificates.requests import ReadRequest
from sidestep.node.cluster.inventory import ClusterInventory
from tests.harness.authority import Authority
from tests.harness.fake_api import run
from tests.integration.kube.test_watch import until

V1, APPS = "/api/v1", "/apis/apps/v1"
FAST = WatchLimits(first_pause=0.01, last_pause=0.05, refused_pause=0.1)
PATH = "telepresence.io/downstream-tls-path.8443"


class Scene:
    """A source of inventories and the readings it gave."""

    def __init__(self, api):
        self.crashes, self.readings, self.asked = [], [], []
        self.client = Api(api.access())
        self.locations = {}
        self.source = ClusterInventory(
            self.client,
            node="n1",
            service_account="sidestep:sidestep-node",
            on_crash=lambda *crash: self.crashes.append(crash),
            find=self.find,
            limits=FAST,
        )

    def find(self, wanted: dict[str, PodToLocate]):
        self.asked.append(wanted)
        return {uid: self.locations[uid] for uid in wanted if uid in self.locations}

    @property
    def inventory(self):
        return self.readings[-1].inventory


@asynccontextmanager
async def scene(api):
    made = Scene(api)
    made.readings.append(await made.source.load())
    task = asyncio.create_task(made.source.watch(made.readings.append))
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await made.source.aclose()
        await made.client.aclose()
        await asyncio.sleep(0.01)
    assert made.crashes == []


def pod(name="orders-1", *, node="n1", ip="10.0.0.1", running=True, **metadata):
    status = {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}] if ip else []}
    if running:
        status["containerStatuses"] = [
            {"name": "app", "containerID": f"containerd://{'a' * 64}", "state": {"running": {"startedAt": "x"}}}
        ]
    return {
        "metadata": {
            "name": name,
            "namespace": "shop",
            "uid": f"uid-{name}",
            "labels": {"app": "orders"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "orders-abc", "controller": True}],
            **metadata,
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "app", "ports": [{"containerPort": 8443, "name": "https"}]}],
        },
        "status": {key: value for key, value in status.items() if value},
    }


async def populate(api):
    await api.put(V1, "pods", pod())
    await api.put(V1, "pods", pod("elsewhere", node="n2"))
    copied = {PATH: "/copied", "deployment.kubernetes.io/revision": "3"}
    await api.put(
        APPS,
        "replicasets",
        {
            "metadata": {
                "name": "orders-abc",
                "namespace": "shop",
                "annotations": copied,
                "ownerReferences": [{"kind": "Deployment", "name": "orders", "controller": True}],
            }
        },
    )
    await api.put(
        APPS,
        "deployments",
        {
            "metadata": {
                "name": "orders",
                "namespace": "shop",
                "annotations": {PATH: "/tls", "kubectl.kubernetes.io/last-applied-configuration": "x" * 1000},
            }
        },
    )
    service = {"selector": {"app": "orders"}, "ports": [{"port": 443, "targetPort": "https", "appProtocol": "https"}]}
    await api.put(V1, "services", {"metadata": {"name": "orders", "namespace": "shop"}, "spec": service})
    await api.put(V1, "namespaces", {"metadata": {"name": "shop", "annotations": {"sidestep.dev/x": "1"}}})
    await api.put(V1, "nodes", {"metadata": {"name": "n1", "annotations": {"sidestep.dev/max-pods": "5"}}})
    await api.put(V1, "nodes", {"metadata": {"name": "n2"}})


def test_the_inventory_of_one_node():
    async def test(api):
        await populate(api)
        async with scene(api) as found:
            inventory = found.inventory
            assert list(inventory.pods) == [PodKey("shop", "orders-1")]
            owners = inventory.pods[PodKey("shop", "orders-1")].owners
            assert owners == (Owner("replicaset", "orders-abc"), Owner("deployment", "orders", {PATH: "/tls"}))
            assert inventory.services_of(inventory.pods[PodKey("shop", "orders-1")])[0].ports[0].app_protocol == "https"
            assert inventory.namespace_annotations("shop") == {"sidestep.dev/x": "1"}
            assert inventory.node_annotations("n1") == {"sidestep.dev/max-pods": "5"}
            assert list(inventory.nodes) == ["n1"]

    run(test)


def test_annotations_come_and_go_on_every_level():
    async def test(api):
        await populate(api)
        async with scene(api) as found:
            key = PodKey("shop", "orders-1")
            await api.put(V1, "pods", pod(annotations={PATH: "/pod", "sidestep.dev/netns": "/proc/1/ns/net"}))
            await until(lambda: found.inventory.pods[key].annotations.get(PATH) == "/pod")
            assert found.inventory.pods[key].location == Location(searched=True), "no annotation says where a pod lives"
            await api.put(APPS, "deployments", {"metadata": {"name": "orders", "namespace": "shop"}})
            await until(lambda: found.inventory.pods[key].owners[1].annotations == {})
            await api.put(V1, "nodes", {"metadata": {"name": "n1"}})
            await until(lambda: found.inventory.node_annotations("n1") == {})
            await api.remove(V1, "pods", "shop", "orders-1")
            await until(lambda: found.inventory.pods == {})

    run(test)


def test_processes_are_looked_for_until_they_are_found_and_no_longer():
    async def test(api):
        await populate(api)
        await api.put(V1, "pods", pod("host", ip="192.168.0.1") | {"spec": {**pod()["spec"], "hostNetwork": True}})
        async with scene(api) as found:
            assert found.asked
            assert all(set(each) == {"uid-orders-1"} for each in found.asked)
            found.locations["uid-orders-1"] = Location(netns="/proc/4194303/ns/net", pids={"app": 4194303})
            await until(lambda: found.inventory.pods[PodKey("shop", "orders-1")].location.pids == {"app": 4194303})
            asked = len(found.asked)
            await api.put(V1, "namespaces", {"metadata": {"name": "other"}})
            await until(lambda: "other" in found.inventory.namespaces)
            assert len(found.asked) == asked

    run(test)


LEAF = Authority().issue("orders.shop")
NAME = ("shop", "orders-tls")


async def put_secret(api, name="orders-tls", issued=LEAF, **metadata):
    value = {"metadata": {"name": name, "namespace": "shop", **metadata}, "data": issued.secret()}
    await api.put(V1, "secrets", value)


def test_secrets_are_known_by_name_and_version_and_never_read():
    """One watch for each namespace, of cells alone: even a Secret's metadata may hold its data."""

    async def test(api):
        await populate(api)
        copied = {"kubectl.kubernetes.io/last-applied-configuration": LEAF.secret()["tls.key"]}
        await put_secret(api, annotations=copied)
        await put_secret(api, "not-ours")
        async with scene(api) as found:
            assert not any("secrets" in request for request in api.requests)
            wanted = frozenset({NAME, *(("shop", f"other-{number}") for number in range(1000))})
            found.source.want_secrets(wanted)
            await until(lambda: NAME in found.inventory.secrets)
            assert list(found.inventory.secrets) == [NAME]
            first = found.inventory.secrets[NAME]
            await put_secret(api, annotations=copied)
            await until(lambda: found.inventory.secrets[NAME] != first)
            asked = [request for request in api.requests if "secrets" in request]
            assert {request.split("?")[0] for request in asked} == {"GET /api/v1/namespaces/shop/secrets"}
            assert all("includeObject=None" in request for request in asked)
            assert sum("watch=true" in request for request in asked) == 1
            await api.remove(V1, "secrets", *NAME)
            await until(lambda: not found.inventory.secrets)
            found.source.want_secrets(frozenset())

    run(test)


@pytest.mark.parametrize("granted", [{"get"}, {"list", "watch"}, {"get", "list", "watch"}])
def test_a_secret_is_read_by_a_child_with_whatever_was_granted(granted, monkeypatch):
    monkeypatch.setattr(secret_names, "POLL", 0.1)

    async def test(api):
        await populate(api)
        await put_secret(api)
        for verb in {"get", "list", "watch"} - granted:
            api.forbid(verb, "secrets")
        reader = Reader()
        try:
            async with scene(api) as found:
                found.source.want_secrets(frozenset({NAME}))
                await until(lambda: NAME in found.inventory.secrets)
                source = found.source.secret_source(None, *NAME)
                summary, _ = await reader.read(ReadRequest(source, ca_alone=False))
                assert summary.identity.names == ("orders.shop",)
                before = found.inventory.secrets[NAME].version
                if granted == {"get"}:  # its version turns with time
                    await until(lambda: found.inventory.secrets[NAME].version != before)
                await api.remove(V1, "secrets", *NAME)
                with pytest.raises(ReadError, match="there is no Secret shop/orders-tls"):
                    await reader.read(ReadRequest(source, ca_alone=False))
        finally:
            reader.close()

    run(test)


def test_a_forbidden_secret_says_which_binding_is_missing():
    async def test(api):
        await populate(api)
        await put_secret(api)
        api.forbid("*", "secrets")
        reader = Reader()
        try:
            async with scene(api) as found:
                found.source.want_secrets(frozenset({NAME}))
                with pytest.raises(ReadError) as caught:
                    await reader.read(ReadRequest(found.source.secret_source(None, *NAME), ca_alone=False))
                assert caught.value.status == 403
                text = found.source.explain(*NAME, caught.value)
                assert "may not be read" in text
                assert "kubectl create rolebinding sidestep-secrets" in text
                assert "--serviceaccount=sidestep:sidestep-node -n shop" in text
                assert "kubectl create role sidestep-secret-orders-tls --verb=get --resource=secrets " in text
        finally:
            reader.close()

    run(test)


def test_what_may_not_be_watched_is_a_condition_and_the_rest_works():
    async def test(api):
        await populate(api)
        api.forbid("list", "jobs")
        api.unknown.add("endpointslices")
        async with scene(api) as found:
            texts = [condition.text for condition in found.readings[-1].conditions]
            assert any("jobs cannot be watched" in text for text in texts)
            assert any("endpointslices cannot be watched" in text for text in texts)
            assert found.inventory.pods

    run(test)


def test_a_service_without_selector_gets_its_pods_from_slices():
    async def test(api):
        await populate(api)
        await api.put(
            V1,
            "services",
            {"metadata": {"name": "manual", "namespace": "shop"}, "spec": {"ports": [{"port": 80, "name": "web"}]}},
        )
        await api.put(
            "/apis/discovery.k8s.io/v1",
            "endpointslices",
            {
                "metadata": {"name": "m-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "manual"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "orders-1"}}],
                "ports": [{"name": "web", "port": 8443, "appProtocol": "http2"}],
            },
        )
        async with scene(api) as found:
            there = found.inventory.services_of(found.inventory.pods[PodKey("shop", "orders-1")])
            (manual,) = [service for service in there if service.name == "manual"]
            assert [(port.number, port.target, port.app_protocol) for port in manual.ports] == [(80, 8443, "http2")]

    run(test)


def service(name="orders", *, port=443):
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"},
        "spec": {"selector": {"app": "orders"}, "ports": [{"port": port, "targetPort": 8443}]},
    }


def test_an_object_that_is_changed_all_the_time_is_read_now_and_then():
    """20 patches a second of one Service by somebody; the newest is known in the end, and all else stays as it is."""

    async def test(api):
        await populate(api)
        async with scene(api) as found:
            first, before = found.inventory, len(found.readings)
            began = asyncio.get_running_loop().time()
            for number in range(300):
                await api.put(V1, "services", service("flooded", port=number + 1))
                await asyncio.sleep(0.01)
            took = asyncio.get_running_loop().time() - began

            def newest():
                [flooded] = [each for each in found.inventory.services if each.name == "flooded"]
                return flooded.ports[0].number == 300

            await until(newest)
            assert len(found.readings) - before <= 20 + 2 * (took + 5)
            key = PodKey("shop", "orders-1")
            assert found.inventory.pods[key] is first.pods[key]
            assert found.inventory.workloads is first.workloads

    run(test)


def test_changes_that_mean_nothing_here_make_no_reading():
    async def test(api):
        await populate(api)
        async with scene(api) as found:
            before = len(found.readings)
            for number in range(20):
                beat = pod()
                beat["status"]["conditions"] = [{"type": "Ready", "lastProbeTime": str(number)}]
                beat["metadata"]["annotations"] = {"example.com/heartbeat": str(number)}
                await api.put(V1, "pods", beat)
                await asyncio.sleep(0.02)
            await api.put(V1, "services", service("last"))
            await until(lambda: any(each.name == "last" for each in found.inventory.services))
            assert len(found.readings) == before + 1

    run(test)
