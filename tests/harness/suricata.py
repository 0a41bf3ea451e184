"""A Suricata beside the pod proxy of the usual scene: its documents, and waiting until it is fed."""

from __future__ import annotations

import json
from typing import Any

from tests.harness.inspection import policy
from tests.harness.manifests import Document
from tests.harness.processes import alive
from tests.harness.scene import Shop
from tests.harness.waiting import until


def config_map(rules: str, name: str = "ids-rules") -> Document:
    """A ConfigMap with Suricata's rules."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "shop"},
        "data": {"local.rules": rules, "other": "1"},
    }


def ids_policy(name: str = "orders", *, config: str = "ids-rules", **spec: Any) -> Document:
    """A policy that has nothing but an IDS with these rules."""
    made = policy(name=name, mode="Detect", ids={"rulesFrom": {"configMapRef": {"name": config, "key": "local.rules"}}})
    del made["spec"]["rules"]
    made["spec"].update(spec)
    return made


def started(shop: Shop) -> list[tuple[int, list[str]]]:
    """The Suricatas that were started and fed, in order: pids, and the policies of their rules."""
    lines = [json.loads(line) for line in shop.node.log().splitlines() if '"ids started"' in line]
    return [(each["pid"], each["policies"]) for each in lines]


def wait_fed(shop: Shop, *, after: int = 0, within: float = 20.0, policies: int = 1) -> int:
    """Wait until a Suricata with rules of so many policies is fed, another than the first `after`; returns its pid."""

    def look() -> int | None:
        pids = [pid for pid, names in started(shop)[after:] if alive(pid) and len(names) == policies]
        return pids[-1] if pids else None

    return until(look, within=within, what=lambda: f"a Suricata: {shop.conditions()}\n{shop.node.log()[-3000:]}")


def counted(shop: Shop, name: str) -> int:
    """A counter of the pod's ports, added up."""
    pods = (shop.node.status() or {}).get("pods", ())
    return sum(pod["counters"].get(name, 0) for pod in pods)
