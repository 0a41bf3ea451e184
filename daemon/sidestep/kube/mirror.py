"""A mirror of what the node daemon needs to know of the cluster, kept by watches, as one `Inventory`.

What is watched, and how little of it:

    pods             of this node only (field selector), whole: ports, probes, addresses, container ids
    services         whole; EndpointSlices only those that no selector made (a selector's repeat what the Service says)
    workloads        their metadata only; other kinds are known by name, through ownerReferences
    namespaces       their metadata only
    node             this one only
    secrets          never; that they change, for the namespaces of those that `want_secrets` names (`secret_names`)

`conversion` says what is kept of them. An object that cannot be understood is left out and is a problem. No location is
read from annotations, which users of the cluster write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sidestep.aio.tasks import Tasks
from sidestep.config.field_error import FieldError
from sidestep.config.ownership import link_owners
from sidestep.kube.api import Api
from sidestep.kube.conversion import (
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    NOT_BY_SELECTOR,
    PODS,
    SERVICES,
    WORKLOADS,
    Collection,
    SeenPod,
    trimmed,
)
from sidestep.kube.endpoints import EndpointSlice, with_slices
from sidestep.kube.processes import Wanted
from sidestep.kube.secret_names import SecretName, SecretNames
from sidestep.kube.watch import KubeObject, Watch, WatchLimits
from sidestep.model.inventory import Inventory, Secret, Workload, WorkloadKey
from sidestep.model.pod import Location, Pod, PodKey, Service


@dataclass(slots=True)
class _Collection:
    """A `Sink` that keeps what `convert` makes of each object, by UID."""

    convert: Callable[[KubeObject], Any]
    on_change: Callable[[], None]
    found: dict[str, Any] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)

    def replace(self, values: list[KubeObject], /) -> None:
        """As Sink.replace."""
        self.found.clear()
        self.bad.clear()
        for value in values:
            self._keep(value)
        self.on_change()

    def apply(self, value: KubeObject, /) -> None:
        """As Sink.apply."""
        before = self.found.get(_identity(value))
        self._keep(value)
        if self.found.get(_identity(value)) != before:
            self.on_change()

    def remove(self, value: KubeObject, /) -> None:
        """As Sink.remove."""
        self.bad.pop(_identity(value), None)
        if self.found.pop(_identity(value), None) is not None:
            self.on_change()

    def _keep(self, value: KubeObject) -> None:
        identity = _identity(value)
        try:
            self.found[identity] = self.convert(trimmed(value))
            self.bad.pop(identity, None)
        except FieldError as error:
            self.found.pop(identity, None)
            self.bad[identity] = f"{_named(value)}: {error.path}: {error}"


class Mirror:
    """Watches for `node`. `on_change` is called, in the event loop, whenever `inventory` may be another."""

    def __init__(
        self,
        api: Api,
        *,
        node: str,
        on_change: Callable[[], None],
        on_crash: Callable[[str, BaseException], None] | None = None,
        limits: WatchLimits | None = None,
    ) -> None:
        self._api = api
        self._limits = limits or WatchLimits()
        self._on_change = on_change
        self._tasks = Tasks("mirror", on_crash=on_crash)
        self._secrets = SecretNames(api, tasks=self._tasks, on_change=on_change, limits=self._limits)
        self._watches: dict[str, Watch] = {}
        self._sinks: dict[str, _Collection] = {}
        own_pods, own_node = {"fieldSelector": f"spec.nodeName={node}"}, {"fieldSelector": f"metadata.name={node}"}
        self._add(PODS, own_pods)
        self._add(SERVICES)
        self._add(ENDPOINT_SLICES, {"labelSelector": NOT_BY_SELECTOR})
        self._add(NAMESPACES)
        self._add(NODES, own_node)
        for collection in WORKLOADS:
            self._add(collection)

    def start(self) -> None:
        """Begin to watch."""
        for name, watch in self._watches.items():
            self._tasks.start(watch.run(), name=name)

    async def aclose(self) -> None:
        """Watch no more."""
        await self._tasks.aclose()

    @property
    def synced(self) -> bool:
        """Whether everything but Secrets has been read once."""
        return all(watch.synced for watch in self._watches.values())

    @property
    def connected(self) -> bool:
        """Whether changes of pods are being followed now."""
        return self._watches["pods"].connected

    def problems(self) -> tuple[str, ...]:
        """What cannot be read and why, sorted; Secrets not among them."""
        found = [
            f"{name} cannot be watched: {watch.problem}"
            for name, watch in self._watches.items()
            if watch.problem is not None
        ]
        for sink in self._sinks.values():
            found += sink.bad.values()
        return tuple(sorted(found))

    def pods(self) -> tuple[SeenPod, ...]:
        """The pods of this node."""
        return tuple(self._sinks["pods"].found.values())

    def wanted(self) -> dict[str, Wanted]:
        """The pods whose processes are to be looked for, by UID: those that run here in a network of their own."""
        return {
            seen.object.pod.uid: Wanted(seen.object.pod.uid, seen.containers)
            for seen in self.pods()
            if not seen.object.pod.ended and not seen.object.pod.host_network and seen.object.pod.ips
        }

    def inventory(self, locations: Mapping[str, Location]) -> Inventory:
        """Everything, with the locations that are known by pod UID."""
        workloads: dict[WorkloadKey, Workload] = {
            workload.key: workload
            for collection in WORKLOADS
            for workload in self._sinks[collection.name].found.values()
        }
        pods: dict[PodKey, Pod] = {}
        for seen in self.pods():
            pod = link_owners(seen.object.pod, seen.object.owners, workloads)
            pods[pod.key] = replace(pod, location=replace(locations.get(pod.uid, Location()), searched=True))
        services: list[Service] = sorted(
            self._sinks["services"].found.values(), key=lambda each: (each.namespace, each.name)
        )
        slices: Iterable[EndpointSlice] = self._sinks["endpointslices"].found.values()
        secrets = {name: Secret(*name, version=version) for name, version in self._secrets.versions().items()}
        return Inventory(
            pods=pods,
            services=with_slices(services, slices, pods),
            secrets=secrets,
            namespaces={each.name: each.annotations for each in self._sinks["namespaces"].found.values()},
            nodes={each.name: each.annotations for each in self._sinks["nodes"].found.values()},
            workloads=workloads,
        )

    def want_secrets(self, names: frozenset[SecretName]) -> None:
        """Know the versions of these Secrets and no others."""
        self._secrets.want(names)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _add(self, collection: Collection, query: Mapping[str, str] | None = None) -> None:
        sink = self._sinks[collection.name] = _Collection(collection.convert, self._on_change)
        self._watches[collection.name] = Watch(
            self._api,
            collection.scoped(),
            sink,
            query=query or {},
            metadata_only=collection.metadata_only,
            on_state=self._on_change,
            limits=self._limits,
        )


def _identity(value: KubeObject) -> str:
    metadata = value.get("metadata") or {}
    return str(metadata.get("uid") or f"{metadata.get('namespace')}/{metadata.get('name')}")


def _named(value: KubeObject) -> str:
    metadata = value.get("metadata") or {}
    return f"{value.get('kind') or 'object'} {metadata.get('namespace') or ''}/{metadata.get('name')}"
