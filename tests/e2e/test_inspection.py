"""Inspection policies on the real cluster: who may write them, what clients get, what their statuses say, no trace."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import yaml

from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.harness.waiting import until

GROUP = "sidestep.dev"
INSPECTOR = "bob"
NAMES = {"InspectionPolicy": "inspectionpolicy", "ClusterInspectionPolicy": "clusterinspectionpolicy"}
NO_ADMIN = {"name": "no-admin", "action": "Block", "match": {"paths": [{"match": "Prefix", "value": "/admin"}]}}


def policy(kind="InspectionPolicy", *rules, name="orders", **spec):
    """A policy for the pods of the shop."""
    if kind == "ClusterInspectionPolicy":
        spec = {"namespaceSelector": {}, **spec}
    spec = {"podSelector": {"matchLabels": shops.LABELS}, "rules": list(rules) or [NO_ADMIN], **spec}
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module", autouse=True)
def inspection(cluster, product, shop):
    """The resources, and bob, who may write policies in the shop."""
    with product.inspection():
        words = ["--clusterrole=sidestep-inspector", f"--user={INSPECTOR}", "-n", shop.namespace]
        cluster.kubectl("create", "rolebinding", "inspector", *words)
        try:
            yield
        finally:
            cluster.kubectl("delete", "rolebinding", "inspector", "-n", shop.namespace)


@pytest.fixture(autouse=True)
def left_alone(cluster, product, shop):
    """After each test no policy is left, and nothing of ours in the pods."""
    yield
    for kind in NAMES.values():
        cluster.kubectl("delete", kind, "--all", *(["-A"] if kind.startswith("inspection") else []))
    product.quiet(shop.pods())


def status(cluster, kind="InspectionPolicy", name="orders", namespace="shop"):
    where = {} if kind == "ClusterInspectionPolicy" else {"namespace": namespace}
    return cluster.get(NAMES[kind], name, **where).get("status", {})


def reasons(cluster, **which):
    return {each["type"]: each["reason"] for each in status(cluster, **which).get("conditions", ())}


def wait_for(cluster, *, within=40.0, kind="InspectionPolicy", name="orders", **wanted):
    """Wait for reasons of conditions."""

    def there():
        return wanted.items() <= reasons(cluster, kind=kind, name=name).items()

    until(there, within=within, every=0.5, what=lambda: f"{wanted}, not {status(cluster, kind, name)}")


def test_a_policy_blocks_and_its_deletion_leaves_no_trace(cluster, product, shop):
    pods = shop.pods()
    cluster.apply(policy(mode="Enforce", failurePolicy="Fail"), namespace=shop.namespace)
    wait_for(cluster, Accepted="Accepted", Programmed="Programmed", Conflicted="NoConflict")
    found = status(cluster)
    assert found["programmedPods"] == len(pods)
    assert found["observedGeneration"] == 1
    [entry] = found["nodes"].values()
    assert entry["daemon"]["pod"] == product.daemon().name
    [there] = entry["inspected"]
    assert there["workload"].startswith(f"{shop.namespace}/deployment/")
    assert {shops.TLS_PORT, shops.PLAIN_PORT} <= set(there["ports"])
    assert entry["inspectedMore"] == 0
    for pod in pods:
        for port in (shops.TLS_PORT, shops.PLAIN_PORT):
            refused = shop.get(pod, "/admin/users", port=port)
            assert refused.status == 403, refused
            assert re.search(r"sidestep: policy shop/orders, id \w+", refused.text)
            assert shop.get(pod, "/a/../admin", port=port, options=("--path-as-is",)).status == 403
            assert shop.get(pod, "/", port=port).served_by == "app"
    columns = cluster.kubectl("get", "ipol", "-n", shop.namespace)
    assert re.search(rf"orders\s+Enforce\s+Fail\s+True\s+True\s+{len(pods)}\s+False", columns), columns
    cluster.kubectl("delete", "ipol", "orders", "-n", shop.namespace)
    product.quiet(pods)
    assert shop.get(pods[0], "/admin").served_by == "app"


def test_a_policy_that_is_edited_into_an_invalid_one_keeps_its_last_good_version(cluster, product, shop):
    pod = shop.pods()[0]
    cluster.apply(policy(mode="Enforce"), namespace=shop.namespace)
    wait_for(cluster, Accepted="Accepted", Programmed="Programmed")
    bad = {"name": "bad", "action": "Block", "patterns": [{"regex": "[ab]*a[ab]{400}c"}]}
    cluster.apply(policy("InspectionPolicy", bad, mode="Enforce"), namespace=shop.namespace)
    wait_for(cluster, Accepted="Invalid", Programmed="NotAccepted")
    found = status(cluster)
    assert found["observedGeneration"] == 2
    [accepted] = [each for each in found["conditions"] if each["type"] == "Accepted"]
    assert "microseconds per KiB" in accepted["message"]
    assert shop.get(pod, "/admin").status == 403
    assert shop.get(pod, "/").served_by == "app"
    cluster.apply(policy(mode="Detect"), namespace=shop.namespace)
    wait_for(cluster, Accepted="Accepted", Programmed="Programmed")
    until(lambda: shop.get(pod, "/admin").served_by == "app", within=10, every=0.5, what="the app")


def test_a_baseline_of_the_cluster_reaches_the_namespaces_that_it_selects(cluster, product, shop):
    pod = shop.pods()[0]
    baseline = policy("ClusterInspectionPolicy", name="base", mode="Enforce")
    baseline["spec"]["namespaceSelector"] = {"matchLabels": {"tier": "gold"}}
    cluster.apply(baseline)
    cluster.apply(policy(mode="Detect"), namespace=shop.namespace)
    which = {"kind": "ClusterInspectionPolicy", "name": "base"}
    wait_for(cluster, **which, Accepted="Accepted", Programmed="NoPods")
    wait_for(cluster, Programmed="Programmed")
    assert shop.get(pod, "/admin").served_by == "app"
    cluster.kubectl("label", "namespace", shop.namespace, "tier=gold")
    try:
        wait_for(cluster, **which, Programmed="Programmed")
        assert shop.get(pod, "/admin").status == 403, "a namespace cannot weaken it"
    finally:
        cluster.kubectl("label", "namespace", shop.namespace, "tier-")
    wait_for(cluster, **which, Programmed="NoPods")
    assert shop.get(pod, "/admin").served_by == "app"
    ended = partial(endings, cluster, shop, pod, "ClusterInspectionPolicy base")
    until(ended, within=20, every=0.5, what="the Event that the namespace left the baseline")


def endings(cluster, shop, pod, policy):
    """The Events on a pod of the end of its inspection by this policy."""
    events = cluster.events(shop.namespace, about=pod.name)
    messages = [each["message"] for each in events if each["reason"] == "InspectionEnded"]
    return [message for message in messages if message.startswith(f"{policy} selects it no longer")]


def test_a_pod_that_is_relabelled_out_of_a_selector_gets_an_event(cluster, product, shop):
    pod, other = shop.pods()[:2]
    for each in (pod, other):
        cluster.kubectl("label", "pod", each.name, "tier=gold", "-n", shop.namespace)
    try:
        chosen = policy(mode="Enforce", podSelector={"matchLabels": {"tier": "gold"}})
        cluster.apply(chosen, namespace=shop.namespace)
        until(lambda: status(cluster).get("programmedPods") == 2, within=40, every=0.5, what=lambda: status(cluster))
        cluster.kubectl("label", "pod", pod.name, "tier-", "-n", shop.namespace)
        ended = partial(endings, cluster, shop, pod, "InspectionPolicy shop/orders")
        until(ended, within=20, every=0.5, what="the Event")
        assert shop.get(pod, "/admin").served_by == "app"
        assert shop.get(other, "/admin").status == 403
    finally:
        for each in (pod, other):
            cluster.kubectl_result("label", "pod", each.name, "tier-", "-n", shop.namespace)


def test_an_intercept_of_the_whole_port_is_refused_where_a_policy_enforces(cluster, product, shop):
    cluster.apply(policy(mode="Enforce"), namespace=shop.namespace)
    wait_for(cluster, Programmed="Programmed")
    refused = product.run("intercept", "orders", "-n", shop.namespace, "--port", "9:https", within=40)
    assert refused.code == 1, refused
    assert "policy shop/orders" in refused.error
    assert shop.get(shop.pods()[0], "/admin").status == 403


CARD = "4111 1111 1111 1111"
PLANTED = ("S3CRETquery", "S3CRETbearer", "S3CRETcookie", "S3CRETkey", "S3CREText", CARD)
LOGS = "/var/log/sidestep"


def shown(cluster, product, shop):
    """Everything that the product writes or shows of a pod's traffic: where it stands, and its text."""
    kinds = ("events", *(f"{each}.{GROUP}" for each in ("inspectionpolicies", "intercepts", "captures")))
    texts = {kind: cluster.kubectl("get", kind, "-A", "-o", "yaml") for kind in kinds}
    texts["records"] = cluster.node.run("sh", "-c", f"cat {LOGS}/* 2>/dev/null || true")
    texts["metrics"] = cluster.curl(f"http://{product.daemon().ip}:9464/metrics").text
    texts["status"] = product.run("status", "-n", shop.namespace).stdout
    return texts | {"log of the daemon": product.log(lines=-1)}


