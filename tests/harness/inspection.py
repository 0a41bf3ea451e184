"""Inspection policies for the usual scene: documents, and waiting until its pod is inspected by them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tests.harness.curl import Answer
from tests.harness.manifests import Document
from tests.harness.scene import Shop
from tests.harness.waiting import until

FILE = "policies.yaml"
POD = "shop/orders-1"


def policy(*rules: Document, name: str = "orders", mode: str = "Enforce", **spec: Any) -> Document:
    """An InspectionPolicy for the pods of the scene."""
    return {
        "apiVersion": "sidestep.dev/v1alpha1",
        "kind": "InspectionPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": "orders"}}, "mode": mode, "rules": list(rules), **spec},
    }


def cluster_policy(*rules: Document, name: str = "base", mode: str = "Enforce", **spec: Any) -> Document:
    """A ClusterInspectionPolicy for all pods."""
    made = policy(*rules, mode=mode, **{"podSelector": {}, "namespaceSelector": {}, **spec})
    return {**made, "kind": "ClusterInspectionPolicy", "metadata": {"name": name}}


def rule(prefix: str = "/admin", *, name: str = "no-admin", action: str = "Block", **more: Any) -> Document:
    """A rule about paths."""
    return {"name": name, "match": {"paths": [{"match": "Prefix", "value": prefix}]}, "action": action, **more}


def view(shop: Shop, name: str = "orders") -> dict[str, Any] | None:
    """What `status` says of a policy; None while there is none."""
    found = (shop.node.status() or {}).get("policies", ())
    return next((each for each in found if each["name"] == name), None)


def wait_programmed(shop: Shop, name: str = "orders", *, within: float = 15.0) -> None:
    """Wait until the policy is accepted as it is written, and the scene's pod is inspected by it."""

    def look() -> bool:
        found = view(shop, name)
        return found is not None and found["accepted"] and POD in found["programmed"]

    until(look, within=within, what=lambda: f"policy {name} to be programmed: {view(shop, name)} {shop.conditions()}")


@contextlib.contextmanager
def policies(shop: Shop, *documents: Document, wait: bool = True, alone: bool = True) -> Iterator[None]:
    """Policies among the manifests; at the end they are gone, and so is the pod's steering if they are `alone`."""
    path = shop.node.write(FILE, *documents)
    try:
        if wait:
            for each in documents:
                wait_programmed(shop, each["metadata"]["name"])
        yield
    finally:
        path.unlink(missing_ok=True)
        until(lambda: not (shop.node.status() or {}).get("policies"), within=10, what="the policies to go")
    if alone:
        told = "the pod to be no target any more"
        until(
            lambda: not (shop.node.status() or {}).get("pods"), within=40, what=lambda: f"{told}: {shop.conditions()}"
        )


def is_refusal(answer: Answer, policy: str = "shop/orders") -> bool:
    """Whether an answer is that of a policy."""
    return answer.status == 403 and answer.text.startswith(f"sidestep: policy {policy}, id ")
