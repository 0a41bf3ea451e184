"""deploy/daemonset.yaml against the schemas of current Kubernetes, and what it promises about rights."""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from sidestep.node import doctor
from tests.e2e import product as products

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
SUPPORTED = ("1.28", "1.30", "1.32", "1.34", "1.36", "1.37")


def documents():
    return [one for one in yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text()) if one]


def the(kind, name=None):
    [found] = [one for one in documents() if one["kind"] == kind and name in {None, one["metadata"]["name"]}]
    return found


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_manifest_fits(version):
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_patches_for_1_20_take_away_what_it_does_not_know():
    text = yaml.safe_dump_all(products.documents_for_1_20())
    assert "x-kubernetes-validations" not in text
    assert "maxSurge" not in text
    assert text.count("specDigest") == 2


def test_the_patch_for_linux_5_10_adds_one_capability_to_those_that_the_daemon_needs():
    [change] = json.loads((DEPLOY / "patches" / "linux-5.10.json").read_text())
    *path, last = change["path"].split("/")[1:]
    capabilities = the("DaemonSet")
    for word in path:
        capabilities = capabilities[int(word) if word.isdecimal() else word]
    assert (change["op"], last, change["value"]) == ("add", "-", "SYS_RESOURCE")
    assert set(capabilities) == set(doctor.CAPABILITIES)


def test_the_network_policy_selects_the_daemons_and_admits_only_to_the_metrics_port():
    policy, daemons = the("NetworkPolicy"), the("DaemonSet")
    labels = daemons["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["metadata"]["namespace"] == daemons["metadata"]["namespace"]
    [rule] = policy["spec"]["ingress"]
    [container] = daemons["spec"]["template"]["spec"]["containers"]
    assert [port["port"] for port in rule["ports"]] == [port["name"] for port in container["ports"]]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"sidestep.dev/metrics": "allowed"}}}]


def test_developers_may_not_write_a_status():
    rules = the("ClusterRole", "sidestep-developer")["rules"]
    resources = {each for rule in rules for each in rule["resources"]}
    assert not {each for each in resources if each == "*" or each.endswith("/status")}
