"""The manifests of deploy/ for Kubernetes 1.20, the newest that can be built from Debian alone.

They are for 1.30 and later. What 1.20 does not know is taken away or said in the older way; everything else is
taken as it is. The old daemon then ends before the new one begins: during an upgrade the pods of a node are served by
themselves for some seconds. Without the rules of the definitions the API server lets a spec be changed after it was
accepted; the daemons then refuse it, by the digest in the status.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

APPARMOR = "container.apparmor.security.beta.kubernetes.io"


def for_1_20(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same documents as Kubernetes 1.20 takes them."""
    return [_CONVERSIONS.get(one["kind"], lambda same: same)(copy.deepcopy(one)) for one in documents]


def _definition(document: dict[str, Any]) -> dict[str, Any]:
    """Before 1.25 there is no `x-kubernetes-validations`: kubectl refuses it, wherever in a schema it stands."""
    for version in document["spec"]["versions"]:
        _without_rules(version["schema"])
    return document


def _without_rules(part: Any) -> None:
    if isinstance(part, dict):
        part.pop("x-kubernetes-validations", None)
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _without_rules(each)


def _daemons(document: dict[str, Any]) -> dict[str, Any]:
    """Before 1.22 there is no `maxSurge`, before 1.30 AppArmor's profile is an annotation."""
    document["spec"]["updateStrategy"]["rollingUpdate"] = {"maxUnavailable": 1}
    template = document["spec"]["template"]
    for container in template["spec"]["containers"]:
        profile = container["securityContext"].pop("appArmorProfile")
        assert profile == {"type": "Unconfined"}
        template["metadata"]["annotations"][f"{APPARMOR}/{container['name']}"] = "unconfined"
    return document


_CONVERSIONS = {"CustomResourceDefinition": _definition, "DaemonSet": _daemons}
