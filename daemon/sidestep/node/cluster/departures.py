"""Notices pods that leave an inspection policy because their labels, or those of their namespace, have changed. Pure.

Whoever may change a pod's labels may take the pod out of a policy's selector, and whoever may change a namespace's
labels may take all its pods out of a cluster's policy; the policy's authors should learn of it. A pod that ends, and a
policy that is changed or deleted, is no departure.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sidestep.model.pod import PodKey
from sidestep.node.planning.plan import Plan


class Departure(msgspec.Struct, frozen=True):
    """A pod, and the name (`InspectionPolicy.display`) of the policy that selects it no longer."""

    pod: PodKey
    uid: str
    policy: str


class _Seen(msgspec.Struct, frozen=True):
    labels: Mapping[str, str]
    namespace_labels: Mapping[str, str]
    policies: frozenset[str]


class Departures:
    """Compares each plan with the one before it."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._pods: dict[str, _Seen] = {}
        """By UID; only pods that some policy selects."""

    def look(self, plan: Plan, policies: frozenset[str]) -> list[Departure]:
        """Return the departures since the last look, sorted by pod. `policies` are the names of all policies."""
        if plan is self._plan:
            return []
        self._plan = plan
        selecting: dict[PodKey, set[str]] = {
            key: {name for names in ports.values() for name in names} for key, ports in plan.inspected.items()
        }
        for name, key in plan.not_inspected:
            selecting.setdefault(key, set()).add(name)
        found: list[Departure] = []
        before, self._pods = self._pods, {}
        for key, survey in sorted(plan.surveys.items()):
            pod = survey.pod
            now = frozenset(selecting.get(key, ()))
            known = before.get(pod.uid)
            labels = plan.namespace_labels.get(key.namespace, {})
            if known is not None and (known.labels, known.namespace_labels) != (pod.labels, labels):
                found += [Departure(key, pod.uid, name) for name in sorted((known.policies - now) & policies)]
            if now:
                self._pods[pod.uid] = _Seen(pod.labels, labels, now)
        return found
