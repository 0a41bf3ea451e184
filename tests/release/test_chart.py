"""The packaged Helm chart, rendered by Helm's own SDK, against the manifests and the schemas of Kubernetes.

`make release-check` runs it on what it has built. CHART names the package, and HELM the Python that has the SDK.
"""

import json
import os
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.e2e import releases
from tests.unit.deploy.test_manifest import DEPLOY

ROOT = DEPLOY.parent
KEEP = {"helm.sh/resource-policy": "keep"}
DIGEST = "sha256:" + "a" * 64

CASES = {
    "defaults": {},
    "inspection": {"inspection": {"enabled": True}},
    "gone": {"inspection": {"enabled": True}, "definitions": {"keep": False}},
    "chosen": {
        "image": {
            "repository": "registry.example/tools/sidestep",
            "digest": DIGEST,
            "pullPolicy": "Always",
            "pullSecrets": ["pull"],
        },
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"pool": "apps"},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        "linux510": True,
        "inspection": {"enabled": True},
        "namespaces": {"secrets": ["shop", "pay"], "policyConfig": ["shop"], "readiness": ["shop"]},
    },
    "tag": {"image": {"tag": "0.2.0"}},
    "unknown value": {"image": {"name": "sidestep"}},
    "wrong digest": {"image": {"digest": "latest"}},
    "bindings without inspection": {"namespaces": {"readiness": ["shop"]}},
}


@pytest.fixture(scope="module")
def helm():
    chart = os.environ.get("CHART", DEPLOY / "chart")
    python = os.environ.get("HELM", ROOT / "build" / "helm" / "bin" / "python")
    requests = [{"values": values, "namespace": "sidestep"} for values in CASES.values()]
    requests.append({"values": {}, "namespace": "tools"})
    command = [python, Path(__file__).with_name("render_charts.py"), chart]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return said | {"answers": dict(zip([*CASES, "elsewhere"], said["answers"], strict=True))}


def documents(text):
    return {
        (one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]): one
        for one in yaml.safe_load_all(text)
        if one
    }


def manifests(*names):
    found = {}
    for name in names:
        found |= documents((DEPLOY / name).read_text())
    return {key: one for key, one in found.items() if key[0] != "Namespace"}


def rendered(helm, case):
    return documents(helm["answers"][case]["text"])


def without_keep(found):
    for one in found.values():
        if one["kind"] == "CustomResourceDefinition":
            assert one["metadata"].pop("annotations") == KEEP
    return found


def test_helm_lint_has_nothing_to_say(helm):
    assert helm["problems"] == []


def test_the_defaults_are_the_manifest(helm):
    assert without_keep(rendered(helm, "defaults")) == manifests("daemonset.yaml")


def test_with_inspection_it_is_both_manifests(helm):
    assert without_keep(rendered(helm, "inspection")) == manifests("daemonset.yaml", "inspection.yaml")


def test_definitions_go_when_that_is_wanted(helm):
    assert rendered(helm, "gone") == manifests("daemonset.yaml", "inspection.yaml")


def test_each_value_arrives_and_nothing_else_changes(helm):
    found = without_keep(rendered(helm, "chosen"))
    values = CASES["chosen"]
    key = ("DaemonSet", "sidestep", "sidestep-node")
    wanted = manifests("daemonset.yaml", "inspection.yaml")
    pod = wanted[key]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    pod |= {"tolerations": values["tolerations"], "imagePullSecrets": [{"name": "pull"}]}
    pod["nodeSelector"] |= values["nodeSelector"]  # Helm merges objects, and replaces lists
    container |= {
        "image": f"registry.example/tools/sidestep@{DIGEST}",
        "imagePullPolicy": "Always",
        "resources": values["resources"],
        "env": container["env"] + values["env"],
    }
    [patch] = json.loads((DEPLOY / "patches" / "linux-5.10.json").read_text())
    container["securityContext"]["capabilities"]["add"].append(patch["value"])
    bindings = {key: found.pop(key) for key in [*found] if key[0] == "RoleBinding"}
    assert found == wanted
    assert {(role, namespace) for _, namespace, role in bindings} == {
        ("sidestep-secrets", "shop"),
        ("sidestep-secrets", "pay"),
        ("sidestep-policy-config", "shop"),
        ("sidestep-readiness", "shop"),
    }
    for (_, _, role), binding in bindings.items():
        assert ("ClusterRole", None, role) in found
        assert binding["roleRef"]["name"] == role
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "sidestep-node", "namespace": "sidestep"}]


def test_a_tag_of_ones_own(helm):
    daemons = rendered(helm, "tag")["DaemonSet", "sidestep", "sidestep-node"]
    assert daemons["spec"]["template"]["spec"]["containers"][0]["image"] == "localhost/sidestep:0.2.0"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("unknown value", "name"),
        ("wrong digest", "digest"),
        ("bindings without inspection", "inspection.enabled=true"),
        ("elsewhere", "Sidestep lives in namespace sidestep"),
    ],
)
def test_what_cannot_be_is_refused(helm, case, said):
    assert said in helm["answers"][case]["error"]


@pytest.mark.parametrize("version", releases.schemas())
def test_what_is_rendered_fits(helm, version):
    """With the defaults it is the manifest, which tests/unit/deploy validates."""
    for document in rendered(helm, "chosen").values():
        kubernetes_validate.validate(document, version, strict=True)
