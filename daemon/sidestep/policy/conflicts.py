"""Which intercepts exclude each other (docs/design.md, "Sessions").

A claim is an intercept with the ports it takes: of its workload as a whole, so that pods created later are covered, and
of each pod there is now, so that `deployment/orders` and `pod/orders-1` meet although they are named differently. Two
claims meet when they share a target. Rules, on a shared target:

- a global intercept and any other intercept exclude each other;
- the same filter twice is refused (the second would never match);
- at most MAX_INTERCEPTS intercepts.

The work for one claim grows with the ports it takes and not with the number of other claims: `Standing` holds claims by
the targets they take, and the targets of one workload's port are found once per inventory.

Wiretaps take nothing and never conflict. Intercepts that are no longer renewed are not claims: leave them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from sidestep.model.errors import RefusedError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.inventory import Inventory
from sidestep.model.inventory_index import Memo
from sidestep.model.pod import Transport
from sidestep.policy.matching import ConditionRow, normal_form
from sidestep.policy.pod_ports import ports_of
from sidestep.policy.workloads import find_workload, pods_of

MAX_INTERCEPTS = 64
"""Intercepts on one port (docs/design.md, "Sessions")."""


class Target(NamedTuple):
    """A port of a workload or of one pod. `port` is a container port number, or the text as written while the workload
    has no pod that could resolve it. A tuple, because targets are hashed and compared more than anything else here."""

    namespace: str
    kind: str
    name: str
    port: str
    transport: Transport = Transport.TCP

    def __str__(self) -> str:
        suffix = "" if self.transport is Transport.TCP else f"/{self.transport.upper()}"
        return f"port {self.port}{suffix} of {self.kind}/{self.name} in namespace {self.namespace}"


class Claim(msgspec.Struct, frozen=True):
    """An intercept and the ports it takes."""

    intercept: Intercept
    targets: frozenset[Target]


def claim_of(intercept: Intercept, inventory: Inventory) -> Claim:
    """The ports that an intercept takes; none where it is about no port.

    Raises RefusedError when its workload or pod is unknown, or when none of its pods has the port; one that lacks it (a
    rollout that renames a port) is passed over.
    """
    if not intercept.has_port:
        find_workload(intercept.namespace, intercept.workload, inventory)
        return Claim(intercept, frozenset())
    memo: Memo[object, frozenset[Target]] = inventory.index.memos.setdefault("targets", Memo())
    place = (intercept.namespace, intercept.workload, intercept.pod, intercept.port, intercept.transport)
    return Claim(intercept, memo.get(place, lambda: _targets(intercept, inventory), weight=len))


def _targets(intercept: Intercept, inventory: Inventory) -> frozenset[Target]:
    workload = find_workload(intercept.namespace, intercept.workload, inventory)
    kind = workload.kind or "pod"
    transport = intercept.transport
    targets = set()
    lacking: RefusedError | None = None
    for pod in pods_of(intercept, inventory):
        try:
            ports = ports_of(pod, inventory).resolve(intercept.port, transport=transport)
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
    return frozenset(targets)


Form = frozenset[ConditionRow]
"""A filter, in whatever order it was written; a global one is empty."""


@dataclass(slots=True)
class _Place:
    """Who takes a target: all claims, the global one, and the oldest one of each filter."""

    claims: list[Claim] = field(default_factory=list)
    global_claim: Claim | None = None
    filtered: dict[Form, Claim] = field(default_factory=dict)

    def add(self, claim: Claim, form: Form) -> None:
        self.claims.append(claim)
        if form:
            self.filtered[form] = _older(self.filtered.get(form), claim)
        else:
            self.global_claim = _older(self.global_claim, claim)

    def rival(self, form: Form) -> Claim | None:
        """The oldest claim that excludes a new one with this filter."""
        if not form:
            return min(self.claims, key=_age, default=None)
        alike = self.filtered.get(form)
        return alike if self.global_claim is None else _older(alike, self.global_claim)


class Standing:
    """Claims that do not exclude each other, by what they take."""

    def __init__(self) -> None:
        self._places: dict[Target, _Place] = {}

    def add(self, claim: Claim) -> None:
        """Note a claim, whatever `check` says about it. A wiretap takes nothing."""
        if claim.intercept.kind is Kind.WIRETAP:
            return
        form = normal_form(claim.intercept.filter)
        for target in claim.targets:
            place = self._places.get(target)
            if place is None:
                place = self._places[target] = _Place()
            place.add(claim, form)

    def check(self, new: Claim) -> None:
        """Raise RefusedError naming the oldest intercept in the way, its claimed owner and the rule."""
        if new.intercept.kind is Kind.WIRETAP:
            return
        form = normal_form(new.intercept.filter)
        rival: Claim | None = None
        full = []
        for target in new.targets:
            place = self._places.get(target)
            if place is None:
                continue
            found = place.rival(form)
            if found is not None:
                rival = _older(rival, found)
            if len(place.claims) >= MAX_INTERCEPTS:
                full.append(target)
        if rival is not None:
            shared = _target_text(new.targets & rival.targets)
            rule = _conflict(new.intercept, rival.intercept).format(target=shared)
            raise RefusedError(f"{_named(rival.intercept)} {rule}")
        if full:
            raise RefusedError(
                f"{_target_text(frozenset(full))} has {MAX_INTERCEPTS} intercepts already, which is the most possible"
            )


def check(new: Claim, existing: Iterable[Claim]) -> None:
    """Raise RefusedError naming the intercept in the way, its claimed owner and the rule.

    A claim of the same uid is `new` itself, and no obstacle.
    """
    standing = Standing()
    for other in existing:
        if other.intercept.uid != new.intercept.uid and not new.targets.isdisjoint(other.targets):
            standing.add(other)
    standing.check(new)


def admit(claims: Iterable[Claim]) -> tuple[tuple[Claim, ...], tuple[tuple[Claim, RefusedError], ...]]:
    """All claims oldest first, split into those that stand and those that an older one refuses, with the reason.

    For claims that came in without having been checked against each other (a restart, two nodes at once): the outcome
    depends on the claims alone, so that every node comes to the same one.
    """
    index = Standing()
    standing: list[Claim] = []
    refused: list[tuple[Claim, RefusedError]] = []
    for claim in sorted(claims, key=_age):
        try:
            index.check(claim)
        except RefusedError as error:
            refused.append((claim, error))
        else:
            index.add(claim)
            standing.append(claim)
    return tuple(standing), tuple(refused)


def _age(claim: Claim) -> tuple[float, str, str]:
    return claim.intercept.order


def _older(one: Claim | None, other: Claim) -> Claim:
    return one if one is not None and _age(one) <= _age(other) else other


def _conflict(new: Intercept, other: Intercept) -> str:
    """The rule that the pair breaks, with a place for the target."""
    if other.filter.is_global:
        return "takes all of {target}: a global intercept and any other exclude each other"
    if new.filter.is_global:
        return "is on {target}: a global intercept and any other exclude each other, add a filter or end that one"
    return "has the same filter on {target}: it would take every request first"


def _named(intercept: Intercept) -> str:
    owner = intercept.owner if intercept.owner.isprintable() else repr(intercept.owner)
    return f"intercept {intercept.display} (claimed owner {owner or 'unknown'})"


def _target_text(shared: frozenset[Target]) -> str:
    """A workload says more than a pod."""
    return str(min(shared, key=lambda target: (target.kind == "pod", target)))
