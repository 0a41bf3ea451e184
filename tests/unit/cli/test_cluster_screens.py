"""The screens of a cluster in docs/kubernetes.md say what today's daemon writes and today's command prints.

They are copied from a cluster, which is not at hand here. So the status that `kubectl describe` shows is read back: the
fields that a daemon adds up are computed anew from the nodes' entries in it, and `sidestep status` is printed from it.
"""

from __future__ import annotations

import base64
import re

import msgspec
import pytest

from sidestep.cli.cluster_view import ClusterStatusView, _daemon, _resource_view
from sidestep.cli.status import _cluster_text
from sidestep.kube.resources import NodeEntry, observe, read, status_patch
from sidestep.model.intercept import SessionKind
from sidestep.model.pod import PodKey
from sidestep.node.cluster.resource_status import aggregate, differs
from sidestep.node.sessions.resource import SessionResource
from sidestep.node.sessions.resources import ResourceVerdict
from tests.unit.deploy.test_manifest import DEPLOY
from tests.unit.deploy.test_session_manifests import schema

TEXT = (DEPLOY.parent / "docs" / "kubernetes.md").read_text()
SPEC = {
    "workload": "deployment/orders",
    "session": {"publicKey": base64.b64encode(bytes(32)).decode()},
    "port": "https",
    "owner": "ada",
    "filter": {"headers": [{"name": "x-dev", "match": "Exact", "value": "ada"}]},
}
LEFT_OUT = {"specDigest", "message"}
"""Of a status: the digest, which is that of a key, and what an active session does not have."""


def printed(command):
    """What the document says that a command prints."""
    [found] = re.findall(rf"^\$ {re.escape(command)}\n(.*?)(?=^\$ |^```$)", TEXT, re.DOTALL | re.MULTILINE)
    return found


def described(lines, indent=0):
    """An object as `kubectl describe` prints it. A list of objects is their fields one after the other: a name that was
    there already begins the next one."""
    found, items = {}, []
    while lines and len(lines[0]) - len(lines[0].lstrip()) == indent:
        label, _, value = lines.pop(0).strip().partition(":")
        words = label.replace(" - ", "-").split()
        name = words[0].lower() + "".join(words[1:])
        if name in found:
            items.append(found)
            found = {}
        nested = bool(lines) and len(lines[0]) - len(lines[0].lstrip()) > indent
        found[name] = described(lines, indent + 2) if nested else value.strip()
    return [*items, found] if items else found


@pytest.fixture(scope="module")
def shown():
    """The documented resource, as the API server has it."""
    found = described(printed("kubectl describe intercept orders -n shop").splitlines())
    status = found["status"]
    status["activePods"] = int(status["activePods"])
    [entry] = status["nodes"].values()
    entry["daemon"]["port"] = int(entry["daemon"]["port"])
    entry["conditions"] = entry["conditions"] or []
    metadata = {"name": found["name"], "namespace": found["namespace"], "uid": "0"}
    return {"metadata": metadata, "spec": SPEC, "status": status}


def test_a_session_s_status_has_the_fields_that_it_is_defined_to_have(shown):
    defined = schema(SessionKind.INTERCEPT)["status"]["properties"]
    assert set(shown["status"]) == set(defined) - LEFT_OUT
    [entry] = shown["status"]["nodes"].values()
    read_back = msgspec.json.encode(msgspec.convert(entry, NodeEntry))
    assert msgspec.json.decode(read_back) == {**entry, "refusal": ""}


def test_a_session_s_status_is_the_one_that_daemons_add_up(shown):
    seen = observe(SessionKind.INTERCEPT, shown)
    resource = SessionResource(seen, 0.0, seen.digest, seen)
    resource.validate()
    pods = tuple(PodKey("shop", each["name"]) for each in shown["status"]["nodes"]["sidestep-node"]["pods"])
    verdict = ResourceVerdict(standing=True, pods=pods)
    whole = aggregate(resource, verdict, seen.status.nodes, before=seen.status, now="")
    assert not differs(whole, seen.status)
    written = msgspec.json.decode(status_patch(whole))["status"]
    assert {name: value for name, value in written.items() if value is not None} == {
        name: value for name, value in shown["status"].items() if name != "nodes"
    }


def test_sidestep_status_prints_the_same_session(shown):
    daemon = {
        "metadata": {"name": shown["status"]["nodes"]["sidestep-node"]["daemon"]["pod"]},
        "spec": {"nodeName": "sidestep-node", "containers": [{"image": "registry.example/sidestep:0.1.0"}]},
        "status": {"containerStatuses": [{"ready": True, "restartCount": 0}]},
    }
    session = _resource_view(read(SessionKind.INTERCEPT, shown))
    view = ClusterStatusView("https://10.201.0.1:443", "shop", (_daemon(daemon),), intercepts=(session,))
    said = [line.rstrip() for line in printed("sidestep status -n shop").splitlines()]
    assert [line.rstrip() for line in _cluster_text(view)] == said
