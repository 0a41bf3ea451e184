"""Suricata beside the proxies of a Deployment on the real cluster: alerts, other rules, a rollout, no trace."""

from __future__ import annotations

import json

import pytest

from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e.engines import PATIENCE, Traces, metrics, records, suricatas
from tests.e2e.load import load, restart_under_load
from tests.harness.waiting import until

MAP = "ids-rules"
RIGHT = ["--clusterrole=sidestep-policy-config", f"--serviceaccount={products.NAMESPACE}:sidestep-node"]
EVIL = 'alert http any any -> any any (msg:"evil"; http.uri; content:"/evil"; sid:1;)'
WORSE = 'alert http any any -> any any (msg:"worse"; http.uri; content:"/worse"; sid:2;)'


def rules(text):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": MAP}, "data": {"local.rules": text}}


def policy():
    ids = {"rulesFrom": {"configMapRef": {"name": MAP, "key": "local.rules"}}}
    spec = {"podSelector": {"matchLabels": shops.LABELS}, "ids": ids}
    return {
        "apiVersion": "sidestep.dev/v1alpha1", "kind": "InspectionPolicy", "metadata": {"name": "orders"}, "spec": spec,
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def inspection(cluster, product, shop):
    with product.inspection():
        yield


@pytest.fixture
def fed(cluster, product, shop):
    """The shop with a policy that has an IDS, once one runs beside each proxy; nothing is left of it afterwards."""
    before = Traces(product)
    cluster.apply(rules(EVIL), policy(), namespace=shop.namespace)
    try:
        until(lambda: "sidestep-policy-config" in told(cluster, shop), within=PATIENCE, every=0.5, what="the advice")
        assert " ".join(RIGHT) in told(cluster, shop)
        assert suricatas(product) == []
        cluster.kubectl("create", "rolebinding", "sidestep-policy-config", *RIGHT, "-n", shop.namespace)
        wait_engines(cluster, product, len(shop.pods()))
        before.note()
        yield
        before.note()
    finally:
        cluster.kubectl_result("delete", "ipol", "orders", "-n", shop.namespace, "--ignore-not-found")
        cluster.kubectl_result("delete", "rolebinding", "sidestep-policy-config", "-n", shop.namespace)
        cluster.kubectl_result("delete", "configmap", MAP, "-n", shop.namespace, "--ignore-not-found")
        product.quiet(shop.pods())
        before.wait_gone()


def told(cluster, shop):
    """What conditions and nodes say in the status of the policy."""
    return json.dumps(cluster.get("inspectionpolicy", "orders", namespace=shop.namespace).get("status", {}))


def wait_engines(cluster, product, count):
    """Wait until this many Suricatas are fed."""

    def fed():
        ups = metrics(cluster, product, "sidestep_engine_up")
        return len(ups) == sum(ups.values()) == count and len(suricatas(product)) == count

    until(fed, within=PATIENCE, every=1, what=lambda: f"{count} engines\n{product.log()}")


def alerts(cluster, product):
    """The alerts of Suricata in the node's log: (pod, sid)."""
    found = [each for each in records(product) if "suricata" in json.dumps(each)]
    assert {each["kubernetes"]["workload"] for each in found} <= {"deployment/orders"}
    return [(each["kubernetes"]["pod"], each["alert"]["signature_id"]) for each in found]


def attack(cluster, product, shop, path, sid):
    """Send each pod a request; every one of them is reported with the pod's name."""
    pods, before = shop.pods(), len(alerts(cluster, product))
    for pod in pods:
        assert shop.get(pod, path).served_by == "app"
    expected = {(pod.name, sid) for pod in pods}
    found = lambda: expected <= set(alerts(cluster, product)[before:])  # noqa: E731
    until(found, within=60, every=0.5, what=lambda: f"alerts {expected}, not {alerts(cluster, product)}")


@pytest.mark.timeout(400, func_only=True)  # three Suricatas are started three times, and ConfigMaps read every 15 s
def test_alerts_and_other_rules(cluster, product, shop, fed):
    attack(cluster, product, shop, "/evil", 1)
    assert set(metrics(cluster, product, "sidestep_engine_rules").values()) == {1}
    for size in metrics(cluster, product, "sidestep_engine_memory_bytes").values():
        assert 1 << 20 < size < 64 << 20

    before = set(suricatas(product))
    cluster.apply(rules(f"{EVIL}\n{WORSE}"), namespace=shop.namespace)
    until(
        lambda: set(metrics(cluster, product, "sidestep_engine_rules").values()) == {2},
        within=PATIENCE,
        every=1,
        what=lambda: f"the other rules\n{product.log()}",
    )
    wait_engines(cluster, product, len(shop.pods()))
    assert before.isdisjoint(suricatas(product))
    attack(cluster, product, shop, "/worse", 2)

    cluster.apply(rules("alert http any any -> any any (http.nonsense; sid:1;)"), namespace=shop.namespace)
    until(lambda: "http.nonsense" in told(cluster, shop), within=PATIENCE, every=0.5, what=lambda: told(cluster, shop))
    attack(cluster, product, shop, "/worse/still", 2)


@pytest.mark.timeout(400, func_only=True)  # six pods come and go, beside load
def test_a_rollout_restart_under_load(cluster, product, shop, fed):
    """Clients of pods that go away meet that, and nothing else; each new pod has a Suricata of its own."""
    first = set(suricatas(product))
    new = restart_under_load(cluster, shop)
    with load(cluster.node.laptop, [pod.ip for pod in new], shop.ca, pace=0.05) as running:
        wait_engines(cluster, product, len(new))
        running.goes_on()
    assert not running.failures()
    assert first.isdisjoint(suricatas(product))
    attack(cluster, product, shop, "/evil", 1)
