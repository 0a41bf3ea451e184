"""A policy with both engines on a Deployment of three replicas: verdicts, alerts, status, a rollout, and no trace."""

from __future__ import annotations

import json
import re

import pytest

from tests.e2e import test_ids as ids
from tests.e2e.engines import PATIENCE, Traces, inspectors, metrics, records, suricatas
from tests.e2e.load import load, restart_under_load
from tests.harness.waiting import until

ATTACK = "/items?id=1%27%20UNION%20SELECT%20password%20FROM%20users--"
SQLI = 942100
EVIL = 1
"""The signature of `test_ids.EVIL`."""
NODE = "sidestep-node"
REFUSED = re.compile(r"sidestep: policy shop/orders, id (\S+)")


def policy(mode="Enforce"):
    """Both engines. There is time for a verdict, however busy the machine is, and for three inspectors to be made."""
    document = ids.policy()
    document["spec"] |= {"mode": mode, "waf": {"limits": {"verdictTimeout": "5s"}}}
    return document


@pytest.fixture(scope="module", autouse=True)
def inspection(cluster, product, shop):
    with product.inspection():
        yield


@pytest.fixture
def traces(cluster, product, shop):
    """What is on the node; whatever a test leaves of the policy is deleted, and nothing is left of its engines."""
    product.quiet(shop.pods())
    before = Traces(product)
    cluster.kubectl("create", "rolebinding", "sidestep-policy-config", *ids.RIGHT, "-n", shop.namespace)
    cluster.apply(ids.rules(ids.EVIL), namespace=shop.namespace)
    try:
        yield before
    finally:
        cluster.kubectl_result("delete", "ipol", "orders", "-n", shop.namespace, "--ignore-not-found")
        cluster.kubectl_result("delete", "rolebinding", "sidestep-policy-config", "-n", shop.namespace)
        cluster.kubectl_result("delete", "configmap", ids.MAP, "-n", shop.namespace, "--ignore-not-found")
        product.quiet(shop.pods())
        before.wait_gone()


def wait_engines(cluster, product, count):
    """Wait until both engines run beside this many proxies: as the daemon says, and as processes."""

    def seen():
        ups = [metrics(cluster, product, "sidestep_engine_up", kind) for kind in ("inspector", "suricata")]
        said = all(len(each) == sum(each.values()) == count for each in ups)
        # The inspectors' zygote is one more.
        return said and len(suricatas(product)) == count and len(inspectors(product)) == count + 1

    until(seen, within=PATIENCE, every=1, what=lambda: f"{count} of each engine\n{product.log()}")


def wait_mode(cluster, shop, pods, mode):
    """Wait until attacks get what the mode has for them."""
    wanted = 403 if mode == "Enforce" else 200
    for pod in pods:
        until(lambda pod=pod: shop.get(pod, ATTACK).status == wanted, within=30, every=0.5, what=f"{wanted}")


def alerts(product):
    """The alerts in the node's log."""
    return [each for each in records(product) if each["event_type"] == "alert"]


def told(product, shop, pods, action):
    """Attack each pod, once for each engine, and wait for the records: of each pod, by both."""
    before = len(alerts(product))
    names = {}
    for pod in pods:
        assert shop.get(pod, "/evil").served_by == "app"
        answer = shop.get(pod, ATTACK)
        if action == "Block":
            assert answer.status == 403, answer
            names[pod.name] = REFUSED.search(answer.text)[1]
        else:
            assert answer.served_by == "app", answer

    def is_of_firewall(each):
        """Whether it is about one of these requests; others before them may be told late."""
        decided = each["sidestep"]
        return decided["action"] == action and (not names or decided["id"] in names.values())

    def complete():
        found = alerts(product)[before:]
        suricata = [each for each in found if each["alert"]["signature_id"] == EVIL]
        waf = [each for each in found if each["alert"]["signature_id"] == SQLI and is_of_firewall(each)]
        by_both = [{each["kubernetes"]["pod"] for each in some} for some in (suricata, waf)]
        return (suricata, waf) if by_both == [{pod.name for pod in pods}] * 2 else None

    suricata, waf = until(complete, within=60, every=0.5, what=lambda: f"records of {pods}: {alerts(product)[before:]}")
    for each in (*suricata, *waf):
        assert each["kubernetes"]["workload"] == "deployment/orders"
        assert each["kubernetes"]["node"] == NODE
        assert each["sidestep"]["policy"] == "shop/orders"
    for each in waf:
        assert each["sidestep"]["rule"] == "WAF"
        assert not names or each["sidestep"]["id"] == names[each["kubernetes"]["pod"]]
    assert "UNION" not in json.dumps(alerts(product))


