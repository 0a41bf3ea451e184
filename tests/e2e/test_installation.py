"""One `kubectl apply` installs, and gives the daemon no more rights than it says; current clusters accept it, too."""

from __future__ import annotations

import contextlib
import json
import re

import kubernetes_validate
import pytest
import yaml

from tests.debian.cache import REPOSITORY
from tests.e2e import components, releases
from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e.test_inspection import policy
from tests.harness.waiting import until

ACCOUNT = components.DAEMON_ACCOUNT


@pytest.mark.parametrize("version", releases.schemas())
def test_the_manifest_fits_current_kubernetes(version):
    """Against the schemas that Kubernetes publishes, unpatched, unknown fields refused."""
    for document in products.documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_walk_through_fits_current_kubernetes():
    text = (REPOSITORY / "docs" / "kind.md").read_text()
    written = re.findall(r"<<YAML\n(.*?)^YAML$", text, re.MULTILINE | re.DOTALL)
    assert written
    for document in yaml.safe_load_all(written[0].replace("\\$", "$")):
        kubernetes_validate.validate(document, releases.schemas()[-1], strict=True)


def test_one_apply_installs(cluster, product):
    daemon = product.daemon()
    assert daemon.restarts == 0
    text = yaml.safe_dump_all(products.documents_for(cluster.release))
    again = cluster.kubectl_result("apply", "-f", "-", "--dry-run=server", stdin=text)
    assert again.code == 0, again.stderr
    assert "created" not in again.stdout


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "pods"),
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "pods"),
        ("patch", "pods"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("create", "intercepts.sidestep.dev"),
        ("patch", "intercepts.sidestep.dev"),
        ("create", "wiretaps.sidestep.dev"),
        ("create", "inspectionpolicies.sidestep.dev"),
        ("patch", "inspectionpolicies.sidestep.dev"),
        ("patch", "clusterinspectionpolicies.sidestep.dev"),
        ("patch", "nodes"),
        ("create", "rolebindings"),
        ("impersonate", "users"),
    ],
)
def test_what_the_daemon_may_not(cluster, product, verb, resource):
    for where in (["-n", "default"], ["-n", "kube-system"], ["-n", products.NAMESPACE]):
        answer = cluster.kubectl_result("auth", "can-i", verb, resource, "--as", ACCOUNT, *where)
        assert answer.stdout.strip() == "no", f"{verb} {resource} {where}"


OF_OTHER_ROLES = {"secrets", "pods/status", "configmaps"}
"""Of sidestep-secrets, sidestep-readiness and sidestep-policy-config, which are bound namespace by namespace."""
POLICIES = ("inspectionpolicies", "clusterinspectionpolicies")
OBSERVING = ("captures", "inspections")
UNUSED_HERE = (*OBSERVING, "podaccesses")
RARELY = (
    {(verb, f"sidestep.dev/{kind}") for verb in ("get", "delete") for kind in ("intercepts", "wiretaps", *UNUSED_HERE)}
    | {("get", f"sidestep.dev/{kind}") for kind in POLICIES}
    | {("patch", f"sidestep.dev/{kind}/status") for kind in UNUSED_HERE}
)
"""Rights that no test can wait for: after a conflict of two daemons, and after ten minutes without renewal. Statuses of
captures and inspections are written where there are some (test_captures.py, test_inspections.py); no test here has a
PodAccess."""


def asked(cluster):
    """The daemons' requests so far: (verb, resource)."""
    found = set()
    for line in cluster.settings.audit.read_text().splitlines():
        request = json.loads(line)
        about = request.get("objectRef")
        if about is not None:
            resource = "/".join(
                part for part in (about.get("apiGroup"), about["resource"], about.get("subresource")) if part
            )
            found.add((request["verb"], resource))
    return found


def granted():
    """What the manifest lets the daemons do, in the same words."""
    [role] = [
        one
        for one in products.documents()
        if one["kind"] == "ClusterRole" and one["metadata"]["name"] == "sidestep-node"
    ]
    return {
        (verb, f"{group}/{resource}" if group else resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_daemon_has_the_rights_it_uses(cluster, product, shop):
    """By the API server's own audit log: it asks for nothing it may not, and may nothing it does not ask for."""
    timeout = f"telepresence.io/upstream-probe-timeout.{shops.TLS_PORT}"
    with contextlib.ExitStack() as sessions:
        sessions.enter_context(product.inspection())
        for kind in ("InspectionPolicy", "ClusterInspectionPolicy"):
            cluster.apply(policy(kind, name="rights"), namespace=shop.namespace)
        statuses = {("patch", f"sidestep.dev/{each}/status") for each in POLICIES}
        until(lambda: statuses <= asked(cluster), within=40, every=0.5, what="the statuses of policies")
        handler = sessions.enter_context(product.handler())
        for kind in ("intercept", "wiretap"):
            sessions.enter_context(
                product.intercept("orders", "--http-header", "x-dev=ada", port=f"{handler}:https", pods=3, kind=kind)
            )
        cluster.kubectl("annotate", "deploy", "orders", f"{timeout}=often", "-n", shop.namespace)
        try:
            until(lambda: ("create", "events") in asked(cluster), within=10, every=0.3, what="an Event")
        finally:
            cluster.kubectl("annotate", "deploy", "orders", f"{timeout}-", "-n", shop.namespace)
    used = {what for what in asked(cluster) if what[1] not in OF_OTHER_ROLES}
    assert used <= granted()
    assert granted() - used <= RARELY
    assert {verb for verb, what in asked(cluster) if what == "secrets"} == {"get", "list", "watch"}


def test_the_daemon_pod_is_confined(cluster, product):
    """Not privileged, a read-only root, no network of the node, no host path but cgroups and the log of inspection."""
    [container] = cluster.get("pod", product.daemon().name, namespace=products.NAMESPACE)["spec"]["containers"]
    spec = cluster.get("pod", product.daemon().name, namespace=products.NAMESPACE)["spec"]
    assert not spec.get("hostNetwork")
    assert container["securityContext"]["privileged"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    hosts = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
    assert hosts == ["/sys/fs/cgroup", "/var/log/sidestep"]


def test_the_image_is_complete_and_small(cluster, product):
    """It brings its own kernel headers, and nothing that builds."""
    daemon = product.daemon()
    found = cluster.exec(
        daemon,
        "sh",
        "-c",
        "for name in gcc cc make pip pip3 dpkg-buildpackage; do command -v $name; done; ls /lib/modules 2>/dev/null; "
        "test -f /usr/share/sidestep/kernel-headers/include/linux/kconfig.h && echo headers",
    )
    assert found == "headers\n"


def test_resources_are_explained(cluster, product):
    """`kubectl explain` and the short names work."""
    assert "Diverts matching requests" in cluster.kubectl("explain", "intercepts")
    assert "Ed25519 public key" in cluster.kubectl("explain", "intercepts.spec.session")
    assert cluster.kubectl("get", "icept,wtap", "-A").strip() == ""
