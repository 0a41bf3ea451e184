"""What goes away comes back, and meanwhile nobody is refused: certificates, the API server, the daemon, its upgrade."""

from __future__ import annotations

import ssl
import time

from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e.load import load, once
from tests.harness.waiting import until

FILTER = ("--http-header", "x-dev=ada")


def test_a_rotated_secret(cluster, product, shop):
    """New handshakes get the new certificate within five seconds, no connection fails."""
    context = ssl.create_default_context(cafile=str(shop.ca))
    fresh = shop.authority.issue(shops.HOST)
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3),
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca) as running,
    ):
        running.goes_on()
        cluster.apply(shops.secret("orders-tls", fresh), namespace=shop.namespace)
        for pod in pods:
            until(
                lambda pod=pod: once(cluster.node.laptop, pod.ip, context, marked=True) == ("handler", fresh.serial),
                within=5,
                what="the new certificate",
            )
        running.goes_on()
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
        assert meanwhile[True, "app"] > 100, meanwhile
        assert meanwhile[False, "app"] > 100, meanwhile
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


def test_the_daemon_is_deleted(cluster, product, shop):
    """Killed without grace: no key, no program, no listener stays; requests go to the app; then the session resumes."""
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3) as session,
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca, pace=0.05) as running,
    ):
        running.goes_on()
        daemon = product.daemon()
        words = ["delete", "pod", daemon.name, "-n", products.NAMESPACE, "--grace-period=0", "--force"]
        replace_daemon(cluster, product, lambda: cluster.kubectl(*words))
        session.wait_active(pods=3, within=40)
        for pod in pods:
            until(lambda pod=pod: shop.get(pod, "/", shops.DEV).served_by == "handler", within=10, what="the handler")
    lost = sum(running.failures().values())
    # A SIGKILL ends what is in flight; everything else is served.
    assert lost <= 2 * len(pods), running.failures()


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
