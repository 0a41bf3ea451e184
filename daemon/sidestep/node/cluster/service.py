"""The cluster part of the node daemon: resources, tunnels, statuses, Events.

    source          the inventory, from the API server (`cluster.inventory`)
    resources       Intercepts, Wiretaps, Captures: which live, which stand (`sessions.resources`)
    tunnels         sessions that prove to belong to one of them (`tunnel_server`)
    publishing      this node's entry in the status of each resource whose pods it has (`publisher`)
    policies        the same for inspection policies (`policy_publisher`)
    gates           readiness gates of pods that wait until they are inspected (`readiness_gates`)

A resource alone steers nothing: an intercept is served while it stands, its spec is accepted (`sessions.resource`)
*and* its session has a tunnel to this node. The status tells the CLI which daemons to connect to and which certificate
to expect.

Changes are gathered. A round looks only at resources that may need it: those that changed, whose verdict changed, or
that are due; all of them after a change of the node. Writes of one resource's status are limited as well.

During an upgrade two daemons run on a node: the one started later writes the node's entry. At the end a daemon removes
the entries that are still its own.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import random
import time
from collections import deque
from collections.abc import Callable, Mapping

from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.config.node_options import NodeOptions, PodIdentity
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.policies import DaemonEntry as PolicyDaemonEntry
from sidestep.kube.resources import (
    DaemonEntry,
    collection_path,
    deletion,
    micro_time,
)
from sidestep.kube.session_specs import DEFINITIONS
from sidestep.kube.watch import Watch
from sidestep.model.errors import ClusterError, ConfigurationError
from sidestep.model.intercept import Intercept, SessionKind
from sidestep.node.api.health import Addresses, HealthServer
from sidestep.node.cluster.announcer import Announcer
from sidestep.node.cluster.capture_events import CaptureEvents
from sidestep.node.cluster.gathering import Gathering
from sidestep.node.cluster.inventory import ClusterInventory
from sidestep.node.cluster.policy_publisher import PolicyPublisher
from sidestep.node.cluster.publisher import Publisher, PublishState
from sidestep.node.cluster.readiness_gates import ReadinessGates
from sidestep.node.cluster.tunnel_server import TunnelServer
from sidestep.node.conditions import Conditions
from sidestep.node.controller import Controller
from sidestep.node.records.alert_notes import AlertNotes
from sidestep.node.sessions.node_view import NodeView
from sidestep.node.sessions.registry import SessionRegistry
from sidestep.node.sessions.resource import SessionResource
from sidestep.node.sessions.resources import ResourceVerdict, SessionResources
from sidestep.observability.logs import get_logger
from sidestep.tunnel.node_tls import NodeTls, make_node_tls

PAUSE = 0.05
"""Seconds for which changes are gathered before statuses are written."""
TICK = 1.0
"""Seconds between two checks of what depends on time only."""
SPREAD = 10.0
"""Jitter, in seconds, for work that any one node may do."""
ROUNDS, BURST = 4.0, 20.0
"""Rounds per second while changes keep arriving, and rounds at once after a quiet period."""
REFUSED = frozenset({400, 413, 422})
"""HTTP statuses with which the API server rejects one object, such as one that newer definitions do not permit."""
REFUSED_AGAIN = 10.0
"""Seconds before the status of such an object is written again."""
FAREWELL = 3.0
"""Seconds for removing entries at the end."""


_NO_VERDICT = ResourceVerdict(standing=False)


class ClusterService:
    """Lifecycle: create, `start`, `connect`, `run`; at the end `withdraw`, then `aclose`."""

    def __init__(
        self,
        access: ClusterAccess,
        options: NodeOptions,
        *,
        on_crash: Callable[[str, BaseException], None],
        now: Callable[[], float],
        node_addresses: Addresses = tuple,
    ) -> None:
        pod = options.pod or PodIdentity(access.namespace, options.node_name)
        self._api = Api(access)
        self._node = options.node_name
        self._now = now
        self._on_crash = on_crash
        self._tls: NodeTls = make_node_tls()
        self._news = asyncio.Event()
        self._gathering = Gathering(least=PAUSE, rate=ROUNDS, burst=BURST, now=now())
        self._dirty: set[str] = set()
        self._all_dirty = True
        self._basis: object = None
        self._tasks = Tasks("cluster", on_crash=on_crash)
        self._progress: dict[str, PublishState] = {}
        self._standing: frozenset[str] = frozenset()
        self._watches: dict[SessionKind, Watch] = {}
        self._stopping = False
        self._log = get_logger("cluster")
        self.source = ClusterInventory(
            self._api,
            node=self._node,
            service_account=f"{pod.namespace}:{pod.service_account}",
            on_crash=on_crash,
        )
        self._captures = CaptureEvents(self._api, node=self._node)
        self.resources = SessionResources(now=now, on_change=self._resource_changed, on_gone=self._gone)
        self.health = HealthServer(port=options.health_port, on_crash=on_crash, node_addresses=node_addresses)
        self._pod = pod
        self._tunnel_port = options.tunnel_port

    async def start(self) -> None:
        """Start answering probes. Raises KernelError, ConfigurationError."""
        await self.health.start()

    def connect(
        self,
        *,
        controller: Controller,
        sessions: SessionRegistry,
        view: NodeView,
        conditions: Conditions,
        alerts: AlertNotes,
    ) -> None:
        """Set the objects that this one uses; once, before `run`."""
        self._controller, self._sessions = controller, sessions
        sessions.on_over = lambda intercept, reason: self.resources.conclude(intercept.uid, reason)
        self._tunnels = TunnelServer(
            tls=self._tls,
            port=self._tunnel_port,
            node=self._node,
            resources=self.resources,
            sessions=sessions,
            on_crash=self._on_crash,
        )
        started = micro_time(dt.datetime.now(dt.UTC))
        self._policies = PolicyPublisher(
            self._api,
            self._node,
            PolicyDaemonEntry(self._pod.namespace, self._pod.name, started),
            self.source.policies,
            controller,
            view,
            self._now,
        )
        self._gates = ReadinessGates(
            self._api,
            self.source.pods,
            controller,
            view,
            conditions,
            f"{self._pod.namespace}:{self._pod.service_account}",
            self._now,
        )
        self._publisher = Publisher(
            self._api,
            node=self._node,
            own=DaemonEntry(self._pod.namespace, self._pod.name, self._tunnel_port, started),
            certificate=self._tls.certificate,
            tell=self._captures.started,
            refusal=controller.refusal,
            state=view.state,
            now=self._now,
        )
        self._announcer = Announcer(
            self._api,
            node=self._node,
            conditions=conditions,
            inventory=lambda: controller.inventory,
            resources=self.resources,
            now=self._now,
            alerts=alerts,
        )

    def changed(self) -> None:
        """Note that anything shown in a status may have changed."""
        self._all_dirty = True
        self._news.set()

    def intercepts(self) -> tuple[Intercept, ...]:
        """Return the intercepts to serve: those that stand, were accepted, and whose session has a tunnel to this
        node.
        """
        verdicts = self.resources.verdicts(self._controller.inventory)
        return tuple(each for each in self._sessions.intercepts() if self._served(each.uid, verdicts))

    def _served(self, uid: str, verdicts: Mapping[str, ResourceVerdict]) -> bool:
        resource, verdict = self.resources.find(uid), verdicts.get(uid)
        return resource is not None and resource.accepted and verdict is not None and verdict.standing

    async def run(self) -> None:
        """Follow the resources, accept sessions and write statuses until cancelled."""
        for kind, definition in DEFINITIONS.items():
            sink = self.resources.sink(kind)
            watch = Watch(self._api, (collection_path(kind),), sink, optional=definition.optional)
            watch.on_state = self._follower(kind, watch)
            self._watches[kind] = watch
            self._tasks.start(watch.run(), name=f"{kind}s")
        await self._tunnels.start()
        own = self._publisher.own
        self._publisher.own = DaemonEntry(own.namespace, own.pod, self._tunnels.port, own.started)
        self._tasks.start(self._announcer.run(), name="events")
        self._tasks.start(self._policies.run(), name="policies")
        self._tasks.start(self._gates.run(), name="readiness gates")
        while True:
            try:
                async with time_limit(TICK):
                    await self._news.wait()
                await asyncio.sleep(self._gathering.pause(self._now()))
            except TimeoutError:
                pass
            self._news.clear()
            await self._round()

    async def withdraw(self) -> None:
        """Remove this daemon's entries from the statuses. Never raises."""
        self._stopping = True
        self.health.status = None
        try:
            async with time_limit(FAREWELL):
                for resource in self.resources.all():
                    await self._withdraw_entry(resource)
                await self._policies.withdraw()
        except (TimeoutError, ClusterError, ConfigurationError) as error:
            self._log.info("status entries not removed", reason=str(error))

    async def _withdraw_entry(self, resource: SessionResource) -> None:
        try:
            await self._publisher.withdraw(resource)
        except ApiError as error:
            if error.status not in REFUSED:
                raise
            self._log.info("status entry not removed", resource=resource.latest.display, reason=str(error))

    async def aclose(self) -> None:
        """Stop everything."""
        await self._tasks.aclose()
        if hasattr(self, "_tunnels"):
            await self._tunnels.aclose()
        await self.source.aclose()
        await self.health.aclose()
        await self._api.aclose()

    # --- a round ----------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        began = time.thread_time()
        verdicts = self.resources.verdicts(self._controller.inventory)
        self._note_changes()
        waiting = self._due(verdicts)
        self._gathering.took(time.thread_time() - began)
        if self.resources.waiting:
            self._news.set()
        standing = frozenset(
            uid for uid, verdict in verdicts.items() if verdict.standing and self._served(uid, verdicts)
        )
        if standing != self._standing:
            self._standing = standing
            self._controller.changed()
        for uid in self._progress.keys() - verdicts.keys():
            del self._progress[uid]
        try:
            while waiting:
                if self._stopping:
                    return
                resource = waiting[0]
                progress = self._progress[resource.uid]
                progress.verdict, progress.due = verdicts.get(resource.uid, _NO_VERDICT), math.inf
                await self._publish(resource, progress.verdict, progress)
                waiting.popleft()
            for resource in self.resources.expired():
                await self._delete(resource)
        except ClusterError as error:
            self._log.warning("status not written", reason=str(error))
            self._dirty.update(resource.uid for resource in waiting)
            await asyncio.sleep(TICK)

    async def _publish(self, resource: SessionResource, verdict: ResourceVerdict, progress: PublishState) -> None:
        """Publish one resource. Raises ClusterError when the failure is not limited to this resource."""
        try:
            await self._publisher.publish(resource, verdict, progress)
        except ApiError as error:
            if error.status not in REFUSED:
                raise
            self._log.warning("status refused", resource=resource.latest.display, reason=str(error))
            progress.look_again(self._now() + REFUSED_AGAIN)

    def _note_changes(self) -> None:
        """Record whether anything that refusals depend on has changed since the last round."""
        basis = self._controller.basis()
        if basis != self._basis:
            self._basis = basis
            self._publisher.node_revision += 1

    def _due(self, verdicts: Mapping[str, ResourceVerdict]) -> deque[SessionResource]:
        """Return the resources to look at now, oldest first."""
        now, found = self._now(), deque[SessionResource]()
        for resource in self.resources.all():
            progress = self._progress.get(resource.uid)
            if progress is None:
                progress = self._progress[resource.uid] = PublishState()
            if (
                self._all_dirty
                or resource.uid in self._dirty
                or progress.due <= now
                or progress.verdict != verdicts.get(resource.uid)
            ):
                found.append(resource)
        self._dirty.clear()
        self._all_dirty = False
        return found

    async def _delete(self, resource: SessionResource) -> None:
        """Delete a resource that is over or no longer renewed, unless it was renewed meanwhile or another node has
        deleted it.
        """
        progress = self._progress.setdefault(resource.uid, PublishState())
        if not progress.expired_since:
            progress.expired_since = self._now() + random.uniform(0.0, SPREAD)  # noqa: S311 - spreads the nodes
        if self._now() < progress.expired_since:
            return
        body = deletion(resource.uid, resource_version=resource.latest.metadata.resource_version)
        try:
            await self._api.delete(resource.latest.path, body)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
        else:
            self._log.info("deleted, over or not renewed", resource=resource.latest.display)

    # --- events of the resources
    # ----------------------------------------------------------------------------------------

    def _follower(self, kind: SessionKind, watch: Watch) -> Callable[[], None]:
        return lambda: self.resources.connected(kind, watch.connected)

    def _gone(self, resource: SessionResource) -> None:
        if not self._stopping:
            reason = resource.problem or "ended: its resource was deleted"
            self._tasks.start(self._end(resource, reason), name="end")
            self._controller.changed()

    async def _end(self, resource: SessionResource, reason: str) -> None:
        await self._sessions.end(resource.uid, reason=reason)
        bounds = self._sessions.take_bounds(resource.uid)
        if bounds is not None and resource.intercept is not None:
            await self._captures.ended(resource.intercept, bounds)

    def _resource_changed(self, uid: str) -> None:
        self._dirty.add(uid)
        self._news.set()
