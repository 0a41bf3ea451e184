"""Cache of the cluster state that one node daemon needs, kept current by watches, as one `Inventory`.

What is watched:

    pods             those of this node (field selector), complete: ports, probes, addresses, container ids
    services         complete; of EndpointSlices those without selector (the others repeat what the Service defines)
    workloads        metadata only; other kinds are known by name, through ownerReferences
    namespaces       metadata only
    node             this one only
    policies         complete; not being installed is no problem (`optional`)
    secrets          no data; only that they change, in the namespaces given to `want_secrets` (`secret_names`)

ConfigMaps that policies name are not watched but read (`config_maps`).

`conversion` defines which parts are kept. An object that cannot be converted is left out and reported as a problem.
Locations are never read from annotations, which users of the cluster write. `inventory_builder` decides when a value is
rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sidestep.aio.tasks import Tasks
from sidestep.kube.api import Api
from sidestep.kube.collection_cache import CollectionCache
from sidestep.kube.config_maps import PolicyConfigMaps
from sidestep.kube.conversion import (
    ENDPOINT_SLICES,
    NAMESPACES,
    NODES,
    NOT_BY_SELECTOR,
    PODS,
    POLICIES,
    SERVICES,
    WORKLOADS,
    Collection,
    ObservedPod,
)
from sidestep.kube.inventory_builder import InventoryBuilder
from sidestep.kube.policies import ObservedPolicy
from sidestep.kube.processes import PodToLocate
from sidestep.kube.secret_names import SecretName, SecretNames
from sidestep.kube.watch import Watch, WatchLimits
from sidestep.model.inventory import Inventory
from sidestep.model.pod import Location


class ClusterCache:
    """Watches the objects relevant to `node`. Calls `on_change`, in the event loop, whenever `inventory` may have
    changed.
    """

    def __init__(
        self,
        api: Api,
        *,
        node: str,
        on_change: Callable[[], None],
        on_crash: Callable[[str, BaseException], None] | None = None,
        limits: WatchLimits | None = None,
        service_account: str = "sidestep:sidestep-node",
    ) -> None:
        self._api = api
        self._limits = limits or WatchLimits()
        self._on_change = on_change
        self._tasks = Tasks("mirror", on_crash=on_crash)
        self._secrets = SecretNames(api, tasks=self._tasks, on_change=on_change, limits=self._limits)
        self._config_maps = PolicyConfigMaps(
            api, tasks=self._tasks, on_change=on_change, service_account=service_account
        )
        self._watches: dict[str, Watch] = {}
        self._sinks: dict[str, CollectionCache] = {}
        self._joined = InventoryBuilder(self._sinks)
        own_pods, own_node = {"fieldSelector": f"spec.nodeName={node}"}, {"fieldSelector": f"metadata.name={node}"}
        self._add(PODS, own_pods)
        self._add(SERVICES)
        self._add(ENDPOINT_SLICES, {"labelSelector": NOT_BY_SELECTOR})
        self._add(NAMESPACES)
        self._add(NODES, own_node)
        for collection in (*WORKLOADS, *POLICIES):
            self._add(collection)

    def start(self) -> None:
        """Start watching."""
        for name, watch in self._watches.items():
            self._tasks.start(watch.run(), name=name)

    async def aclose(self) -> None:
        """Stop watching."""
        await self._tasks.aclose()

    @property
    def synced(self) -> bool:
        """Whether everything except Secrets has been listed once."""
        return all(watch.synced for watch in self._watches.values())

    @property
    def connected(self) -> bool:
        """Whether the watch of pods is connected."""
        return self._watches["pods"].connected

    def problems(self) -> tuple[str, ...]:
        """Return what cannot be read and why, sorted; without Secrets."""
        found = [
            f"{name} cannot be watched: {watch.problem}"
            for name, watch in self._watches.items()
            if watch.problem is not None
        ]
        for sink in self._sinks.values():
            found += sink.bad.values()
        return tuple(sorted(found))

    def pods(self) -> tuple[ObservedPod, ...]:
        """Return the pods of this node."""
        return tuple(self._sinks["pods"].found.values())

    def policies(self) -> tuple[ObservedPolicy, ...]:
        """Return the inspection policies as they are now; an inventory has what is parsed of them."""
        return tuple(each for name in POLICIES for each in self._sinks[name.name].found.values())

    def pods_to_locate(self) -> dict[str, PodToLocate]:
        """Return the pods whose processes must be found, by UID: those running in a network namespace of their own."""
        return {
            seen.object.pod.uid: PodToLocate(seen.object.pod.uid, seen.containers)
            for seen in self.pods()
            if not seen.object.pod.ended and not seen.object.pod.host_network and seen.object.pod.ips
        }

    def inventory(self, locations: Mapping[str, Location]) -> Inventory:
        """Return the current inventory, with the given locations by pod UID."""
        found = self._joined.inventory(locations, self._secrets.versions(), self._config_maps)
        named = (each for policy in found.policies for each in policy.texts)
        self._config_maps.want(frozenset((each.namespace, each.name) for each in named))
        return found

    def want_secrets(self, names: frozenset[SecretName]) -> None:
        """Watch the versions of exactly these Secrets."""
        self._secrets.want(names)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _add(self, collection: Collection, query: Mapping[str, str] | None = None) -> None:
        sink = self._sinks[collection.name] = CollectionCache(collection.convert, self._on_change)
        self._watches[collection.name] = Watch(
            self._api,
            collection.scoped(),
            sink,
            query=query or {},
            metadata_only=collection.metadata_only,
            optional=collection.optional,
            on_state=self._on_change,
            limits=self._limits,
        )
