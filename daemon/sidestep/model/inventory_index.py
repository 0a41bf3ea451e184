"""Lookups over one inventory whose cost does not grow with the number of pods, Services and workloads in it.

Every plan asks, for every intercept, who owns a pod, which pods a workload has and which Services select a pod. The
index is built by the first question and belongs to its inventory: it is never changed, only replaced with it.

`memos` hold what other layers derive from the inventory alone, so that it ends with the inventory. Entries of a memo
are weighed: past `MAX_WEIGHT` all are forgotten, because users choose some of the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from sidestep.model.pod import Pod, PodKey, Service
    from sidestep.model.workload import Workload, WorkloadKey

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_WEIGHT = 65_536
"""Sum of the weights of a memo's entries; the unit is about a hundred bytes."""


class Memo(Generic[K, V]):
    """Values by key, forgotten all at once when they weigh too much."""

    def __init__(self, max_weight: int = MAX_WEIGHT) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._values: dict[K, V] = {}

    def get(self, key: K, make: Callable[[], V], *, weight: Callable[[V], int] = lambda _value: 1) -> V:
        """The value of a key; made, and weighed, when it is not known."""
        found = self._values.get(key)
        if found is None:
            found = make()
            self._weight += 1 + weight(found)
            if self._weight > self._max_weight:
                self._values.clear()
                self._weight = 1 + weight(found)
            self._values[key] = found
        return found


class InventoryIndex:
    """The index of one inventory. Pods that have ended are in none of these lookups."""

    def __init__(
        self,
        pods: Mapping[PodKey, Pod],
        services: Iterable[Service],
        workloads: Mapping[WorkloadKey, Workload],
    ) -> None:
        self._pods = pods
        self._services = services
        self._workloads = workloads
        self._services_of: dict[PodKey, tuple[Pod, tuple[Service, ...]]] = {}
        self.memos: dict[str, Memo[Any, Any]] = {}
        """By the layer that derives the values."""

    @cached_property
    def living(self) -> tuple[Pod, ...]:
        """All pods that have not ended, ordered by key."""
        return tuple(self._pods[key] for key in sorted(self._pods) if not self._pods[key].ended)

    def covered(self, namespace: str, kind: str, name: str) -> tuple[Pod, ...]:
        """The pods of a workload (its own pods' owners say so), or the pod of kind "pod"; ordered by key."""
        return tuple(self._covered.get((namespace, kind, name), ()))

    def kinds(self, namespace: str, name: str) -> frozenset[str]:
        """The kinds that have an object of this name, owners known from their pods only included."""
        return frozenset(self._kinds.get((namespace, name), ()))

    def names(self, namespace: str) -> tuple[str, ...]:
        """`kind/name` of all that can be intercepted in a namespace, sorted."""
        return self._names.get(namespace, ())

    def services_of(self, pod: Pod) -> tuple[Service, ...]:
        """Services that select the pod, ordered by name. A Service without selector selects nothing."""
        known = self._services_of.get(pod.key)
        if known is not None and known[0] is pod:
            return known[1]
        namespace = pod.key.namespace
        found = {
            id(service): service
            for label in pod.labels.items()
            for service in self._by_label.get((namespace, *label), ())
            if all(pod.labels.get(key) == value for key, value in service.selector.items())
        }
        found |= {id(service): service for service in self._by_pod.get(pod.key, ())}
        selected = tuple(sorted(found.values(), key=lambda service: service.name))
        if self._pods.get(pod.key) is pod:
            self._services_of[pod.key] = (pod, selected)
        return selected

    # --- inside -----------------------------------------------------------------------------------------------------

    @cached_property
    def _covered(self) -> dict[tuple[str, str, str], list[Pod]]:
        found: dict[tuple[str, str, str], list[Pod]] = {}
        for pod in self.living:
            namespace = pod.key.namespace
            # One controller may stand in the chain of owners twice; the pod counts once.
            for kind, name in {("pod", pod.key.name): 0} | {(each.kind, each.name): 0 for each in pod.owners}:
                found.setdefault((namespace, kind, name), []).append(pod)
        return found

    @cached_property
    def _kinds(self) -> dict[tuple[str, str], set[str]]:
        found: dict[tuple[str, str], set[str]] = {}
        for key in self._workloads:
            found.setdefault((key.namespace, key.name), set()).add(key.kind)
        for namespace, kind, name in self._covered:
            found.setdefault((namespace, name), set()).add(kind)
        return found

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for (namespace, name), kinds in self._kinds.items():
            found.setdefault(namespace, []).extend(f"{kind}/{name}" for kind in kinds)
        return {namespace: tuple(sorted(texts)) for namespace, texts in found.items()}

    @cached_property
    def _by_label(self) -> dict[tuple[str, str, str], list[Service]]:
        """Services under the first label that they select by: a pod without it is none of theirs."""
        found: dict[tuple[str, str, str], list[Service]] = {}
        for service in self._services:
            for key, value in service.selector.items():
                found.setdefault((service.namespace, key, value), []).append(service)
                break
        return found

    @cached_property
    def _by_pod(self) -> dict[PodKey, list[Service]]:
        """Services under the pods that are given to them."""
        found: dict[PodKey, list[Service]] = {}
        for service in self._services:
            for key in service.pods:
                if key.namespace == service.namespace:
                    found.setdefault(key, []).append(service)
        return found
