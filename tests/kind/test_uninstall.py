"""`kubectl delete -f deploy/daemonset.yaml` leaves nothing on either node; `deploy/kind.sh` installs it again."""

from __future__ import annotations

from tests.e2e import shop as shops
from tests.harness import kernel
from tests.harness.waiting import until
from tests.kind.test_nodes import FILTER, answers


def seen(cluster, product, pods):
    """What of the pods and of the machine must be as before."""
    return {
        "steering": [product.steering(pod) for pod in pods],
        "listeners": [product.listeners(pod) for pod in pods],
        "processes": [cluster.processes(pod) for pod in pods],
        "pins": kernel.pins(),
    }


def test_nothing_is_left(cluster, product, shop):
    """Deleted in the middle of an intercept; then the script, run again, brings it back into the same cluster."""
    pods = shop.pods()
    product.quiet(pods)
    before = seen(cluster, product, pods)
    with (
        product.handler() as handler,
        product.intercept("orders", *FILTER, port=f"{handler}:https", pods=2) as session,
    ):
        during = [product.steering(pod) for pod in pods]
        assert all(one.links for one in during)
        product.uninstall()
        session.process.wait(40)
    assert not [left for one in during for left in one.left()]
    until(
        lambda: seen(cluster, product, pods) == before,
        within=30,
        every=0.5,
        what=lambda: f"{seen(cluster, product, pods)} to be {before}",
    )
    for pod in pods:
        assert answers(shop, pod) == "app"
        assert product.listeners(pod) == shops.LISTENERS
    for kind in ("crd", "clusterrole", "clusterrolebinding", "namespace", "priorityclass"):
        names = [one["metadata"]["name"] for one in cluster.get(kind)]
        assert not [name for name in names if "sidestep" in name], kind
    cluster.install()
    product.grant("ada", shop.namespace)
    with product.handler() as handler, product.intercept("orders", *FILTER, port=f"{handler}:https", pods=2):
        assert [answers(shop, pod) for pod in pods] == ["handler"] * 2
