"""Caches the objects of watched collections, and builds an `Inventory` from all of them.

Users of the cluster can change objects as often as the API server accepts, and every node receives each change. Work is
therefore deferred and shared: an event is only stored; objects are converted on the next read, once for any number of
events; a conversion with an equal result keeps the previous Python object; and a derived value is rebuilt only when one
of its inputs has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sidestep.config.field_error import FieldError
from sidestep.config.ownership import link_owners
from sidestep.kube.conversion import WORKLOADS, ObservedPod, trimmed
from sidestep.kube.endpoints import EndpointSlice, with_slices
from sidestep.kube.watch import KubeObject
from sidestep.model.inventory import Inventory, Secret
from sidestep.model.pod import Location, Pod, PodKey, Service
from sidestep.model.workload import Workload, WorkloadKey

T = TypeVar("T")


@dataclass(slots=True)
class CollectionCache:
    """A `Sink` that keeps the result of `convert` for each object, by UID. `revision` counts changed results."""

    convert: Callable[[KubeObject], Any]
    on_change: Callable[[], None]
    revision: int = 0
    _found: dict[str, Any] = field(default_factory=dict)
    _bad: dict[str, str] = field(default_factory=dict)
    _noted: dict[str, KubeObject] = field(default_factory=dict)
    """The newest version of each object received since the last conversion."""

    @property
    def found(self) -> dict[str, Any]:
        """Converted objects, by UID."""
        self._convert_noted()
        return self._found

    @property
    def bad(self) -> dict[str, str]:
        """Reasons why objects cannot be converted, by UID."""
        self._convert_noted()
        return self._bad

    def replace(self, values: list[KubeObject], /) -> None:
        """As Sink.replace."""
        there = {_identity(value): value for value in values}
        for identity in (self._found.keys() | self._bad.keys()) - there.keys():
            self._drop(identity)
        self._noted = there
        self._convert_noted()  # converts at once, because raw lists are large
        self.on_change()

    def apply(self, value: KubeObject, /) -> None:
        """As Sink.apply."""
        self._noted[_identity(value)] = value
        self.on_change()

    def remove(self, value: KubeObject, /) -> None:
        """As Sink.remove."""
        identity = _identity(value)
        self._noted.pop(identity, None)
        self._drop(identity)
        self.on_change()

    def _convert_noted(self) -> None:
        noted, self._noted = self._noted, {}
        for identity, value in noted.items():
            try:
                made = self.convert(trimmed(value))
            except FieldError as error:
                self._drop(identity)
                self._bad[identity] = f"{_named(value)}: {error.path}: {error}"
                continue
            self._bad.pop(identity, None)
            if self._found.get(identity) != made:
                self._found[identity] = made
                self.revision += 1

    def _drop(self, identity: str) -> None:
        self._bad.pop(identity, None)
        if self._found.pop(identity, None) is not None:
            self.revision += 1


class InventoryBuilder:
    """Builds inventories from collections, given by name. Unchanged objects yield the same inventory object."""

    def __init__(self, collections: Mapping[str, CollectionCache]) -> None:
        self._collections = collections
        self._made: dict[str, tuple[Hashable, Any]] = {}
        self._pods: dict[str, tuple[ObservedPod, Location | None, int, Pod]] = {}
        self._pods_revision = 0

    def inventory(self, locations: Mapping[str, Location], secrets: Mapping[tuple[str, str], str]) -> Inventory:
        """Return the inventory, with the locations (by pod UID) and versions of Secrets given."""
        pods = self._linked(locations)
        key = (self._pods_revision, *self._revisions(*self._collections), tuple(sorted(secrets.items())))
        return self._once("inventory", key, lambda: self._whole(pods, secrets))

    def _whole(self, pods: dict[PodKey, Pod], secrets: Mapping[tuple[str, str], str]) -> Inventory:
        key = (self._pods_revision, *self._revisions("services", "endpointslices"))
        return Inventory(
            pods=pods,
            services=self._once("services", key, lambda: self._services(pods)),
            secrets={name: Secret(*name, version=version) for name, version in secrets.items()},
            namespaces={each.name: each.annotations for each in self._all("namespaces")},
            nodes={each.name: each.annotations for each in self._all("nodes")},
            workloads=self._workloads(),
        )

    def _linked(self, locations: Mapping[str, Location]) -> dict[PodKey, Pod]:
        workloads = self._workloads()
        revision = sum(self._revisions(*(each.name for each in WORKLOADS)))
        found: dict[PodKey, Pod] = {}
        known, self._pods = self._pods, {}
        for seen in self._all("pods"):
            uid = seen.object.pod.uid
            location = locations.get(uid)
            before = known.get(uid)
            if before is None or before[0] is not seen or before[1] is not location or before[2] != revision:
                pod = link_owners(seen.object.pod, seen.object.owners, workloads)
                pod = replace(pod, location=replace(location or Location(), searched=True))
                if before is not None and before[3] == pod:
                    pod = before[3]
                else:
                    self._pods_revision += 1
                before = (seen, location, revision, pod)
            self._pods[uid] = before
            found[before[3].key] = before[3]
        if known.keys() - self._pods.keys():
            self._pods_revision += 1
        return found

    def _workloads(self) -> dict[WorkloadKey, Workload]:
        names = [each.name for each in WORKLOADS]
        return self._once(
            "workloads", self._revisions(*names), lambda: {each.key: each for name in names for each in self._all(name)}
        )

    def _services(self, pods: Mapping[PodKey, Pod]) -> tuple[Service, ...]:
        services = sorted(self._all("services"), key=lambda each: (each.namespace, each.name))
        slices: Iterable[EndpointSlice] = self._all("endpointslices")
        return with_slices(services, slices, pods)

    def _all(self, name: str) -> Iterable[Any]:
        return self._collections[name].found.values()

    def _revisions(self, *names: str) -> tuple[int, ...]:
        for name in names:
            self._collections[name].found  # noqa: B018 - converts, which updates the revision
        return tuple(self._collections[name].revision for name in names)

    def _once(self, what: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return the cached value of `what` while `key` is unchanged; otherwise call `make`."""
        known = self._made.get(what)
        if known is None or known[0] != key:
            known = self._made[what] = (key, make())
        found: T = known[1]
        return found


def _identity(value: KubeObject) -> str:
    metadata = value.get("metadata") or {}
    return str(metadata.get("uid") or f"{metadata.get('namespace')}/{metadata.get('name')}")


def _named(value: KubeObject) -> str:
    metadata = value.get("metadata") or {}
    return f"{value.get('kind') or 'object'} {metadata.get('namespace') or ''}/{metadata.get('name')}"
