"""The Intercepts and Wiretaps of the cluster, as this node holds them: what was asked for, whether it lives, who wins.

A resource is *pinned* when it is first seen: the spec and the public key of that moment are what counts for its UID, so
that nobody who may change a resource later can take over a session that runs. It *lives* while its `renewTime` keeps
changing. The time is measured here, from one change to the next, so that no clock but ours matters; it stands still
while the API server cannot be reached, since then nobody's renewals are seen.

Conflicts are decided among the living, oldest first, by the resources alone: every node comes to the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sidestep.kube.resources import DELETED_AFTER, INERT_AFTER, Resource, read
from sidestep.kube.watch import KubeObject
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.inventory import Inventory
from sidestep.model.pod import PodKey
from sidestep.policy.conflicts import Claim, admit, claim_of
from sidestep.policy.workloads import pods_of
from sidestep.tunnel.proof import parse_public

CHANGED = "its spec was changed after it began, which is not followed: end it and create a new one"


@dataclass(slots=True)
class Held:
    """One resource. `latest` is what was read last, `intercept` and `key` what was pinned; `problem` is final."""

    latest: Resource
    intercept: Intercept | None
    key: bytes
    problem: str
    seen: float
    """When it was last renewed, by our clock."""

    @property
    def uid(self) -> str:
        """The UID of the resource."""
        return self.latest.metadata.uid

    @property
    def changed(self) -> bool:
        """Whether the resource asks for something else than what was pinned."""
        return self.latest.intercept != self.intercept and not self.problem


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a resource is worth now: `standing`, or why not. `pods` are those of this node that it covers."""

    standing: bool
    refusal: str = ""
    stale: bool = False
    pods: tuple[PodKey, ...] = ()


@dataclass(slots=True)
class Registry:
    """All resources. `on_change` is called when one came, went, was renewed or changed; `on_gone` with what went."""

    now: Callable[[], float]
    on_change: Callable[[], None] = lambda: None
    on_gone: Callable[[Held], None] = lambda _held: None
    inert_after: float = INERT_AFTER
    deleted_after: float = DELETED_AFTER
    _held: dict[str, Held] = field(default_factory=dict)
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
        return tuple(sorted(self._held.values(), key=lambda held: (held.latest.metadata.creation_timestamp, held.uid)))

    def stale(self, held: Held) -> bool:
        """Whether it has not been renewed for so long that it counts for nothing."""
        return self._idle(held) > self.inert_after

    def expired(self) -> tuple[Held, ...]:
        """Those that nobody has renewed for so long that they are to be deleted."""
        return tuple(held for held in self._held.values() if self._idle(held) > self.deleted_after)

    def verdicts(self, inventory: Inventory) -> dict[str, Verdict]:
        """What each resource is worth, by UID."""
        found: dict[str, Verdict] = {}
        claims: list[Claim] = []
        for held in self.all():
            intercept = held.intercept
            if intercept is None or held.problem:
                found[held.uid] = Verdict(standing=False, refusal=held.problem)
            elif self.stale(held):
                found[held.uid] = Verdict(standing=False, stale=True)
            else:
                try:
                    claims.append(claim_of(intercept, inventory))
                except RefusedError as error:
                    found[held.uid] = Verdict(standing=False, refusal=str(error), pods=_pods(intercept, inventory))
        standing, refused = admit(claims)
        for claim in standing:
            found[claim.intercept.uid] = Verdict(standing=True, pods=_pods(claim.intercept, inventory))
        for claim, refusal in refused:
            pods = _pods(claim.intercept, inventory)
            found[claim.intercept.uid] = Verdict(standing=False, refusal=str(refusal), pods=pods)
        return found

    def _idle(self, held: Held) -> float:
        """Seconds without renewal, as far as renewals can be seen."""
        return self.now() - held.seen if self._connected.get(held.latest.kind, True) else 0.0

    # --- what the watches say ---------------------------------------------------------------------------------------

    def replace(self, kind: Kind, values: Iterable[KubeObject]) -> None:
        """These are all resources of a kind."""
        there = {held.uid for value in values if (held := self._take(kind, value)) is not None}
        for held in [held for held in self._held.values() if held.latest.kind is kind and held.uid not in there]:
            self._forget(held)
        self.on_change()

    def apply(self, kind: Kind, value: KubeObject) -> None:
        """One is new or has changed."""
        self._take(kind, value)
        self.on_change()

    def remove(self, kind: Kind, value: KubeObject) -> None:
        """One is gone."""
        held = self._held.get(str((value.get("metadata") or {}).get("uid")))
        if held is not None and held.latest.kind is kind:
            self._forget(held)
            self.on_change()

    def _take(self, kind: Kind, value: KubeObject) -> Held | None:
        try:
            latest = read(kind, value)
        except ConfigurationError:
            return None  # without a name and a uid there is nothing to say it to
        held = self._held.get(latest.metadata.uid)
        if held is None:
            held = self._held[latest.metadata.uid] = _pinned(latest, self.now())
        elif latest.renewed != held.latest.renewed:
            held.seen = self.now()
        held.latest = latest
        return held

    def _forget(self, held: Held) -> None:
        del self._held[held.uid]
        self.on_gone(held)


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


def _pinned(latest: Resource, now: float) -> Held:
    problem, key = latest.problem, b""
    if not problem:
        try:
            key = parse_public(latest.public_key)
        except (ConfigurationError, RefusedError) as error:
            problem = str(error)
    return Held(latest, latest.intercept, key, problem, now)


def _pods(intercept: Intercept, inventory: Inventory) -> tuple[PodKey, ...]:
    try:
        return tuple(pod.key for pod in pods_of(intercept, inventory))
    except RefusedError:
        return ()
