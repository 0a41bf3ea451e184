"""The sessions of the cluster as this node knows them: their specs, whether they live, which ones win.

Anybody with RBAC permissions in a namespace can create and change resources as often as the API server accepts. So an
event costs no more than reading the object, and each spec is validated once, in shares (`resource` has the states):

    observed  -> validated       at the next `verdicts`, `VALIDATION_TIME` seconds at a time, namespaces in turn
    any       -> refused         the spec cannot be used; or the digest in the status is not that of the pinned spec
    validated -> accepted        the digest was written, by this node or another

A resource *lives* while its `renewTime` keeps changing. Time is measured by this node's clock from one change to the
next, so clocks of others do not matter. It stops while the API server is unreachable, because renewals cannot be seen.

Conflicts are decided among living resources, oldest first, from the resources alone: every node gets the same result.
It is cached until a resource or the inventory changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from sidestep.kube.resources import DELETED_AFTER, INERT_AFTER, observe
from sidestep.kube.watch import KubeObject
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept, SessionKind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey
from sidestep.node.sessions.resource import SessionResource, within_bounds
from sidestep.policy.conflicts import Claim, admit, claim_of
from sidestep.policy.workloads import pods_of

VALIDATION_TIME = 0.02
"""Seconds within which one call of `verdicts` may start validations; the rest waits for the next call."""


class ResourceVerdict(msgspec.Struct, frozen=True):
    """Decision about one resource: `standing`, or the reason why not.

    `pods` are the covered pods of this node. `waiting`: the resource has not been validated yet.
    """

    standing: bool
    refusal: str = ""
    stale: bool = False
    waiting: bool = False
    pods: tuple[PodKey, ...] = ()


def _nobody(_uid: str) -> None:
    """Default of `on_change`."""


@dataclass(slots=True)
class SessionResources:
    """All resources of the cluster.

    Calls `on_change` with the UID of a resource that appeared, disappeared, or changed in a way that affects its
    status; a renewal does so only when the resource was stale. Calls `on_gone` with a resource that disappeared or was
    refused after a change of its spec.
    """

    now: Callable[[], float]
    on_change: Callable[[str], None] = _nobody
    on_gone: Callable[[SessionResource], None] = lambda _by_uid: None
    inert_after: float = INERT_AFTER
    deleted_after: float = DELETED_AFTER
    waiting: bool = False
    """Whether the last call of `verdicts` left resources to validate."""
    _by_uid: dict[str, SessionResource] = field(default_factory=dict)
    _ordered: tuple[SessionResource, ...] | None = None
    _verdicts: _Verdicts | None = None
    _connected: dict[SessionKind, bool] = field(default_factory=dict)

    def sink(self, kind: SessionKind) -> KindSink:
        """Return the `Sink` for the watch of one kind."""
        return KindSink(self, kind)

    def connected(self, kind: SessionKind, connected: bool) -> None:
        """Record whether changes are received. After an interruption every resource gets its full time again."""
        if connected and not self._connected.get(kind, True):
            for resource in self._by_uid.values():
                if resource.latest.kind is kind:
                    resource.seen = self.now()
        self._connected[kind] = connected

    def find(self, uid: str) -> SessionResource | None:
        """Return the resource with this UID; None when there is none."""
        return self._by_uid.get(uid)

    def all(self) -> tuple[SessionResource, ...]:
        """Return all resources, oldest first."""
        if self._ordered is None:
            ages = (
                (resource.latest.metadata.creation_timestamp, resource.uid, resource)
                for resource in self._by_uid.values()
            )
            self._ordered = tuple(resource for *_, resource in sorted(ages, key=lambda each: each[:2]))
        return self._ordered

    def stale(self, resource: SessionResource) -> bool:
        """Whether the resource has not been renewed for so long that it has no effect."""
        return self._idle(resource) > self.inert_after

    def expired(self) -> tuple[SessionResource, ...]:
        """Return the resources to delete: not renewed for so long, or over."""
        return tuple(each for each in self._by_uid.values() if each.over or self._idle(each) > self.deleted_after)

    def conclude(self, uid: str, reason: str) -> None:
        """Record that a capture has reached its bounds. Its session has been told."""
        resource = self._by_uid.get(uid)
        if resource is not None:
            resource.conclude(reason)
            self._verdicts = None
            self.on_change(uid)

    def verdicts(self, inventory: Inventory) -> dict[str, ResourceVerdict]:
        """Return the verdict on each resource, by UID. Validates a share of those not validated yet."""
        stale = frozenset(resource.uid for resource in self._by_uid.values() if self.stale(resource))
        known = self._verdicts
        if known is None or known.inventory is not inventory or known.stale != stale or self.waiting:
            known = self._verdicts = _Verdicts(inventory, stale, self._decide(inventory, stale))
        return known.found

    def _decide(self, inventory: Inventory, stale: frozenset[str]) -> dict[str, ResourceVerdict]:
        found: dict[str, ResourceVerdict] = {}
        living: list[SessionResource] = []
        for resource in self.all():
            if resource.problem:
                found[resource.uid] = ResourceVerdict(standing=False, refusal=resource.problem)
            elif resource.uid in stale:
                found[resource.uid] = ResourceVerdict(standing=False, stale=True)
            else:
                living.append(resource)
        counted, beyond = within_bounds(living)
        found |= {uid: ResourceVerdict(standing=False, refusal=refusal) for uid, refusal in beyond.items()}
        self._validate(resource for resource in counted if not resource.validated)
        self.waiting = False
        claims: list[Claim] = []
        for resource in counted:
            if resource.problem:
                found[resource.uid] = ResourceVerdict(standing=False, refusal=resource.problem)
            elif resource.intercept is None:
                found[resource.uid] = ResourceVerdict(standing=False, waiting=True)
                self.waiting = True
            else:
                try:
                    claims.append(claim_of(resource.intercept, inventory))
                except RefusedError as error:
                    pods = _pods(resource.intercept, inventory)
                    found[resource.uid] = ResourceVerdict(standing=False, refusal=str(error), pods=pods)
        standing, refused = admit(claims)
        for claim in standing:
            found[claim.intercept.uid] = ResourceVerdict(standing=True, pods=_pods(claim.intercept, inventory))
        for claim, refusal in refused:
            pods = _pods(claim.intercept, inventory)
            found[claim.intercept.uid] = ResourceVerdict(standing=False, refusal=str(refusal), pods=pods)
        return found

    def _validate(self, candidates: Iterable[SessionResource]) -> None:
        """Validate for `VALIDATION_TIME` seconds, at least one, namespaces in turn: a flood in one does not delay
        others.
        """
        queues: dict[str, deque[SessionResource]] = {}
        for resource in candidates:
            queues.setdefault(resource.latest.metadata.namespace, deque()).append(resource)
        until = self.now() + VALIDATION_TIME
        while queues:
            for namespace in tuple(queues):
                queues[namespace].popleft().validate()
                if not queues[namespace]:
                    del queues[namespace]
                if self.now() >= until:
                    return

    def _idle(self, resource: SessionResource) -> float:
        """Return the seconds without renewal, not counting times without connection."""
        return self.now() - resource.seen if self._connected.get(resource.latest.kind, True) else 0.0

    # --- events of the watches
    # ------------------------------------------------------------------------------------------

    def replace(self, kind: SessionKind, values: Iterable[KubeObject]) -> None:
        """Set all resources of a kind."""
        there = {resource.uid for value in values if (resource := self._take(kind, value)) is not None}
        for resource in [
            resource for resource in self._by_uid.values() if resource.latest.kind is kind and resource.uid not in there
        ]:
            self._forget(resource)

    def apply(self, kind: SessionKind, value: KubeObject) -> None:
        """Add or update a resource."""
        self._take(kind, value)

    def remove(self, kind: SessionKind, value: KubeObject) -> None:
        """Remove a resource."""
        resource = self._by_uid.get(str((value.get("metadata") or {}).get("uid")))
        if resource is not None and resource.latest.kind is kind:
            self._forget(resource)

    def _take(self, kind: SessionKind, value: KubeObject) -> SessionResource | None:
        try:
            latest = observe(kind, value)
        except ConfigurationError:
            return None  # without name and uid no status can be written
        resource = self._by_uid.get(latest.metadata.uid)
        if resource is None:
            resource = self._by_uid[latest.metadata.uid] = SessionResource(latest, self.now(), latest.digest, latest)
            self._ordered = None
            matters = True
        else:
            before, resource.latest = resource.latest, latest
            matters = (latest.status, latest.digest) != (before.status, before.digest)
            if latest.renewed != before.renewed:
                matters |= self.stale(resource)
                resource.seen = self.now()
        if not resource.problem and latest.status.spec_digest not in {"", resource.digest}:
            resource.overrule()
            self._verdicts = None
            self.on_gone(resource)
        if resource.pinned is not None:
            self._verdicts = None
        if matters:
            self.on_change(resource.uid)
        return resource

    def _forget(self, resource: SessionResource) -> None:
        del self._by_uid[resource.uid]
        self._ordered = self._verdicts = None
        self.on_gone(resource)
        self.on_change(resource.uid)


class _Verdicts(msgspec.Struct, frozen=True):
    """Verdicts and their inputs."""

    inventory: Inventory
    stale: frozenset[str]
    found: dict[str, ResourceVerdict]


class KindSink(msgspec.Struct, frozen=True):
    """A `kube.watch.Sink` for one kind."""

    resources: SessionResources
    kind: SessionKind

    def replace(self, values: list[KubeObject], /) -> None:
        """As Sink.replace."""
        self.resources.replace(self.kind, values)

    def apply(self, value: KubeObject, /) -> None:
        """As Sink.apply."""
        self.resources.apply(self.kind, value)

    def remove(self, value: KubeObject, /) -> None:
        """As Sink.remove."""
        self.resources.remove(self.kind, value)


def _pods(intercept: Intercept, inventory: Inventory) -> tuple[PodKey, ...]:
    try:
        return tuple(pod.key for pod in pods_of(intercept, inventory))
    except RefusedError:
        return ()
