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

from sidestep.kube.resources import DELETED_AFTER, INERT_AFTER, sight
from sidestep.kube.watch import KubeObject
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey
from sidestep.node.sessions.resource import Held, within_bounds
from sidestep.policy.conflicts import Claim, admit, claim_of
from sidestep.policy.workloads import pods_of

JUDGING = 0.02
"""Seconds that one call of `verdicts` may begin to judge resources in; what is left waits for the next."""


@dataclass(frozen=True, slots=True)
class Verdict:
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
class Registry:
    """All resources. `on_change` is called with the UID of one that came, went or changed in a way that matters to its
    status - not when one is merely renewed, unless it was inert; `on_gone` with what went, or was overruled."""

    now: Callable[[], float]
    on_change: Callable[[str], None] = _nobody
    on_gone: Callable[[Held], None] = lambda _held: None
    inert_after: float = INERT_AFTER
    deleted_after: float = DELETED_AFTER
    waiting: bool = False
    """Whether the last call of `verdicts` left something to be judged."""
    _held: dict[str, Held] = field(default_factory=dict)
    _ordered: tuple[Held, ...] | None = None
    _verdicts: _Verdicts | None = None
    _connected: dict[Kind, bool] = field(default_factory=dict)

    def sink(self, kind: Kind) -> KindSink:
        """The `Sink` for the watch of one kind."""
        return KindSink(self, kind)

    def connected(self, kind: Kind, connected: bool) -> None:
        """Whether changes are being followed; after a break everybody gets the full time again."""
        if connected and not self._connected.get(kind, True):
            for held in self._held.values():
                if held.latest.kind is kind:
                    held.seen = self.now()
        self._connected[kind] = connected

    def find(self, uid: str) -> Held | None:
        """The resource of this UID."""
        return self._held.get(uid)

    def all(self) -> tuple[Held, ...]:
        """All resources, oldest first."""
        if self._ordered is None:
            ages = ((held.latest.metadata.creation_timestamp, held.uid, held) for held in self._held.values())
            self._ordered = tuple(held for *_, held in sorted(ages, key=lambda each: each[:2]))
        return self._ordered

    def stale(self, held: Held) -> bool:
        """Whether it has not been renewed for so long that it counts for nothing."""
        return self._idle(held) > self.inert_after

    def expired(self) -> tuple[Held, ...]:
        """Those that nobody has renewed for so long that they are to be deleted."""
        return tuple(held for held in self._held.values() if self._idle(held) > self.deleted_after)

    def verdicts(self, inventory: Inventory) -> dict[str, Verdict]:
        """What each resource is worth, by UID. Judges what was not judged yet, in part."""
        stale = frozenset(held.uid for held in self._held.values() if self.stale(held))
        known = self._verdicts
        if known is None or known.inventory is not inventory or known.stale != stale or self.waiting:
            known = self._verdicts = _Verdicts(inventory, stale, self._decide(inventory, stale))
        return known.found

    def _decide(self, inventory: Inventory, stale: frozenset[str]) -> dict[str, Verdict]:
        found: dict[str, Verdict] = {}
        living: list[Held] = []
        for held in self.all():
            if held.problem:
                found[held.uid] = Verdict(standing=False, refusal=held.problem)
            elif held.uid in stale:
                found[held.uid] = Verdict(standing=False, stale=True)
            else:
                living.append(held)
        counted, beyond = within_bounds(living)
        found |= {uid: Verdict(standing=False, refusal=refusal) for uid, refusal in beyond.items()}
        self._judge(held for held in counted if not held.judged)
        self.waiting = False
        claims: list[Claim] = []
        for held in counted:
            if held.problem:
                found[held.uid] = Verdict(standing=False, refusal=held.problem)
            elif held.intercept is None:
                found[held.uid] = Verdict(standing=False, waiting=True)
                self.waiting = True
            else:
                try:
                    claims.append(claim_of(held.intercept, inventory))
                except RefusedError as error:
                    pods = _pods(held.intercept, inventory)
                    found[held.uid] = Verdict(standing=False, refusal=str(error), pods=pods)
        standing, refused = admit(claims)
        for claim in standing:
            found[claim.intercept.uid] = Verdict(standing=True, pods=_pods(claim.intercept, inventory))
        for claim, refusal in refused:
            pods = _pods(claim.intercept, inventory)
            found[claim.intercept.uid] = Verdict(standing=False, refusal=str(refusal), pods=pods)
        return found

    def _judge(self, candidates: Iterable[Held]) -> None:
        """Judge for `JUDGING` seconds, at least one, a namespace after the other: none waits for another's flood."""
        queues: dict[str, deque[Held]] = {}
        for held in candidates:
            queues.setdefault(held.latest.metadata.namespace, deque()).append(held)
        until = self.now() + JUDGING
        while queues:
            for namespace in tuple(queues):
                queues[namespace].popleft().judge()
                if not queues[namespace]:
                    del queues[namespace]
                if self.now() >= until:
                    return

    def _idle(self, held: Held) -> float:
        """Seconds without renewal, as far as renewals can be seen."""
        return self.now() - held.seen if self._connected.get(held.latest.kind, True) else 0.0

    # --- what the watches say ---------------------------------------------------------------------------------------

    def replace(self, kind: Kind, values: Iterable[KubeObject]) -> None:
        """These are all resources of a kind."""
        there = {held.uid for value in values if (held := self._take(kind, value)) is not None}
        for held in [held for held in self._held.values() if held.latest.kind is kind and held.uid not in there]:
            self._forget(held)

    def apply(self, kind: Kind, value: KubeObject) -> None:
        """One is new or has changed."""
        self._take(kind, value)

    def remove(self, kind: Kind, value: KubeObject) -> None:
        """One is gone."""
        held = self._held.get(str((value.get("metadata") or {}).get("uid")))
        if held is not None and held.latest.kind is kind:
            self._forget(held)

    def _take(self, kind: Kind, value: KubeObject) -> Held | None:
        try:
            latest = sight(kind, value)
        except ConfigurationError:
            return None  # without a name and a uid there is nothing to say it to
        held = self._held.get(latest.metadata.uid)
        if held is None:
            held = self._held[latest.metadata.uid] = Held(latest, self.now(), latest.digest, latest)
            self._ordered = None
            matters = True
        else:
            before, held.latest = held.latest, latest
            matters = (latest.status, latest.digest) != (before.status, before.digest)
            if latest.renewed != before.renewed:
                matters |= self.stale(held)
                held.seen = self.now()
        if not held.problem and latest.status.spec_digest not in {"", held.digest}:
            held.overrule()
            self._verdicts = None
            self.on_gone(held)
        if held.pinned is not None:
            self._verdicts = None
        if matters:
            self.on_change(held.uid)
        return held

    def _forget(self, held: Held) -> None:
        del self._held[held.uid]
        self._ordered = self._verdicts = None
        self.on_gone(held)
        self.on_change(held.uid)


@dataclass(frozen=True, slots=True)
class _Verdicts:
    """Verdicts, and what they were made from."""

    inventory: Inventory
    stale: frozenset[str]
    found: dict[str, Verdict]


@dataclass(frozen=True, slots=True)
class KindSink:
    """A `kube.watch.Sink` that knows its kind."""

    registry: Registry
    kind: Kind

    def replace(self, values: list[KubeObject], /) -> None:
        """As Sink.replace."""
        self.registry.replace(self.kind, values)

    def apply(self, value: KubeObject, /) -> None:
        """As Sink.apply."""
        self.registry.apply(self.kind, value)

    def remove(self, value: KubeObject, /) -> None:
        """As Sink.remove."""
        self.registry.remove(self.kind, value)


def _pods(intercept: Intercept, inventory: Inventory) -> tuple[PodKey, ...]:
    try:
        return tuple(pod.key for pod in pods_of(intercept, inventory))
    except RefusedError:
        return ()
