"""`sidestep policy except` in a cluster: the daemon of the pod's node is asked for the alert, by an Inspection."""

from __future__ import annotations

import os

import pytest
import yaml

from tests.harness import cluster
from tests.harness.cli import sidestep
from tests.harness.peers import Client
from tests.harness.waiting import until
from tests.system.test_cluster import PLAIN_PORT, WITHIN, scene

pytestmark = pytest.mark.timeout(600)  # others may have a daemon of a cluster first

__all__ = ["scene"]

GROUP = "/apis/sidestep.dev/v1alpha1"
SECRET = "S3CRETtoken"


@pytest.fixture
def inspected(scene):
    """The pod with a policy that refuses /admin, in force."""
    spec = {
        "podSelector": {},
        "mode": "Enforce",
        "rules": [
            {"name": "no-admin", "action": "Block", "match": {"paths": [{"match": "Prefix", "value": "/admin"}]}}
        ],
    }
    document = {"apiVersion": "sidestep.dev/v1alpha1", "kind": "InspectionPolicy", "spec": spec}
    document["metadata"] = {"name": "orders", "namespace": "shop", "generation": 1}
    scene.server.do(scene.server.api.put(GROUP, "inspectionpolicies", document))
    with cluster.cluster_node(scene.folder / "node", scene.server):

        def told():
            [policy] = scene.server.api.objects[GROUP, "inspectionpolicies"].values()
            entries = policy.get("status", {}).get("nodes", {}).values()
            return any(entry and entry.get("inspected") for entry in entries)

        until(told, within=WITHIN, what=lambda: f"the status: {scene.server.api.objects[GROUP, 'inspectionpolicies']}")
        yield scene


def refused(scene):
    """What a client is told that asks for /admin."""

    def look():
        with Client(scene.space.ip, PLAIN_PORT, netns=scene.space.client) as client:
            answer = client.get(f"/admin/users?token={SECRET}")
            return answer.body.decode().strip() if answer.status == 403 else ""

    return until(look, within=WITHIN, what="a refusal")


def excepted(scene, *words):
    config = scene.server.kubeconfig(scene.folder / "config")
    variables = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    return sidestep("policy", "except", *words, "--kubeconfig", config, environment=variables, within=120)


def test_the_alert_is_found_by_its_id_alone(inspected):
    text = refused(inspected)
    done = excepted(inspected, text)
    assert done.code == 0, done
    assert "shop/orders: no-admin" in done.stdout
    assert SECRET not in done.stdout
    [change] = yaml.safe_load_all(done.stdout)
    [rule] = change["spec"]["rules"]
    assert rule["except"] == {"methods": ["GET"], "paths": [{"match": "Equal", "value": "/admin/users"}]}
    until(
        lambda: not inspected.server.api.objects.get((GROUP, "inspections")), within=WITHIN, what="no Inspection left"
    )
    narrowed = excepted(inspected, text, "--workload", "pod/orders-1", "--by", "source", "-o", "json")
    assert narrowed.code == 0, narrowed
    assert '"sources"' in narrowed.stdout
    absent = excepted(inspected, "00000000-1")
    assert (absent.code, absent.stdout) == (1, "")
    assert "none of the last alerts of the workloads with policies in namespace shop" in absent.stderr


def test_who_may_not_inspect_and_who_has_no_such_workload_is_told_so(inspected):
    text = refused(inspected)
    other = excepted(inspected, text, "--workload", "deployment/payments")
    assert other.code == 1
    assert "no inspection policy applies to deployment/payments in namespace shop" in other.stderr
    inspected.server.api.forbid("create", "inspections")
    done = excepted(inspected, text)
    assert (done.code, done.stdout) == (1, "")
    assert "you may not create inspections.sidestep.dev in namespace shop" in done.stderr
    assert "--clusterrole=sidestep-auditor" in done.stderr
