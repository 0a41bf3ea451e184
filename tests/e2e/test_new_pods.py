"""Pods that start: an intercept takes them as soon as they are ready, and nobody is warned of what is not there yet.

The certificate lies in the app's container, so it cannot be read before the container runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from sidestep.kube.events import COMPONENT
from tests.e2e import shop as shops
from tests.harness.waiting import until

FILTER = ("--http-header", "x-dev=ada")
SOON = 5.0
"""Seconds after its readiness in which a pod is intercepted; half a second on an idle machine."""
PATIENCE = 15.0
"""Seconds after which a missing process becomes a problem where one is expected; longer than that."""


@contextlib.contextmanager
def filed(cluster, shop, name, *, replicas=1, image=None):
    """The app once more, with its certificate by path."""
    document = shops.deployment(replicas=replicas)
    document["metadata"] = {
        "name": name,
        "annotations": {f"telepresence.io/downstream-tls-path.{shops.TLS_PORT}": "/etc/orders-tls"},
    }
    document["spec"]["selector"]["matchLabels"] = {"app": name}
    document["spec"]["template"]["metadata"]["labels"] = {"app": name}
    if image is not None:
        document["spec"]["template"]["spec"]["containers"][0]["image"] = image
    cluster.apply(document, namespace=shop.namespace)
    try:
        yield
    finally:
        cluster.delete("deployment", name, namespace=shop.namespace)


def answered_by(shop, pod):
    """Who answers a request with the developer's header."""
    return shop.get(pod, "/", shops.DEV).served_by


def joined(shop, pods):
    """Wait until the handler gets the requests of all these pods."""
    for pod in pods:
        until(
            lambda pod=pod: answered_by(shop, pod) == "handler",
            within=SOON,
            every=0.2,
            what=lambda pod=pod: f"{pod.name} to be intercepted\n{shop.cluster.describe(shop.namespace)}",
        )


def warnings(cluster, shop, name):
    """The warnings about a workload's pods that Sidestep posted."""
    return [
        event["message"]
        for event in cluster.events(shop.namespace)
        if event["type"] == "Warning"
        and event["involvedObject"]["name"].startswith(name)
        and COMPONENT in (event.get("source", {}).get("component"), event.get("reportingComponent"))
    ]


def test_pods_that_scale_up_during_an_intercept_join_it_once_they_are_ready(cluster, product, shop):
    with (
        filed(cluster, shop, "filed"),
        product.handler() as handler,
        product.intercept("filed", *FILTER, port=f"{handler}:https", pods=1, within=60),
    ):
        for count in (2, 4):
            cluster.kubectl("scale", "deploy/filed", f"--replicas={count}", "-n", shop.namespace)
            joined(shop, cluster.wait_pods(shop.namespace, "app=filed", count))
        assert warnings(cluster, shop, "filed") == []


def test_an_intercept_of_a_pod_that_is_just_being_made_waits_for_it(cluster, product, shop):
    with (
        product.handler() as handler,
        filed(cluster, shop, "fresh"),
        product.intercept("fresh", *FILTER, port=f"{handler}:https", pods=1, within=60) as session,
    ):
        joined(shop, cluster.wait_pods(shop.namespace, "app=fresh", 1))
        assert session.process.running
        assert warnings(cluster, shop, "fresh") == []


def test_a_container_that_is_restarted_is_intercepted_again(cluster, product, shop):
    with (
        filed(cluster, shop, "again"),
        product.handler() as handler,
        product.intercept("again", *FILTER, port=f"{handler}:https", pods=1, within=60),
    ):
        (pod,) = cluster.wait_pods(shop.namespace, "app=again", 1)
        joined(shop, [pod])
        before = cluster.get("pod", pod.name, namespace=shop.namespace)["status"]["containerStatuses"][0]
        for pid in cluster.processes(pod):
            with contextlib.suppress(OSError):
                if b"nginx: master" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

        def restarted():
            now = cluster.get("pod", pod.name, namespace=shop.namespace)["status"]["containerStatuses"][0]
            return now["containerID"] != before["containerID"] and now["ready"]

        until(restarted, within=60, every=0.3, what="the container to run again")
        joined(shop, [pod])
        assert warnings(cluster, shop, "again") == []


@pytest.mark.timeout(240, func_only=True)
def test_a_pod_whose_container_never_starts_stays_pending(cluster, product, shop):
    with (
        filed(cluster, shop, "stuck", image="nowhere.test/none"),
        product.handler() as handler,
        product.intercept("stuck", *FILTER, port=f"{handler}:https", pods=None) as session,
    ):

        def pending():
            listed = product.run("status", "-n", shop.namespace)
            return listed if "waits for its certificate" in listed.stdout else None

        listed = until(pending, within=60, every=0.5, what=lambda: product.run("status").stdout)
        assert "container orders has no process yet" in listed.stdout
        # A problem would be said after a while.
        with contextlib.suppress(AssertionError):
            until(lambda: warnings(cluster, shop, "stuck"), within=PATIENCE, every=1, what="warnings")
        assert warnings(cluster, shop, "stuck") == []
        assert session.process.running
