"""Inventories from the cluster: the cached objects, joined with the locations of the pods on this node.

Changes that arrive together are read once (`gathering`). `PodLocations` finds the processes of the pods.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sidestep.aio.time_limit import time_limit
from sidestep.kube.api import Api
from sidestep.kube.cluster_cache import ClusterCache
from sidestep.kube.conversion import ObservedPod
from sidestep.kube.policies import ObservedPolicy
from sidestep.kube.processes import PodToLocate, locate_pods
from sidestep.kube.proxies import proxy_for
from sidestep.kube.secret_names import SecretName
from sidestep.kube.watch import WatchLimits
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.inventory import Secret
from sidestep.model.pod import Location
from sidestep.node.certificates.reader import ReadError
from sidestep.node.certificates.requests import ApiServer, ClusterSecret, Source
from sidestep.node.certificates.secret_advice import secret_advice
from sidestep.node.cluster.gathering import Gathering
from sidestep.node.cluster.pod_locations import PodLocations
from sidestep.node.manifests import Reading
from sidestep.observability.logs import get_logger

PAUSE = 0.03
"""Seconds for which changes are gathered after a quiet period."""
READINGS, BURST = 2.0, 20.0
"""Readings per second while changes keep arriving, and readings at once after a quiet period."""


class ClusterInventory:
    """An `InventorySource`. `service_account` is `namespace:name`, for error texts about Secrets."""

    def __init__(
        self,
        api: Api,
        *,
        node: str,
        service_account: str,
        on_crash: Callable[[str, BaseException], None],
        find: Callable[[dict[str, PodToLocate]], dict[str, Location]] = locate_pods,
        limits: WatchLimits | None = None,
    ) -> None:
        self._node = node
        proxy = proxy_for(api.access)
        self._server = ApiServer(
            host=api.access.host,
            port=api.access.port,
            base=api.access.base,
            ca_file=api.access.ca_file,
            token_file=api.access.token_file,
            proxy=proxy.url if proxy else "",
            proxy_authorization=proxy.authorization if proxy else "",
        )
        self._service_account = service_account
        self._news = asyncio.Event()
        self._cache = ClusterCache(
            api, node=node, on_change=self._news.set, on_crash=on_crash, limits=limits, service_account=service_account
        )
        self._gathering = Gathering(least=PAUSE, rate=READINGS, burst=BURST, now=time.monotonic())
        self._locations = PodLocations(find)
        self._last: Reading | None = None
        self._log = get_logger("cluster")

    async def load(self) -> Reading:
        """As InventorySource.load. Waits until everything has been listed once."""
        self._cache.start()
        while not self._cache.synced:
            await self._news.wait()
            self._news.clear()
        await self._locations.update(self._cache.pods_to_locate())
        self._last = self._reading()
        return self._last

    async def watch(self, on_reading: Callable[[Reading], None]) -> None:
        """As InventorySource.watch."""
        while True:
            try:
                async with time_limit(self._locations.patience):
                    await self._news.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(self._gathering.pause(time.monotonic()))
            self._news.clear()
            await self._locations.update(self._cache.pods_to_locate())
            began = time.thread_time()
            reading = self._reading()
            self._gathering.took(time.thread_time() - began)
            if reading != self._last:
                self._last = reading
                on_reading(reading)

    def want_secrets(self, names: frozenset[SecretName]) -> None:
        """As InventorySource.want_secrets."""
        self._cache.want_secrets(names)

    def secret_source(self, secret: Secret | None, namespace: str, name: str) -> Source:
        """As InventorySource.secret_source: the API server, which also knows whether the Secret exists."""
        del secret
        return ClusterSecret(namespace, name, self._server)

    def pods(self) -> tuple[ObservedPod, ...]:
        """Return the pods of this node as they are now."""
        return self._cache.pods()

    def policies(self) -> tuple[ObservedPolicy, ...]:
        """Return the inspection policies as resources, as they are now."""
        return self._cache.policies()

    async def aclose(self) -> None:
        """Stop watching."""
        await self._cache.aclose()

    @property
    def connected(self) -> bool:
        """Whether changes of the API server are being received."""
        return self._cache.connected

    # --- inside -----------------------------------------------------------------------------------------------------

    def _reading(self) -> Reading:
        subject = f"node {self._node}"
        conditions = [Condition(ConditionType.CLUSTER_UNREADABLE, subject, text) for text in self._cache.problems()]
        inventory = self._cache.inventory(self._locations.found)
        return Reading(inventory, conditions=tuple(conditions))

    def explain(self, namespace: str, secret: str, error: ReadError) -> str:
        """As InventorySource.explain, with the command that grants the missing permission."""
        if error.status not in {401, 403}:
            return f"Secret {namespace}/{secret} cannot be read: {error}"
        return (
            f"Secret {namespace}/{secret} may not be read; {secret_advice((namespace, secret), self._service_account)}"
        )
