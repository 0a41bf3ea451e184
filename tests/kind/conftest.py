"""One kind cluster for all tests here, with Sidestep in it and the app on both nodes."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.debian import cache
from tests.e2e import building, images, machine
from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.kind import cluster as clusters
from tests.kind.parts import parts


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/kind/" in str(item.path):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(240, func_only=True))
    # The node that goes does not come back.
    items.sort(key=lambda item: item.name == "test_a_node_that_goes")


@pytest.fixture(scope="session")
def made_parts(request):
    """What a cluster is made of, in the cache."""
    assert os.geteuid() == 0, "these tests need root: sudo make e2e-kind"
    cache.uncaptured = request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled
    with building.required():
        return parts()


@pytest.fixture(scope="session")
def cluster(made_parts, request):
    """Two nodes. After a failure what kind and podman said is kept in the cache folder."""
    folder = machine.folder_of_our_own()
    try:
        with clusters.kind(folder, made_parts) as running:
            running.user("ada")
            yield running
            if request.session.testsfailed:
                running.keep_logs()
    finally:
        kept = cache.folder() / "kind-logs"
        shutil.rmtree(kept, ignore_errors=True)
        if request.session.testsfailed and (folder / "logs").is_dir():
            shutil.copytree(folder / "logs", kept)
            cache.say(f"logs: {kept}")
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shop(cluster, tmp_path_factory):
    """The app of tests/e2e with two replicas, one on each node, and a Service that kube-proxy serves."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": shops.LABELS},
    }
    opened = shops.open_shop(
        cluster,
        tmp_path_factory.mktemp("shop"),
        replicas=2,
        headless=False,
        topologySpreadConstraints=[spread],
    )
    assert all(len(pods) == 1 for pods in cluster.by_node(opened.pods()).values())
    return opened


@pytest.fixture(scope="session")
def product(cluster, shop, tmp_path_factory):
    """Sidestep, which `deploy/kind.sh` installed; ada is a developer in the shop."""
    installed = products.Product(cluster, tmp_path_factory.mktemp("product"))
    installed.grant("ada", shop.namespace)
    return installed


@pytest.fixture(scope="session")
def clients(cluster, shop):
    """A pod on each node that asks the app's Service."""
    return Clients(cluster, shop)


class Clients:
    """curl in a pod on every node."""

    def __init__(self, cluster, shop):
        self._cluster = cluster
        self._namespace = shop.namespace
        self._ip = cluster.get("service", "orders", namespace=shop.namespace)["spec"]["clusterIP"]
        container = {"name": "client", "image": images.APP, "imagePullPolicy": "Never", "command": ["sleep", "86400"]}
        for node in clusters.NODES:
            spec = {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 0}
            metadata = {"name": f"client-{node}", "labels": {"app": "client"}}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
            cluster.apply(pod, namespace=self._namespace)
        self._pods = {cluster.node_of(pod): pod for pod in cluster.wait_pods(self._namespace, "app=client", 2)}

    def ask(self, node: str, requests: int, *headers: str) -> set[tuple[int, str, str]]:
        """So many connections from a node's pod to the Service: which statuses, servers and pods answered."""
        words = ["curl", "-sk", "--max-time", "10", "-o", "/dev/null", "--resolve", f"{shops.HOST}:443:{self._ip}"]
        words += [word for header in headers for word in ("-H", header)]
        words += ["-w", "%{http_code},%header{x-served-by},%header{x-pod}\\n", f"https://{shops.HOST}/"]
        script = 'for number in $(seq "$0"); do "$@" || true; done'
        out = self._cluster.exec(self._pods[node], "sh", "-c", script, str(requests), *words, within=60)
        lines = [line.split(",") for line in out.split()]
        assert len(lines) == requests, out
        return {(int(status), served_by, pod) for status, served_by, pod in lines}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show what the daemons say beside a failure."""
    report = yield
    funcargs = getattr(item, "funcargs", {})
    if report.failed and "product" in funcargs:
        report.sections.append(("node daemons", funcargs["product"].log(lines=60)))
        report.sections.append(("shop", funcargs["shop"].cluster.describe("shop")))
    return report
