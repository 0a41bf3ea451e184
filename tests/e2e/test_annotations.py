"""Annotations take effect within five seconds, without a rollout, wherever they stand; so does taking them away."""

from __future__ import annotations

import contextlib

import pytest

from tests.e2e import machine
from tests.e2e import shop as shops
from tests.e2e.load import ask, connected
from tests.harness.nginx import client_context
from tests.harness.waiting import until

FILTER = ("--http-header", "x-dev=ada")
SOON = 5.0
"""Seconds that a change may take."""


def answers(shop, pod):
    """Who answers a request with the developer's header."""
    return shop.get(pod, "/", shops.DEV).served_by


@contextlib.contextmanager
def annotated(cluster, kind, name, annotation, value, *, namespace=None):
    """An annotation for the length of a block."""
    where = ["-n", namespace] if namespace else []
    cluster.kubectl("annotate", "--overwrite", kind, name, f"{annotation}={value}", *where)
    try:
        yield
    finally:
        cluster.kubectl("annotate", kind, name, f"{annotation}-", *where)


@pytest.fixture
def session(cluster, product, shop):
    """An intercept of a TLS port for which nobody has configured a certificate any more."""
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3) as session,
    ):
        cluster.kubectl("annotate", "deploy", "orders", f"{shops.CERTIFICATE}-", "-n", shop.namespace)
        try:
            for pod in shop.pods():
                until(lambda pod=pod: answers(shop, pod) == "app", within=SOON, what="the wire without a certificate")
            yield session
        finally:
            cluster.kubectl("annotate", "--overwrite", "deploy", "orders", f"{shops.CERTIFICATE}=orders-tls", "-n",
                            shop.namespace)  # fmt: skip


def places(shop):
    """Where annotations are read from: kubectl's words, and the pods that are concerned."""
    pods = shop.pods()
    return {
        "workload": (("deploy", "orders"), shop.namespace, pods),
        "pod": (("pod", pods[0].name), shop.namespace, pods[:1]),
        "namespace": (("namespace", shop.namespace), None, pods),
        "node": (("node", machine.NODE_NAME), None, pods),
    }


@pytest.mark.parametrize("place", ["workload", "pod", "namespace", "node"])
def test_a_certificate_by_annotation(cluster, product, shop, session, place):
    """Setting it takes effect within five seconds, removing it too."""
    (kind, name), namespace, concerned = places(shop)[place]
    before = {(pod.uid, pod.restarts) for pod in shop.pods()}
    with annotated(cluster, kind, name, shops.CERTIFICATE, "orders-tls", namespace=namespace):
        for pod in concerned:
            until(lambda pod=pod: answers(shop, pod) == "handler", within=SOON, what=f"the {place}'s annotation")
        for pod in shop.pods():
            assert (answers(shop, pod) == "handler") == (pod in concerned)
    for pod in concerned:
        until(lambda pod=pod: answers(shop, pod) == "app", within=SOON, what="the end of the annotation")
    assert {(pod.uid, pod.restarts) for pod in shop.pods()} == before


def test_a_bad_annotation_is_an_event(cluster, product, shop):
    """Of the pods it concerns, naming annotation and value."""
    with annotated(cluster, "deploy", "orders", f"telepresence.io/upstream-probe-timeout.{shops.TLS_PORT}", "soon",
                   namespace=shop.namespace):  # fmt: skip
        name = shop.pods()[0].name

        def told():
            texts = [one["message"] for one in cluster.events(shop.namespace, about=name)]
            return any("upstream-probe-timeout.8443" in text and "soon" in text for text in texts)

        until(told, within=10, every=0.5, what=lambda: f"an Event\n{cluster.describe(shop.namespace)}")


def test_the_node_can_be_disabled(cluster, product, shop):
    """Nothing is steered on a node that says so; connections that run are finished; afterwards it goes on by itself."""
    context = client_context(shop.ca.read_bytes())
    pods = shop.pods()
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3),
        connected(cluster.node.laptop, pods[0].ip, context) as running,
    ):
        assert ask(running, marked=True) == "handler"
        with annotated(cluster, "node", machine.NODE_NAME, "sidestep.dev/enabled", "false"):
            for pod in pods:
                until(lambda pod=pod: answers(shop, pod) == "app", within=SOON, what="the node to be left alone")
            assert ask(running, marked=True) == "app"
            for pod in pods:
                until(lambda pod=pod: not product.steering(pod).links, within=40, what="the pod to be released")
        for pod in pods:
            until(lambda pod=pod: answers(shop, pod) == "handler", within=SOON, what="the node to be served again")


def test_namespaces_can_be_left_out(cluster, product, shop):
    with product.handler() as handler, product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3):
        pod = shop.pods()[0]
        with annotated(cluster, "node", machine.NODE_NAME, "sidestep.dev/namespaces", "nothing-*"):
            until(lambda: answers(shop, pod) == "app", within=SOON, what="the namespace to be left alone")
        until(lambda: answers(shop, pod) == "handler", within=SOON, what="the namespace to be served again")


def test_an_invalid_node_annotation(cluster, product, shop):
    """It is an Event of the Node; the last good value stays."""

    def told():
        texts = [one["message"] for one in cluster.events("default", about=machine.NODE_NAME)]
        return any("sidestep.dev/enabled" in text and "perhaps" in text for text in texts)

    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3),
        annotated(cluster, "node", machine.NODE_NAME, "sidestep.dev/enabled", "perhaps"),
    ):
        until(told, within=10, every=0.5, what="an Event of the Node")
        assert answers(shop, shop.pods()[0]) == "handler"