def test_planted_secrets_are_in_nothing_that_is_written_or_shown(cluster, product, shop):
    """Rules find them, requests are logged and blocked: records and Events tell of that, and not what was found."""
    rules = (
        NO_ADMIN,
        {"name": "card", "action": "Alert", "patterns": [{"builtin": "CardNumber"}]},
        {"name": "text", "action": "Block", "patterns": [{"regex": "S3CRE[T]ext"}]},
        {"name": "key", "action": "Alert", "match": {"headers": [{"name": "x-api-key", "match": "Present"}]}},
    )
    redact = {"headers": ["x-api-key"]}
    chosen = policy("InspectionPolicy", *rules, mode="Enforce", log={"samplePercent": 100}, redact=redact)
    cluster.apply(chosen, namespace=shop.namespace)
    wait_for(cluster, Accepted="Accepted", Programmed="Programmed")
    query, bearer, cookie, key, text, _ = PLANTED
    fields = (f"Authorization: Bearer {bearer}", f"Cookie: a={cookie}", f"X-Api-Key: {key}")
    for pod in shop.pods():
        until(lambda pod=pod: shop.get(pod, "/admin").status == 403, within=20, every=0.2, what="the policy")
        for version in ("--http1.1", "--http2"):
            assert shop.get(pod, f"/planted?token={query}", *fields, options=(version,)).served_by == "app"
            assert shop.get(pod, f"/admin?token={query}", *fields, options=(version,)).status == 403
            shop.get(pod, "/planted", *fields, options=(version, "--data", f"card={CARD}"))
            assert shop.get(pod, "/planted", options=(version, "--data", f"say={text}")).status == 403
            assert shop.get(pod, f"/{text}", *fields, options=(version,)).status == 403

    def told():
        """The rules of which each pod's records tell."""
        lines = cluster.node.run("sh", "-c", f"cat {LOGS}/eve.json* 2>/dev/null || true").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return {(each["kubernetes"].get("pod"), each["sidestep"].get("rule")) for each in found if "sidestep" in each}

    names = {(pod.name, each["name"]) for pod in shop.pods() for each in rules}
    until(lambda: names <= told(), within=30, every=0.5, what=lambda: f"records of {names - told()}")
    alerted = lambda: [each for each in cluster.events(shop.namespace) if each["reason"] == "InspectionAlert"]  # noqa: E731
    until(alerted, within=60, every=0.5, what=lambda: f"Events of alerts\n{cluster.describe(shop.namespace)}")
    texts = shown(cluster, product, shop)
    assert "/planted?token=[redacted]" in texts["records"]
    assert texts["metrics"]
    assert texts["log of the daemon"]
    for where, said in texts.items():
        for secret in PLANTED:
            assert secret not in said, where


