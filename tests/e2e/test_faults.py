"""What goes away comes back, and meanwhile nobody is refused: certificates, the API server, the daemon, its upgrade."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

import pytest

from tests.e2e import machine
from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e.load import ask, connected, load, once
from tests.harness.nginx import client_context
from tests.harness.waiting import until

FILTER = ("--http-header", "x-dev=ada")


def test_a_rotated_secret(cluster, product, shop):
    """New handshakes get the new certificate within five seconds, no connection fails, and those that are open stay."""
    context = client_context(shop.ca.read_bytes())
    fresh = shop.authority.issue(shops.HOST)
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3),
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca) as running,
        contextlib.ExitStack() as connections,
    ):
        open_ = [connections.enter_context(connected(cluster.node.laptop, pod.ip, context)) for pod in pods]
        assert [ask(each, marked=True) for each in open_] == ["handler"] * 3
        running.goes_on()
        cluster.apply(shops.secret("orders-tls", fresh), namespace=shop.namespace)
        for pod in pods:
            until(
                lambda pod=pod: once(cluster.node.laptop, pod.ip, context, marked=True) == ("handler", fresh.serial),
                within=5,
                what="the new certificate",
            )
        running.goes_on()
        assert [ask(each, marked=marked) for each in open_ for marked in (True, False)] == ["handler", "app"] * 3
    assert not running.failures()


def test_without_the_api_server(cluster, product, shop):
    """It is away for thirty seconds. Nobody notices but the developer: the way to the laptop leads through it.

    As soon as it is back the session goes on by itself, renewed as before.
    """
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, "--name", "lasting", port=f"{handler}:https", pods=3) as session,
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca, pace=0.05) as running,
    ):
        running.goes_on()
        before = cluster.get("intercept", "lasting", namespace=shop.namespace)["spec"]["renewTime"]
        cluster.stop_program("apiserver")
        try:
            begin, away = running.mark(), time.monotonic()
            until(lambda: time.monotonic() - away >= 30, within=40, what="thirty seconds", every=1)
            meanwhile = running.mark() - begin
        finally:
            cluster.start_apiserver()
        assert meanwhile[True, "app"] > 20, meanwhile
        assert meanwhile[False, "app"] > 20, meanwhile
        until(
            lambda: set(running.goes_on()) == {(True, "handler"), (False, "app")},
            within=30,
            what=lambda: f"the session to go on\n{session.process.output()[-2000:]}{session.process.text()[-2000:]}",
        )
        assert session.process.running
        until(
            lambda: cluster.get("intercept", "lasting", namespace=shop.namespace)["spec"]["renewTime"] > before,
            within=15,
            every=1,
            what="a renewal",
        )
    assert not running.failures()
    assert (False, "handler") not in running.mark()
    shop.wait(3)


def replace_daemon(cluster, product, act):
    """Do `act`, wait for another daemon pod to be ready."""
    old = product.daemon()
    act()
    until(
        lambda: [pod for pod in cluster.pods(products.NAMESPACE, products.DAEMON) if pod.ready and pod.uid != old.uid],
        within=90,
        every=0.5,
        what=lambda: f"a new daemon\n{cluster.describe(products.NAMESPACE)}",
    )


@pytest.mark.parametrize(("options", "lost"), [((), 0), (("--grace-period=0", "--force"), 6)], ids=["asked", "forced"])
def test_the_daemon_is_deleted(cluster, product, shop, options, lost):
    """Requests go to the app, then the session resumes. With no time to drain, what is in flight may be lost."""
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3) as session,
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca, pace=0.05) as running,
    ):
        running.goes_on()
        words = ["delete", "pod", product.daemon().name, "-n", products.NAMESPACE, *options]
        replace_daemon(cluster, product, lambda: cluster.kubectl(*words, within=90))
        session.wait_active(pods=3, within=40)
        for pod in pods:
            until(lambda pod=pod: shop.get(pod, "/", shops.DEV).served_by == "handler", within=10, what="the handler")
    # Six clients, each with at most one request in flight.
    assert sum(running.failures().values()) <= lost, running.failures()
    assert (False, "handler") not in running.mark()


def test_the_daemon_is_killed(cluster, product, shop):
    """SIGKILL: its programs are gone at once and requests go to the app; the next daemon takes the session up again."""
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3) as session,
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca, pace=0.05) as running,
    ):
        running.goes_on()
        during = [product.steering(pod) for pod in pods]
        assert all(one.links for one in during)
        daemon = product.daemon()
        os.kill(product.process(daemon), signal.SIGKILL)
        until(lambda: not [left for one in during for left in one.left()], within=5, what="the programs to be gone")
        after = running.goes_on()
        until(
            lambda: product.daemon().restarts > daemon.restarts,
            within=60,
            every=0.5,
            what=lambda: f"a new daemon\n{cluster.describe(products.NAMESPACE)}",
        )
        session.wait_active(pods=3, within=40)
        for pod in pods:
            until(lambda pod=pod: shop.get(pod, "/", shops.DEV).served_by == "handler", within=10, what="the handler")
    assert after[True, "app"], after
    assert sum(running.failures().values()) <= 6, running.failures()
    product.quiet(pods)


def test_an_upgrade_under_load(cluster, product, shop):
    """`kubectl rollout restart`: not one connection is refused or reset."""
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3) as session,
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca, pace=0.02) as running,
    ):
        running.goes_on()
        words = ["rollout", "restart", "daemonset/sidestep-node", "-n", products.NAMESPACE]
        replace_daemon(cluster, product, lambda: cluster.kubectl(*words))
        session.wait_active(pods=3, within=40)
        until(lambda: set(running.goes_on()) == {(True, "handler"), (False, "app")}, within=20, what="the handler")
    assert not running.failures()
    assert (False, "handler") not in running.mark()


def another_daemon(cluster, name):
    """The DaemonSet's pod once more on the same node, as `maxSurge` makes it on clusters that know that."""
    template = cluster.get("daemonset", "sidestep-node", namespace=products.NAMESPACE)["spec"]["template"]
    labels = {**template["metadata"]["labels"], "app.kubernetes.io/component": name}
    metadata = {"name": name, "labels": labels, "annotations": template["metadata"]["annotations"]}
    spec = {**template["spec"], "nodeName": machine.NODE_NAME}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def daemons_selector(cluster, selector):
    """Let the DaemonSet have pods on nodes with these labels only."""
    patch = json.dumps({"spec": {"template": {"spec": {"nodeSelector": selector}}}})
    words = ["patch", "daemonset", "sidestep-node", "-n", products.NAMESPACE, "--type=merge", "-p", patch]
    cluster.kubectl(*words)


