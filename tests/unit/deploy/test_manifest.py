"""deploy/daemonset.yaml against the schemas of current Kubernetes, and what it promises about rights."""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from sidestep.node import doctor
from tests.e2e import older, releases

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


def documents():
    return [one for one in yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text()) if one]


def the(kind, name=None):
    [found] = [one for one in documents() if one["kind"] == kind and name in {None, one["metadata"]["name"]}]
    return found


@pytest.mark.parametrize("version", releases.schemas())
def test_the_manifest_fits(version):
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_every_supported_version_is_among_them():
    assert releases.schemas()[0] == f"1.{releases.SUPPORTED}"
    assert int(releases.schemas()[-1].split(".")[1]) >= 37


def test_the_conversion_for_1_20_takes_away_what_it_does_not_know():
    before = documents()
    converted = older.for_1_20(before)
    assert before == documents()
    text = yaml.safe_dump_all(converted)
    assert "x-kubernetes-validations" not in text
    assert "maxSurge" not in text
    assert "appArmorProfile" not in text
    assert text.count("specDigest") == 3
    [daemons] = [one for one in converted if one["kind"] == "DaemonSet"]
    annotations = daemons["spec"]["template"]["metadata"]["annotations"]
    assert annotations[f"{older.APPARMOR}/node"] == "unconfined"
    assert [one for one in converted if one["kind"] not in {"DaemonSet", "CustomResourceDefinition"}] == [
        one for one in before if one["kind"] not in {"DaemonSet", "CustomResourceDefinition"}
    ]


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