def test_a_pod_in_the_nodes_network_is_left_alone_and_the_status_says_so(cluster, product, shop):
    spec = shops.pod_spec(hostNetwork=True)
    spec["containers"][0].pop("readinessProbe")
    metadata = {"name": "host", "labels": {"app": "host"}, "annotations": {shops.CERTIFICATE: "orders-tls"}}
    chosen = policy(mode="Enforce", failurePolicy="Fail", podSelector={"matchLabels": {"app": "host"}})
    try:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        cluster.apply(pod, namespace=shop.namespace)
        [running] = cluster.wait_pods(shop.namespace, "app=host", 1)
        cluster.apply(chosen, namespace=shop.namespace)
        until(
            lambda: "host's network" in json.dumps(status(cluster)),
            within=40,
            every=0.5,
            what=lambda: f"the reason, in {status(cluster)}",
        )
        assert reasons(cluster)["Accepted"] == "Accepted"
        assert not status(cluster).get("programmedPods")
        assert shop.get(running, "/admin").served_by == "app"
    finally:
        cluster.kubectl("delete", "pod", "host", "--wait=false", "-n", shop.namespace)


def test_who_may_what(cluster, product, shop):
    """Policies are written by who has sidestep-inspector; developers may not, and nobody but the daemons a status."""

    def may(user, verb, resource, *more):
        answer = cluster.kubectl_result("auth", "can-i", verb, resource, *more, "--as", user)
        return answer.stdout.strip() == "yes"

    here, plural = ("-n", shop.namespace), f"inspectionpolicies.{GROUP}"
    assert may(INSPECTOR, "create", plural, *here)
    assert not may(INSPECTOR, "create", plural, "-n", "default")
    assert not may(INSPECTOR, "create", f"clusterinspectionpolicies.{GROUP}")
    for user in ("ada", INSPECTOR):
        assert not may(user, "patch", plural, "--subresource=status", *here)
        assert not may(user, "create", f"clusterinspectionpolicies.{GROUP}")
    assert not may("ada", "create", plural, *here)
    assert not may("ada", "get", plural, *here)
    refused = cluster.kubectl_result("create", "-f", "-", "-n", shop.namespace, user="ada", stdin=json.dumps(policy()))
    assert "forbidden" in refused.stderr
    done = cluster.kubectl_result("create", "-f", "-", "-n", shop.namespace, user=INSPECTOR, stdin=json.dumps(policy()))
    assert done.code == 0, done.stderr


