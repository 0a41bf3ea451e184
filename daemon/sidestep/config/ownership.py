"""Owners of a pod: the chain whose annotations it inherits and by whose names it can be intercepted.

The ownerReferences of a pod are followed through the known workloads. Where they are absent (as in most hand-written
Pods), or end at a ReplicaSet that is not known, workloads whose selector matches the pod's labels own it. One workload
per kind can own a pod; the first by name is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from sidestep.model.pod import Owner, Pod
from sidestep.model.workload import OwnerReference, Workload, WorkloadKey

MAX_OWNERS = 8
"""Length of a chain of owners; those of Kubernetes have two. The limit also ends circular references."""

_NEAREST_FIRST = ("replicaset", "job", "deployment", "statefulset", "daemonset")
"""Order of owners found by selector: a ReplicaSet comes before its Deployment."""


def link_owners(pod: Pod, references: Sequence[OwnerReference], workloads: Mapping[WorkloadKey, Workload]) -> Pod:
    """Return the pod with its owners, nearest first. An owner that is not in `workloads` is kept without
    annotations.
    """
    owners = _followed(pod.key.namespace, references, workloads)
    kinds = {owner.kind for owner in owners}
    if not owners or kinds == {"replicaset"}:
        for workload in _selecting(pod, workloads):
            kind = workload.key.kind
            if kind not in kinds and (not references or kind == "deployment"):
                kinds.add(kind)
                owners.append(Owner(kind, workload.key.name, workload.annotations))
    return replace(pod, owners=tuple(owners))


def _followed(
    namespace: str, references: Sequence[OwnerReference], workloads: Mapping[WorkloadKey, Workload]
) -> list[Owner]:
    owners: dict[OwnerReference, Owner] = {}
    waiting = list(references)
    while waiting and len(owners) < MAX_OWNERS:
        reference = waiting.pop(0)
        if reference in owners:
            continue
        workload = workloads.get(WorkloadKey(reference.kind, namespace, reference.name))
        annotations = workload.annotations if workload else {}
        owners[reference] = Owner(reference.kind, reference.name, annotations)
        waiting.extend(workload.owners if workload else ())
    return list(owners.values())


def _selecting(pod: Pod, workloads: Mapping[WorkloadKey, Workload]) -> list[Workload]:
    found = [
        each
        for key, each in workloads.items()
        if key.namespace == pod.key.namespace and key.kind in _NEAREST_FIRST and each.selector.matches(pod.labels)
    ]
    return sorted(found, key=lambda each: (_NEAREST_FIRST.index(each.key.kind), each.key.name))
