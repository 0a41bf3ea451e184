"""The Intercepts and Wiretaps of the cluster, as this node holds them: what was asked for, whether it lives, who wins.

Anybody whom a namespace's RBAC lets may create resources and change them as often as the API server takes it. So an
event costs what reading the object costs; what a spec asks for is looked at once, in shares (`held` has the states):

    sighted -> judged            at the next `verdicts`, `JUDGING` seconds at a time, the namespaces in turn
    any     -> refused           the spec cannot be used; or the digest in the status is not that of the pinned spec
    judged  -> accepted          the digest was written, by us or by another node

A resource *lives* while its `renewTime` keeps changing. The time is measured here, from one change to the next, so that
no clock but ours matters; it stands still while the API server cannot be reached, since then nobody's renewals are
seen.

Conflicts are decided among the living, oldest first, by the resources alone: every node comes to the same answer. It is
kept until a resource or the inventory changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sidestep.kube.resources import DELETED_AFTER, INERT_AFTER, observe
from sidestep.kube.watch import KubeObject
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey
from sidestep.node.sessions.resource import SessionResource, within_bounds
from sidestep.policy.conflicts import Claim, admit, claim_of
from sidestep.policy.workloads import pods_of

VALIDATION_TIME = 0.02
"""Seconds that one call of `verdicts` may begin to judge resources in; what is left waits for the next."""


@dataclass(frozen=True, slots=True)
class ResourceVerdict:
    """What a resource is worth now: `standing`, or why not. `pods` are those of this node that it covers; one that is
    `waiting` was not judged yet."""

    standing: bool
    refusal: str = ""
    stale: bool = False
    waiting: bool = False
    pods: tuple[PodKey, ...] = ()


def _nobody(_uid: str) -> None:
    """The `on_change` of nobody."""


@dataclass(slots=True)
class SessionResources:
    """All resources. `on_change` is called with the UID of one that came, went or changed in a way that matters to its
    status - not when one is merely renewed, unless it was inert; `on_gone` with what went, or was overruled."""

    now: Callable[[], float]
    on_change: Callable[[str], None] = _nobody
    on_gone: Callable[[SessionResource], None] = lambda _by_uid: None
    inert_after: float = INERT_AFTER
    deleted_after: float = DELETED_AFTER
    waiting: bool = False
    """Whether the last call of `verdicts` left something to be judged."""
    _by_uid: dict[str, SessionResource] = field(default_factory=dict)
    _ordered: tuple[SessionResource, ...] | None = None
    _verdicts: _Verdicts | None = None
    _connected: dict[Kind, bool] = field(default_factory=dict)

    def sink(self, kind: Kind) -> KindSink:
        """The `Sink` for the watch of one kind."""
        return KindSink(self, kind)

    def connected(self, kind: Kind, connected: bool) -> None:
        """Whether changes are being followed; after a break everybody gets the full time again."""
        if connected and not self._connected.get(kind, True):
            for resource in self._by_uid.values():
                if resource.latest.kind is kind:
                    resource.seen = self.now()
        self._connected[kind] = connected

    def find(self, uid: str) -> SessionResource | None:
        """The resource of this UID."""
        return self._by_uid.get(uid)

    def all(self) -> tuple[SessionResource, ...]:
        """All resources, oldest first."""
        if self._ordered is None:
            ages = (
                (resource.latest.metadata.creation_timestamp, resource.uid, resource)
                for resource in self._by_uid.values()
            )
            self._ordered = tuple(resource for *_, resource in sorted(ages, key=lambda each: each[:2]))
        return self._ordered

    def stale(self, resource: SessionResource) -> bool:
        """Whether it has not been renewed for so long that it counts for nothing."""
        return self._idle(resource) > self.inert_after

    def expired(self) -> tuple[SessionResource, ...]:
        """Those that nobody has renewed for so long that they are to be deleted."""
        return tuple(resource for resource in self._by_uid.values() if self._idle(resource) > self.deleted_after)

    def verdicts(self, inventory: Inventory) -> dict[str, ResourceVerdict]:
        """What each resource is worth, by UID. Judges what was not judged yet, in part."""
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
        """Judge for `JUDGING` seconds, at least one, a namespace after the other: none waits for another's flood."""
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
        """Seconds without renewal, as far as renewals can be seen."""
        return self.now() - resource.seen if self._connected.get(resource.latest.kind, True) else 0.0

    # --- what the watches say ---------------------------------------------------------------------------------------

    def replace(self, kind: Kind, values: Iterable[KubeObject]) -> None:
        """These are all resources of a kind."""
        there = {resource.uid for value in values if (resource := self._take(kind, value)) is not None}
        for resource in [
            resource for resource in self._by_uid.values() if resource.latest.kind is kind and resource.uid not in there
        ]:
            self._forget(resource)

    def apply(self, kind: Kind, value: KubeObject) -> None:
        """One is new or has changed."""
        self._take(kind, value)

    def remove(self, kind: Kind, value: KubeObject) -> None:
        """One is gone."""
        resource = self._by_uid.get(str((value.get("metadata") or {}).get("uid")))
        if resource is not None and resource.latest.kind is kind:
            self._forget(resource)

    def _take(self, kind: Kind, value: KubeObject) -> SessionResource | None:
        try:
            latest = observe(kind, value)
        except ConfigurationError:
            return None  # without a name and a uid there is nothing to say it to
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


@dataclass(frozen=True, slots=True)
class _Verdicts:
    """Verdicts, and what they were made from."""

    inventory: Inventory
    stale: frozenset[str]
    found: dict[str, ResourceVerdict]


@dataclass(frozen=True, slots=True)
class KindSink:
    """A `kube.watch.Sink` that knows its kind."""

    resources: SessionResources
    kind: Kind

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
