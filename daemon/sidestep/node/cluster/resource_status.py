"""Status of a session's resource, aggregated from the entries of the nodes. Pure.

Each node writes its own entry of `status.nodes`. The fields for the whole resource (state, message, number of active
pods, conditions) are a function of all entries, identical on every node. One node writes them: the first by name of
those with an entry, or, while there is none, the first that notices. Any node would write the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sidestep.config.filters import describe_filter
from sidestep.kube.resources import DaemonEntry, NodeEntry, StatusCondition, StatusFields
from sidestep.model.text import harmless
from sidestep.node.sessions.resource import CHANGED, OVERRULED, SessionResource
from sidestep.node.sessions.resources import ResourceVerdict

ACTIVE = frozenset({"active", "attached"})
MAX_PODS = 300
"""Pods of one node in a status. Kubelets run fewer."""


def is_ours(entry: NodeEntry | None, own: DaemonEntry) -> bool:
    """Whether this daemon may write the node's entry: it is absent, our own, or that of a daemon that started
    earlier.
    """
    return entry is None or entry.daemon == own or (entry.daemon.started, entry.daemon.pod) < (own.started, own.pod)


def reporting_node(nodes: Mapping[str, NodeEntry | None]) -> str:
    """Return the node that writes the aggregate; "" while no node has an entry."""
    return min((name for name, entry in nodes.items() if entry is not None), default="")


def aggregate(
    resource: SessionResource,
    verdict: ResourceVerdict,
    nodes: Mapping[str, NodeEntry | None],
    *,
    before: StatusFields,
    now: str,
) -> dict[str, Any]:
    """Return the fields of the status other than `nodes`. `now` is RFC 3339; unchanged conditions keep their time."""
    there = [entry for _, entry in sorted(nodes.items()) if entry is not None]
    active = sum(pod.state in ACTIVE for entry in there for pod in entry.pods)
    refusals = [entry.refusal for entry in there if entry.refusal]
    accepted = ("True", "Accepted", "the daemons serve it")
    if verdict.stale:
        state, message = "Stale", "its session has not renewed it: it matches nothing"
    elif verdict.waiting:
        state, message = "Pending", "it is being read"
        accepted = ("Unknown", "Pending", message)
    elif not verdict.standing:
        state, message = "Refused", verdict.refusal
        accepted = ("False", "SpecChanged" if resource.problem == OVERRULED else "Refused", verdict.refusal)
    elif active:
        state, message = "Active", ""
    elif there and len(refusals) == len(there):
        state, message = "Refused", refusals[0]
        accepted = ("False", "Refused", refusals[0])
    elif there:
        details = [pod.detail for entry in there for pod in entry.pods if pod.detail]
        state, message = "Pending", details[0] if details else "waits for its session"
    else:
        state, message = "Pending", "the workload has no pod that a node daemon serves"
    if resource.changed:
        message = f"{message}; {CHANGED}" if message else CHANGED
    filter_text = describe_filter(resource.intercept.filter) if resource.intercept is not None else ""
    conditions = [
        _condition("Accepted", *accepted, before=before, now=now),
        _condition(
            "Active",
            "True" if active else "False",
            state,
            message or f"active on {active} {'pod' if active == 1 else 'pods'}",
            before=before,
            now=now,
        ),
    ]
    return {
        "state": state,
        "message": harmless(message),
        "filter": harmless(filter_text),
        "activePods": active,
        "conditions": msgspec.to_builtins(conditions),
    }


def differs(wanted: Mapping[str, Any], status: StatusFields) -> bool:
    """Whether the fields of `aggregate` differ from those of the status."""
    return wanted != {
        "state": status.state,
        "message": status.message,
        "filter": status.filter,
        "activePods": status.active_pods,
        "conditions": msgspec.to_builtins(list(status.conditions)),
    }


def _condition(kind: str, status: str, reason: str, message: str, *, before: StatusFields, now: str) -> StatusCondition:
    old = next((each for each in before.conditions if each.type == kind), None)
    changed = old is None or old.status != status
    message = harmless(message)
    return StatusCondition(kind, status, reason, message, now if changed or old is None else old.last_transition_time)
