"""What a cluster by kind has and the node of tests/e2e has not: kube-proxy, two nodes, cgroups that systemd makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e.load import load
from tests.harness.waiting import until
from tests.kind.cluster import CONTROL_PLANE, NODES, WORKER

FILTER = ("--http-header", "x-dev=ada")
SOON = 5.0
"""Seconds that a change may take."""


def answers(shop, pod):
    """Who answers a request with the developer's header; it is answered in any case."""
    answer = shop.get(pod, "/", shops.DEV)
    assert answer.status == 200, answer.errors
    return answer.served_by


def daemons(cluster):
    """The daemon of each node."""
    return {cluster.node_of(pod): pod for pod in cluster.wait_pods(products.NAMESPACE, products.DAEMON, 2, within=90)}


def test_two_nodes(cluster, product, shop):
    """Both ready, a daemon and a pod of the app on each."""
    assert all(cluster.ready(node) for node in NODES)
    assert set(daemons(cluster)) == set(NODES)
    assert [len(pods) for pods in cluster.by_node(shop.pods()).values()] == [1, 1]


@pytest.mark.parametrize("node", NODES)
def test_kube_proxy(cluster, shop, node):
    """The app's Service is rules of iptables on every node."""
    rules = cluster.on(node, "iptables-nft-save", "-t", "nat")
    assert f"{shop.namespace}/orders:https cluster IP" in rules
    assert rules.count("DNAT --to-destination") + rules.count("-j DNAT") > 0


@pytest.mark.parametrize("node", NODES)
def test_systemd_makes_the_cgroups(cluster, product, shop, node):
    """The daemon finds pods whose cgroups are slices of systemd, named with underscores."""
    pods = [*cluster.by_node(shop.pods())[node], daemons(cluster)[node]]
    for pod in pods:
        text = Path(f"/proc/{cluster.processes(pod)[0]}/cgroup").read_text()
        assert f"-pod{pod.uid.replace('-', '_')}.slice/" in text, text


@pytest.mark.parametrize("node", NODES)
def test_an_intercept_across_nodes_through_the_service(cluster, product, shop, clients, node):
    """A pod asks the Service: marked requests reach the laptop whichever node they land on, others both pods."""
    names = {pod.name for pod in shop.pods()}
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=2),
    ):
        assert clients.ask(node, 20, shops.DEV) == {(200, "handler", "")}
        assert clients.ask(node, 20) == {(200, "app", name) for name in names}
    for pod in shop.pods():
        until(lambda pod=pod: answers(shop, pod) == "app", within=SOON, what="the app to answer again")
    assert clients.ask(node, 20, shops.DEV) == {(200, "app", name) for name in names}


def test_a_session_takes_requests_from_both_nodes(cluster, product, shop):
    """Each pod, asked by its own address."""
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=2),
    ):
        for pod in shop.pods():
            assert answers(shop, pod) == "handler"
            assert shop.get(pod, "/").headers["x-pod"] == [pod.name]


def test_a_node_annotation_concerns_one_node(cluster, product, shop):
    """The worker is left alone and taken up again; the other node does not notice."""
    (there,), (here,) = cluster.by_node(shop.pods())[WORKER], cluster.by_node(shop.pods())[CONTROL_PLANE]
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=2),
    ):
        cluster.kubectl("annotate", "node", WORKER, "sidestep.dev/enabled=false")
        try:
            until(lambda: answers(shop, there) == "app", within=SOON, what="the worker to be left alone")
            assert answers(shop, here) == "handler"
        finally:
            cluster.kubectl("annotate", "node", WORKER, "sidestep.dev/enabled-")
        until(lambda: answers(shop, there) == "handler", within=SOON, what="the worker to be served again")
        assert answers(shop, here) == "handler"


def test_a_rollout_of_the_daemons(cluster, product, shop):
    """`kubectl rollout restart` replaces both during a session, and no request fails."""
    pods = shop.pods()
    before = {pod.uid for pod in daemons(cluster).values()}
    with (
        product.handler() as handler,
        product.intercept("deploy/orders", *FILTER, port=f"{handler}:https", pods=2) as session,
        load(cluster.node.laptop, [pod.ip for pod in pods], shop.ca, pace=0.05) as running,
    ):
        running.goes_on()
        cluster.kubectl("rollout", "restart", "daemonset/sidestep-node", "-n", products.NAMESPACE)
        cluster.wait_rollout("daemonset/sidestep-node", products.NAMESPACE, within=120)
        session.wait_active(pods=2, within=40)
        for pod in pods:
            until(lambda pod=pod: answers(shop, pod) == "handler", within=10, what="the handler")
    assert not before & {pod.uid for pod in daemons(cluster).values()}
    assert not running.failures()
    assert (False, "handler") not in running.mark()
