"""Which pods an intercept covers.

A workload is found by kind and name, or by name alone when only one kind has it. A name that an owner shares with what
it owns (Deployment `orders` and its pod `orders`) means the owner, because that answer does not change when the
workload is scaled. `policy.pod_ports` says what a port means in a pod.
"""

from __future__ import annotations

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, WorkloadRef
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Pod
from sidestep.policy.pod_ports import listed

KIND_ALIASES = {
    "deploy": "deployment",
    "deployments": "deployment",
    "sts": "statefulset",
    "statefulsets": "statefulset",
    "ds": "daemonset",
    "daemonsets": "daemonset",
    "rs": "replicaset",
    "replicasets": "replicaset",
    "jobs": "job",
    "svc": "service",
    "services": "service",
    "po": "pod",
    "pods": "pod",
}
"""kubectl's short and plural names."""


def parse_workload(text: str) -> WorkloadRef:
    """`name` or `kind/name`, kinds as kubectl writes them. Raises RefusedError when it is neither."""
    kind, slash, name = text.partition("/")
    if not slash:
        kind, name = "", text
    if not name or "/" in name or (slash and not kind):
        raise RefusedError(f"{text[:100]!r} is no workload: write NAME or KIND/NAME, like deployment/orders")
    return WorkloadRef(name, canonical_kind(kind) if kind else None)


def canonical_kind(kind: str) -> str:
    """A kind as errors and `WorkloadRef` write it: lower case, singular, in full; `deployment.apps` loses its group."""
    plain = kind.lower().partition(".")[0]
    return KIND_ALIASES.get(plain, plain)


def find_workload(namespace: str, reference: WorkloadRef, inventory: Inventory) -> WorkloadRef:
    """The workload with its kind filled in.

    Raises RefusedError when there is none (listing those there are) or when several kinds carry the name.
    """
    index = inventory.index
    kinds = set(index.kinds(namespace, reference.name))
    if reference.kind:
        kinds &= {canonical_kind(reference.kind)}
    if len(kinds) > 1:
        kinds -= {kind for kind in kinds if _owned_by(namespace, reference.name, kind, kinds, inventory)}
    if len(kinds) == 1:
        return WorkloadRef(reference.name, kinds.pop())
    if kinds:
        choices = " or ".join(f"{kind}/{reference.name}" for kind in sorted(kinds))
        raise RefusedError(f"{reference.name} in namespace {namespace} is ambiguous: write {choices}")
    raise RefusedError(
        f"no workload {reference} in namespace {namespace} (there are: {listed(index.names(namespace))})"
    )


def pods_of(intercept: Intercept, inventory: Inventory) -> tuple[Pod, ...]:
    """Pods that the intercept covers now, ordered by name; ended ones left out; empty for a workload without pods.

    Raises RefusedError when the workload is unknown or ambiguous, or when `intercept.pod` is not one of its pods.
    """
    workload = find_workload(intercept.namespace, intercept.workload, inventory)
    pods = inventory.index.covered(intercept.namespace, workload.kind or "pod", workload.name)
    if intercept.pod is None:
        return pods
    chosen = tuple(pod for pod in pods if pod.key.name == intercept.pod)
    if not chosen:
        there = listed([pod.key.name for pod in pods])
        raise RefusedError(
            f"{workload} in namespace {intercept.namespace} has no pod {intercept.pod} (it has: {there})"
        )
    return chosen


def _owned_by(namespace: str, name: str, kind: str, kinds: set[str], inventory: Inventory) -> bool:
    """Whether the object of this kind belongs to one of the same name and another of these kinds."""
    for pod in inventory.index.covered(namespace, kind, name):
        chain = [(owner.kind, owner.name) for owner in pod.owners]
        above = chain if kind == "pod" else chain[chain.index((kind, name)) + 1 :]
        if any(owner_kind in kinds and owner_name == name for owner_kind, owner_name in above):
            return True
    return False