@pytest.mark.timeout(400, func_only=True)  # three pods come and go, each at the kubelet's pace
def test_daemons_that_overlap(cluster, product, shop):
    """The next daemon works before the one before it ends, and back again: no connection is refused or reset."""
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3) as session,
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca, pace=0.02) as running,
    ):
        running.goes_on()
        try:
            cluster.apply(another_daemon(cluster, "surge"), namespace=products.NAMESPACE)
            cluster.wait_pods(products.NAMESPACE, "app.kubernetes.io/component=surge", 1)
            running.goes_on()
            daemons_selector(cluster, {"sidestep": "elsewhere"})
            until(
                lambda: not cluster.get("pods", namespace=products.NAMESPACE, selector=products.DAEMON),
                within=90,
                every=0.5,
                what=lambda: f"the first daemon to end\n{cluster.describe(products.NAMESPACE)}",
            )
            session.wait_active(pods=3, within=20)
            until(lambda: set(running.goes_on()) == {(True, "handler"), (False, "app")}, within=20, what="the handler")
        finally:
            daemons_selector(cluster, {"sidestep": None})
            product.daemon()
            cluster.delete("pod", "surge", namespace=products.NAMESPACE, within=90)
        session.wait_active(pods=3, within=20)
        until(lambda: set(running.goes_on()) == {(True, "handler"), (False, "app")}, within=20, what="the handler")
    assert not running.failures()
    assert (False, "handler") not in running.mark()
