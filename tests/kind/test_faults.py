"""One of two nodes: its daemon is killed, it stands still and is behind, it goes. The other one serves on."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from tests.e2e import product as products
from tests.harness.waiting import until
from tests.kind.cluster import CONTROL_PLANE, WORKER
from tests.kind.test_nodes import FILTER, SOON, answers, daemons


@pytest.fixture
def here(cluster, shop):
    """The app's pod on the control plane's node."""
    return cluster.by_node(shop.pods())[CONTROL_PLANE][0]


@pytest.fixture
def there(cluster, shop):
    """The app's pod on the worker."""
    return cluster.by_node(shop.pods())[WORKER][0]


def test_a_daemon_is_killed(cluster, product, shop, here, there):
    """SIGKILL: its programs are gone at once; requests to its node go to the app, others on to the laptop.

    Then all is as before.
    """
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=2) as session,
    ):
        daemon = daemons(cluster)[WORKER]
        programs = product.steering(there)
        assert programs.links
        os.kill(product.process(daemon), signal.SIGKILL)
        # The proxies die with process 1 of their container: a connection that one of them has got before is reset.
        until(lambda: not programs.left(), within=SOON, what="the worker's programs to be gone")
        assert answers(shop, there) == "app"
        assert answers(shop, here) == "handler"
        until(
            lambda: daemons(cluster)[WORKER].restarts > daemon.restarts,
            within=90,
            every=0.5,
            what=lambda: f"a new daemon\n{cluster.describe(products.NAMESPACE)}",
        )
        assert answers(shop, here) == "handler"
        session.wait_active(pods=2, within=40)
        until(lambda: answers(shop, there) == "handler", within=10, what="the handler")


def test_a_daemon_that_is_behind(cluster, product, shop, here, there):
    """The worker stands still while a session ends and another begins; it then forgets the one and serves the other.

    Meanwhile the other node serves both, and `sidestep status` answers.
    """
    with (
        product.handler(name="first") as first,
        product.handler(name="second") as second,
        product.intercept("deploy/orders", *FILTER, port=f"{first}:https", pods=2) as session,
        contextlib.ExitStack() as later,
    ):
        with cluster.frozen(WORKER):
            assert answers(shop, here) == "first"
            cluster.wait_ready(WORKER, False, within=60)
            assert answers(shop, here) == "first"
            assert product.run("status", "-n", shop.namespace, within=60).stdout
            session.stop()
            until(lambda: answers(shop, here) == "app", within=SOON, what="the end of the first session")
            other = ("--http-header", "x-dev=bob")
            running = later.enter_context(
                product.intercept("deploy/orders", *other, port=f"{second}:https", pods=1, within=40)
            )
            assert shop.get(here, "/", "x-dev: bob").served_by == "second"
        cluster.wait_ready(WORKER, True, within=60)
        running.wait_active(pods=2, within=60)
        assert shop.get(there, "/", "x-dev: bob").served_by == "second"
        until(lambda: answers(shop, there) == "app", within=SOON, what="the first session to be forgotten")


def test_a_node_that_goes(cluster, product, shop, here):
    """Its machine is stopped: the session goes on where it can, and ends as ever."""
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=2) as session,
    ):
        cluster.stop(WORKER)
        assert answers(shop, here) == "handler"
        cluster.wait_ready(WORKER, False, within=60)
        session.wait_active(pods=1, within=60)
        assert answers(shop, here) == "handler"
        assert product.run("status", "-n", shop.namespace, within=60).stdout
        session.stop()
        until(lambda: answers(shop, here) == "app", within=SOON, what="the end of the session")