def engines(cluster, shop):
    """The engines in the status of the policy, by kind."""
    status = cluster.get("inspectionpolicy", "orders", namespace=shop.namespace).get("status", {})
    return {each["kind"]: each for node in status.get("nodes", {}).values() for each in node.get("engines", ())}


@pytest.mark.timeout(600, func_only=True)  # three of each engine are started, and a status is written once a minute
def test_verdicts_alerts_and_what_is_shown(cluster, product, shop, traces):
    pods = shop.pods()
    cluster.apply(policy(), namespace=shop.namespace)
    wait_engines(cluster, product, len(pods))
    traces.note()
    wait_mode(cluster, shop, pods, "Enforce")
    told(product, shop, pods, "Block")

    def written():
        found = engines(cluster, shop)
        running = {kind: (each["pods"], each["waiting"]) for kind, each in found.items()}
        all_run = running == {"inspector": (len(pods), 0), "suricata": (len(pods), 0)}
        return found if all_run and found["inspector"]["judged"] >= 2 * len(pods) else None

    found = until(written, within=PATIENCE, every=1, what=lambda: f"the engines: {engines(cluster, shop)}")
    assert found["suricata"]["rules"] == 1
    assert found["inspector"]["rules"] > 100
    assert "CRS" in found["inspector"]["version"]
    assert 1 << 20 < found["suricata"]["memory"] < 64 << 20
    assert 1 << 20 < found["inspector"]["memory"] < 96 << 20  # most of it is the zygote's
    shown = product.run("status", "-n", shop.namespace, user="admin").stdout
    for kind in ("inspector", "suricata"):
        row = rf"{kind} \S.*\S +shop/orders +{NODE} +{len(pods)} of {len(pods)} +{found[kind]['rules']} "
        assert re.search(row, shown), shown
    assert re.search(r"shop/orders +Enforce Ignore +True +True", shown), shown

    cluster.apply(policy("Detect"), namespace=shop.namespace)
    wait_mode(cluster, shop, pods, "Detect")
    told(product, shop, pods, "WouldBlock")


@pytest.mark.timeout(600, func_only=True)  # six pods come and go, beside load
def test_a_rollout_restart_and_the_end_of_the_policy_under_load(cluster, product, shop, traces):
    """Clients of pods that go away meet that, and nothing else; those of new pods meet nothing, also at the end."""
    cluster.apply(policy(), namespace=shop.namespace)
    wait_engines(cluster, product, len(shop.pods()))
    first = {*suricatas(product), *inspectors(product)}
    new = restart_under_load(cluster, shop)
    with load(cluster.node.laptop, [pod.ip for pod in new], shop.ca, pace=0.05) as running:
        wait_engines(cluster, product, len(new))
        running.goes_on()
        # The zygote lives on: pods that are rolled out have wanted inspectors all the time.
        assert len(first & {*suricatas(product), *inspectors(product)}) <= 1
        wait_mode(cluster, shop, new, "Enforce")
        told(product, shop, new, "Block")
        traces.note()
        cluster.kubectl("delete", "ipol", "orders", "-n", shop.namespace)
        until(lambda: not suricatas(product), within=PATIENCE, every=0.5, what=lambda: f"no Suricata: {traces.left()}")
        running.goes_on()
    assert not running.failures()
    for pod in new:
        assert shop.get(pod, ATTACK).served_by == "app"
    product.quiet(new)
    traces.wait_gone()
