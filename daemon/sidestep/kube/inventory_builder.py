"""Builds an `Inventory` from all cached collections.

A derived value is rebuilt only when one of its inputs has changed: unchanged objects yield the same inventory object.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from sidestep.config.ownership import link_owners
from sidestep.kube.collection_cache import CollectionCache
from sidestep.kube.config_maps import PolicyConfigMaps
from sidestep.kube.conversion import POLICIES, WORKLOADS, ObservedPod
from sidestep.kube.endpoints import EndpointSlice, with_slices
from sidestep.kube.policies import PolicyKey
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.inventory import ConfigMap, Inventory, Secret
from sidestep.model.pod import Location, Pod, PodKey, Service
from sidestep.model.workload import Workload, WorkloadKey

T = TypeVar("T")
Policies = tuple[tuple[InspectionPolicy, ...], dict[PolicyKey, str]]
"""Those that could be parsed, in their order, and why others could not."""
_OF_POLICIES = tuple(each.name for each in POLICIES)


class InventoryBuilder:
    """Builds inventories from collections, given by name. Unchanged objects yield the same inventory object."""

    def __init__(self, collections: Mapping[str, CollectionCache]) -> None:
        self._collections = collections
        self._made: dict[str, tuple[Hashable, Any]] = {}
        self._pods: dict[str, tuple[ObservedPod, Location | None, int, Pod]] = {}
        self._pods_revision = 0
        self._policies: Policies = ((), {})
        self._policies_revision = 0

    def inventory(
        self,
        locations: Mapping[str, Location],
        secrets: Mapping[tuple[str, str], str],
        config_maps: PolicyConfigMaps | None = None,
    ) -> Inventory:
        """Return the inventory, with the locations (by pod UID), versions of Secrets and ConfigMaps given."""
        pods = self._linked(locations)
        self._follow_policies()
        others = self._revisions(*(name for name in self._collections if name not in _OF_POLICIES))
        maps, revision = (config_maps.found, config_maps.revision) if config_maps is not None else ({}, 0)
        key = (self._pods_revision, self._policies_revision, revision, *others, tuple(sorted(secrets.items())))
        return self._once("inventory", key, lambda: self._whole(pods, secrets, maps))

    def _whole(
        self,
        pods: dict[PodKey, Pod],
        secrets: Mapping[tuple[str, str], str],
        config_maps: Mapping[tuple[str, str], ConfigMap],
    ) -> Inventory:
        key = (self._pods_revision, *self._revisions("services", "endpointslices"))
        return Inventory(
            pods=pods,
            services=self._once("services", key, lambda: self._services(pods)),
            secrets={name: Secret(*name, version=version) for name, version in secrets.items()},
            namespaces={each.name: each.annotations for each in self._all("namespaces")},
            namespace_labels={each.name: each.labels for each in self._all("namespaces")},
            nodes={each.name: each.annotations for each in self._all("nodes")},
            node_addresses={each.name: each.addresses for each in self._all("nodes")},
            workloads=self._workloads(),
            policies=self._policies[0],
            invalid_policies=self._policies[1],
            config_maps=config_maps,
        )

    def _follow_policies(self) -> None:
        """Take what is written in policies. Their statuses change far more often, and are no part of an inventory."""
        made = self._once("policies", self._revisions(*_OF_POLICIES), self._written_policies)
        if made != self._policies:
            self._policies = made
            self._policies_revision += 1

    def _written_policies(self) -> Policies:
        seen = [each for name in _OF_POLICIES for each in self._all(name)]
        parsed = sorted((each.policy for each in seen if each.policy is not None), key=lambda policy: policy.order)
        return tuple(parsed), {each.key: each.problem for each in seen if each.policy is None}

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
