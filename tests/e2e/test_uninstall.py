"""`kubectl delete -f deploy/daemonset.yaml` leaves nothing, in the cluster, on the node, in the pods."""

from __future__ import annotations

from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.harness import kernel
from tests.harness.waiting import until

FILTER = ("--http-header", "x-dev=ada")


def seen(cluster, product, pods):
    """What of a pod and of the node must be as before."""
    return {
        "steering": [product.steering(pod) for pod in pods],
        "listeners": [product.listeners(pod) for pod in pods],
        "processes": [cluster.processes(pod) for pod in pods],
        "devices": kernel.devices(cluster.node.network),
        "rules": kernel.rules(cluster.node.network),
        "pins": kernel.pins(),
    }


def test_nothing_is_left(cluster, product, shop):
    """Deleted in the middle of an intercept under way; installed again, it works again."""
    pods = shop.pods()
    product.quiet(pods)
    before = seen(cluster, product, pods)
    try:
        with (
            product.handler() as handler,
            product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3) as session,
        ):
            during = [product.steering(pod) for pod in pods]
            assert all(one.links for one in during)
            product.uninstall()
            session.process.wait(40)
        assert not [left for one in during for left in one.left()]
        until(
            lambda: {**seen(cluster, product, pods), "devices": before["devices"]} == before,
            within=20,
            every=0.5,
            what=lambda: f"{seen(cluster, product, pods)} to be {before}",
        )
        for pod in pods:
            assert shop.get(pod, "/", shops.DEV).served_by == "app"
        for kind in ("crd", "clusterrole", "clusterrolebinding", "namespace", "priorityclass"):
            names = [one["metadata"]["name"] for one in cluster.get(kind)]
            assert not [name for name in names if "sidestep" in name], kind
    finally:
        product.install(user="ada", namespace=shop.namespace)
    with product.handler() as handler, product.intercept("orders", *FILTER, port=f"{handler}:https", pods=3):
        assert shop.get(shop.pods()[0], "/", shops.DEV).served_by == "handler"
    assert cluster.get("daemonset", "sidestep-node", namespace=products.NAMESPACE)
