"""One `kubectl apply` installs, and gives the daemon no more rights than it says; current clusters accept it, too."""

from __future__ import annotations

import re

import kubernetes_validate
import pytest
import yaml

from tests.e2e import product as products
from tests.e2e.cache import REPOSITORY

ACCOUNT = "system:serviceaccount:sidestep:sidestep-node"
SUPPORTED = ("1.28", "1.30", "1.32", "1.34", "1.36", "1.37")
"""Users' clusters; the one of these tests is older."""


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_manifest_fits_current_kubernetes(version):
    """Against the schemas that Kubernetes publishes, unpatched, unknown fields refused."""
    for document in products.documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_walk_through_fits_current_kubernetes():
    text = (REPOSITORY / "docs" / "kind.md").read_text()
    written = re.findall(r"<<YAML\n(.*?)^YAML$", text, re.MULTILINE | re.DOTALL)
    assert written
    for document in yaml.safe_load_all(written[0].replace("\\$", "$")):
        kubernetes_validate.validate(document, SUPPORTED[-1], strict=True)


def test_one_apply_installs(cluster, product):
    daemon = product.daemon()
    assert daemon.restarts == 0
    text = yaml.safe_dump_all(products.documents_for_1_20())
    again = cluster.kubectl_result("apply", "-f", "-", "--dry-run=server", stdin=text)
    assert again.code == 0, again.stderr
    assert "created" not in again.stdout


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "pods"),
        ("patch", "pods"),
        ("delete", "pods"),
        ("create", "pods/exec"),
        ("create", "intercepts.sidestep.dev"),
        ("patch", "intercepts.sidestep.dev"),
        ("create", "wiretaps.sidestep.dev"),
        ("patch", "nodes"),
        ("create", "rolebindings"),
        ("impersonate", "users"),
    ],
)
def test_what_the_daemon_may_not(cluster, product, verb, resource):
    for where in (["-n", "default"], ["-n", "kube-system"], ["-n", products.NAMESPACE]):
        answer = cluster.kubectl_result("auth", "can-i", verb, resource, "--as", ACCOUNT, *where)
        assert answer.stdout.strip() == "no", f"{verb} {resource} {where}"


def test_the_daemon_pod_is_confined(cluster, product):
    """Not privileged, a read-only root, no network of the node, no host path but the cgroups."""
    [container] = cluster.get("pod", product.daemon().name, namespace=products.NAMESPACE)["spec"]["containers"]
    spec = cluster.get("pod", product.daemon().name, namespace=products.NAMESPACE)["spec"]
    assert not spec.get("hostNetwork")
    assert container["securityContext"]["privileged"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    hosts = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
    assert hosts == ["/sys/fs/cgroup"]


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