@pytest.mark.parametrize(
    "spec",
    [
        {"mode": "Strict"},
        {"rules": []},
        {"rules": [{"name": "a", "action": "Block", "except": {}}]},
        {"rules": [{"name": "a", "action": "Block", "pattern": []}]},
    ],
)
def test_the_api_server_refuses_what_it_can_judge(cluster, product, shop, spec):
    document = policy()
    document["spec"] |= spec
    refused = cluster.kubectl_result("create", "-f", "-", "-n", shop.namespace, stdin=json.dumps(document))
    assert refused.code != 0, refused


def test_without_the_definitions_nothing_is_inspected(cluster, product, shop):
    """Deleting deploy/inspection.yaml takes every policy away; applied again, it is picked up."""
    pod = shop.pods()[0]
    cluster.apply(policy(mode="Enforce"), namespace=shop.namespace)
    wait_for(cluster, Programmed="Programmed")
    text = yaml.safe_dump_all(products.documents_for(cluster.release, products.INSPECTION))
    cluster.kubectl("delete", "-f", "-", "--timeout=60s", stdin=text, within=70)
    try:
        product.quiet(shop.pods())
        assert shop.get(pod, "/admin").served_by == "app"
        assert "inspectionpolicies cannot be watched" not in product.log()
    finally:
        cluster.kubectl("apply", "-f", "-", stdin=text)
        for kind in ("inspectionpolicies", "clusterinspectionpolicies"):
            words = ["--for=condition=Established", f"crd/{kind}.{GROUP}", "--timeout=120s"]
            cluster.kubectl("wait", *words, within=35)
    cluster.apply(policy(mode="Enforce"), namespace=shop.namespace)
    wait_for(cluster, Programmed="Programmed", within=90)
    assert shop.get(pod, "/admin").status == 403


def test_a_pod_that_asks_for_it_is_not_ready_before_it_is_inspected(cluster, product, shop):
    """Who may write the condition is told; with the right, the pod is ready and inspected from its first moment on."""
    spec = shops.pod_spec(readinessGates=[{"conditionType": "sidestep.dev/inspected"}])
    metadata = {"name": "gated", "labels": {"app": "gated"}, "annotations": {shops.CERTIFICATE: "orders-tls"}}
    gated = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    chosen = policy(mode="Enforce", failurePolicy="Fail", podSelector={"matchLabels": {"app": "gated"}})
    cluster.apply(chosen, namespace=shop.namespace)
    cluster.apply(gated, namespace=shop.namespace)
    words = ["--clusterrole=sidestep-readiness", f"--serviceaccount={products.NAMESPACE}:sidestep-node"]
    try:

        def told():
            events = cluster.events(shop.namespace, about="gated")
            return [each for each in events if each["reason"] == "ReadinessForbidden"]

        until(told, within=60, every=0.5, what=lambda: f"the Event\n{cluster.describe(shop.namespace)}")
        assert " ".join(words) in told()[0]["message"]
        [waiting] = cluster.pods(shop.namespace, "app=gated")
        assert not waiting.ready
        cluster.kubectl("create", "rolebinding", "sidestep-readiness", *words, "-n", shop.namespace)
        [ready] = cluster.wait_pods(shop.namespace, "app=gated", 1)
        assert shop.get(ready, "/admin").status == 403
        assert shop.get(ready, "/").served_by == "app"
    finally:
        cluster.kubectl_result("delete", "rolebinding", "sidestep-readiness", "-n", shop.namespace)
        cluster.kubectl("delete", "pod", "gated", "--wait=false", "-n", shop.namespace)
