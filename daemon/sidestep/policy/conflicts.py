"""Which intercepts exclude each other (design, section 7).

A claim is an intercept with the ports it takes: of its workload as a whole, so that pods created later are covered, and
of each pod there is now, so that `deployment/orders` and `pod/orders-1` meet although they are named differently. Two
claims meet when they share a target. Rules, on a shared target:

- a global intercept and any other intercept exclude each other;
- the same filter twice is refused (the second would never match);
- at most MAX_INTERCEPTS intercepts.

Wiretaps take nothing and never conflict. Intercepts that are no longer renewed are not claims: leave them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Transport
from sidestep.policy.matching import normal_form
from sidestep.policy.workloads import find_workload, pods_of, resolve_port

MAX_INTERCEPTS = 64
"""Intercepts on one port (design, section 7)."""


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A port of a workload or of one pod. `port` is a container port number, or the text as written while the workload
    has no pod that could resolve it."""

    namespace: str
    kind: str
    name: str
    port: str
    transport: Transport = Transport.TCP

    def __str__(self) -> str:
        suffix = "" if self.transport is Transport.TCP else f"/{self.transport.upper()}"
        return f"port {self.port}{suffix} of {self.kind}/{self.name} in namespace {self.namespace}"


@dataclass(frozen=True, slots=True)
class Claim:
    """An intercept and the ports it takes."""

    intercept: Intercept
    targets: frozenset[Target]


def claim_of(intercept: Intercept, inventory: Inventory) -> Claim:
    """The ports that an intercept takes.

    Raises RefusedError when its workload or pod is unknown, or when none of its pods has the port; one that lacks it (a
    rollout that renames a port) is passed over.
    """
    workload = find_workload(intercept.namespace, intercept.workload, inventory)
    kind = workload.kind or "pod"
    transport = intercept.transport
    pods = pods_of(intercept, inventory)
    targets = set()
    lacking: RefusedError | None = None
    for pod in pods:
        try:
            ports = resolve_port(intercept.port, pod, inventory.services_of(pod), transport=transport)
        except RefusedError as error:
            lacking = lacking or error
            continue
        for resolved in ports:
            port = str(resolved.port.number)
            targets.add(Target(intercept.namespace, "pod", pod.key.name, port, transport))
            if intercept.pod is None:
                targets.add(Target(intercept.namespace, kind, workload.name, port, transport))
    if lacking and not targets:
        raise lacking
    if not targets:
        targets.add(Target(intercept.namespace, kind, workload.name, intercept.port, transport))
    return Claim(intercept, frozenset(targets))


def check(new: Claim, existing: Iterable[Claim]) -> None:
    """Raise RefusedError naming the intercept in the way, its claimed owner and the rule.

    A claim of the same uid is `new` itself, and no obstacle.
    """
    if new.intercept.kind is Kind.WIRETAP:
        return
    beside = 0
    for other in sorted(existing, key=lambda claim: claim.intercept.order):
        if other.intercept.kind is Kind.WIRETAP or other.intercept.uid == new.intercept.uid:
            continue
        shared = new.targets & other.targets
        if not shared:
            continue
        rule = _conflict(new.intercept, other.intercept)
        if rule:
            raise RefusedError(f"{_named(other.intercept)} {rule.format(target=_target_text(shared))}")
        beside += 1
        if beside >= MAX_INTERCEPTS:
            raise RefusedError(
                f"{_target_text(shared)} has {MAX_INTERCEPTS} intercepts already, which is the most possible"
            )


def admit(claims: Iterable[Claim]) -> tuple[tuple[Claim, ...], tuple[tuple[Claim, RefusedError], ...]]:
    """All claims oldest first, split into those that stand and those that an older one refuses, with the reason.

    For claims that came in without having been checked against each other (a restart, two nodes at once): the outcome
    depends on the claims alone, so that every node comes to the same one.
    """
    standing: list[Claim] = []
    refused: list[tuple[Claim, RefusedError]] = []
    for claim in sorted(claims, key=lambda each: each.intercept.order):
        try:
            check(claim, standing)
        except RefusedError as error:
            refused.append((claim, error))
        else:
            standing.append(claim)
    return tuple(standing), tuple(refused)


def _conflict(new: Intercept, other: Intercept) -> str:
    """The rule that the pair breaks, with a place for the target; empty when there is none."""
    if other.filter.is_global:
        return "takes all of {target}: a global intercept and any other exclude each other"
    if new.filter.is_global:
        return "is on {target}: a global intercept and any other exclude each other, add a filter or end that one"
    if normal_form(new.filter) == normal_form(other.filter):
        return "has the same filter on {target}: it would take every request first"
    return ""


def _named(intercept: Intercept) -> str:
    owner = intercept.owner if intercept.owner.isprintable() else repr(intercept.owner)
    return f"intercept {intercept.display} (claimed owner {owner or 'unknown'})"


def _target_text(shared: frozenset[Target]) -> str:
    """A workload says more than a pod."""
    return str(min(shared, key=lambda target: (target.kind == "pod", target)))
