"""What the node daemon does in a cluster beside what it does everywhere: resources, tunnels, statuses, Events.

    source          the inventory, from the API server (`cluster_inventory`)
    registry        Intercepts and Wiretaps: which live, which stand (`registry`)
    tunnels         sessions that prove to belong to one of them (`tunnel_server`)
    publishing      this node's entry in the status of each resource whose pods it has

A resource alone steers nothing: an intercept is served while it stands *and* its session has a tunnel to this node. The
status tells the CLI which daemons to connect to and which certificate to expect there.

Two daemons of one node meet during an upgrade: the one that began later writes the node's entry, the other keeps quiet.
At the end the entries that are still ours are taken back.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sidestep.aio.tasks import Tasks
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.resources import (
    ConditionEntry,
    DaemonEntry,
    NodeEntry,
    PodEntry,
    collection_path,
    deletion,
    encode_certificate,
    micro_time,
    read,
    status_patch,
)
from sidestep.kube.watch import Watch, decode
from sidestep.model.errors import ClusterError, ConfigurationError
from sidestep.model.intercept import Intercept, Kind
from sidestep.model.text import harmless
from sidestep.node.announcer import Announcer
from sidestep.node.cluster_inventory import ClusterInventory
from sidestep.node.conditions import Conditions
from sidestep.node.controller import Controller
from sidestep.node.health import Addresses, HealthServer
from sidestep.node.options import NodeOptions, PodIdentity
from sidestep.node.registry import Held, Registry, Verdict
from sidestep.node.resource_status import MAX_PODS, differs, mine, overall, speaker
from sidestep.node.sessions import Sessions
from sidestep.node.tunnel_server import TunnelServer
from sidestep.node.view import NodeView
from sidestep.observability.logs import get_logger
from sidestep.tunnel.node_tls import NodeTls, make_node_tls

PAUSE = 0.05
"""Seconds in which changes are gathered before statuses are written."""
TICK = 1.0
"""Seconds between two looks at what only time changes."""
SAME_AGAIN = 3.0
"""Seconds before the same patch is sent again: the watch may not have shown the first one yet."""
SETTLED = 1.0
"""Seconds that a refusal must have stood before it is told: certificates and processes are still being read."""
SPREAD = 10.0
"""Seconds over which the nodes spread what any of them could do."""
MAX_CONDITIONS = 20
ATTEMPTS = 3
"""Tries to take back an entry of a status that others write at the same time."""
FAREWELL = 3.0
"""Seconds for taking back entries at the end."""


@dataclass(slots=True)
class _Memory:
    """What is remembered about one resource between two rounds."""

    refusal: str = ""
    refused_since: float = 0.0
    unspoken_since: float = 0.0
    sent: bytes = b""
    sent_at: float = 0.0
    expired_since: float = 0.0


class Cluster:
    """Make it, `start` it, `connect` it, run `run`; at the end `withdraw`, then `aclose`."""

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
        self._own = DaemonEntry(pod.namespace, pod.name, options.tunnel_port, micro_time(dt.datetime.now(dt.UTC)))
        self._news = asyncio.Event()
        self._tasks = Tasks("cluster", on_crash=on_crash)
        self._memory: dict[str, _Memory] = {}
        self._standing: frozenset[str] = frozenset()
        self._watches: dict[Kind, Watch] = {}
        self._stopping = False
        self._log = get_logger("cluster")
        self.source = ClusterInventory(
            self._api,
            node=self._node,
            service_account=f"{pod.namespace}:{pod.service_account}",
            on_crash=on_crash,
        )
        self.registry = Registry(now=now, on_change=self.changed, on_gone=self._gone)
        self.health = HealthServer(port=options.health_port, on_crash=on_crash, node_addresses=node_addresses)
        self._tunnel_port = options.tunnel_port

    async def start(self) -> None:
        """Answer probes. Raises KernelError."""
        await self.health.start()

    def connect(self, *, controller: Controller, sessions: Sessions, view: NodeView, conditions: Conditions) -> None:
        """Say whom to ask; once, before `run`."""
        self._controller, self._sessions, self._view = controller, sessions, view
        self._tunnels = TunnelServer(
            tls=self._tls,
            port=self._tunnel_port,
            node=self._node,
            registry=self.registry,
            sessions=sessions,
            on_crash=self._on_crash,
        )
        self._announcer = Announcer(
            self._api,
            node=self._node,
            conditions=conditions,
            inventory=lambda: controller.inventory,
            registry=self.registry,
            now=self._now,
        )

    def changed(self) -> None:
        """Something that a status shows may be different."""
        self._news.set()

    def intercepts(self) -> tuple[Intercept, ...]:
        """What is to be served: intercepts that stand and whose session has a tunnel to this node."""
        verdicts = self.registry.verdicts(self._controller.inventory)
        return tuple(
            each for each in self._sessions.intercepts() if each.uid in verdicts and verdicts[each.uid].standing
        )

    async def run(self) -> None:
        """Follow the resources, take sessions, write statuses, until cancelled."""
        for kind in Kind:
            watch = Watch(self._api, (collection_path(kind),), self.registry.sink(kind))
            watch.on_state = self._follower(kind, watch)
            self._watches[kind] = watch
            self._tasks.start(watch.run(), name=f"{kind}s")
        await self._tunnels.start()
        self._own = DaemonEntry(self._own.namespace, self._own.pod, self._tunnels.port, self._own.started)
        self._tasks.start(self._announcer.run(), name="events")
        while True:
            try:
                async with asyncio.timeout(TICK):
                    await self._news.wait()
                await asyncio.sleep(PAUSE)
            except TimeoutError:
                pass
            self._news.clear()
            await self._round()

    async def withdraw(self) -> None:
        """Take back what the statuses say about this daemon. Never raises."""
        self._stopping = True
        self.health.status = None
        try:
            async with asyncio.timeout(FAREWELL):
                for held in self.registry.all():
                    await self._take_back(held)
        except (TimeoutError, ClusterError, ConfigurationError) as error:
            self._log.info("statuses not taken back", reason=str(error))

    async def aclose(self) -> None:
        """End everything."""
        await self._tasks.aclose()
        if hasattr(self, "_tunnels"):
            await self._tunnels.aclose()
        await self.source.aclose()
        await self.health.aclose()
        self._api.close()

    # --- a round ----------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        verdicts = self.registry.verdicts(self._controller.inventory)
        standing = frozenset(uid for uid, verdict in verdicts.items() if verdict.standing)
        if standing != self._standing:
            self._standing = standing
            self._controller.changed()
        for uid in self._memory.keys() - verdicts.keys():
            del self._memory[uid]
        try:
            for held in self.registry.all():
                if self._stopping:
                    return
                memory = self._memory.setdefault(held.uid, _Memory())
                await self._publish(held, verdicts.get(held.uid, Verdict(standing=False)), memory)
            for held in self.registry.expired():
                await self._delete(held)
        except ClusterError as error:
            self._log.warning("status not written", reason=str(error))
            await asyncio.sleep(TICK)

    async def _publish(self, held: Held, verdict: Verdict, memory: _Memory) -> None:
        status = held.latest.status
        entry = self._entry(held, verdict, memory)
        present = status.nodes.get(self._node)
        fields: dict[str, Any] = {}
        nodes: dict[str, NodeEntry | None] = dict(status.nodes)
        if mine(present, self._own):
            nodes[self._node] = entry
            if entry != present:
                fields["nodes"] = {self._node: msgspec.to_builtins(entry)}
        elif present is not None:
            return  # a newer daemon of this node speaks
        whole = overall(held, verdict, nodes, before=status, now=micro_time(dt.datetime.now(dt.UTC))[:19] + "Z")
        if differs(whole, status) and self._speaks(nodes, memory):
            fields |= whole
        if fields:
            await self._patch(held, fields, memory)

    def _speaks(self, nodes: Mapping[str, NodeEntry | None], memory: _Memory) -> bool:
        there = speaker(nodes)
        if there:
            memory.unspoken_since = 0.0
            return there == self._node
        if not memory.unspoken_since:
            memory.unspoken_since = self._now() + random.uniform(0.2, 1.5)  # noqa: S311 - spreads the nodes
        return self._now() >= memory.unspoken_since

    def _entry(self, held: Held, verdict: Verdict, memory: _Memory) -> NodeEntry | None:
        intercept = held.intercept
        if not verdict.standing or not verdict.pods or intercept is None:
            return None
        refusal = self._controller.refusal(intercept)
        if refusal != memory.refusal:
            memory.refusal, memory.refused_since = refusal, self._now()
        settled = refusal and self._now() - memory.refused_since >= SETTLED
        state = self._view.state(held.uid)
        known = {each.pod: each for each in state.pods}
        pods = []
        for key in verdict.pods[:MAX_PODS]:
            pod = known.get(str(key))
            pods.append(PodEntry(key.name, pod.state, harmless(pod.detail)) if pod else PodEntry(key.name, "pending"))
        return NodeEntry(
            daemon=self._own,
            certificate=encode_certificate(self._tls.certificate),
            pods=tuple(pods),
            refusal=harmless(refusal) if settled else "",
            conditions=tuple(
                ConditionEntry(each.type, harmless(each.subject), harmless(each.text))
                for each in state.conditions[:MAX_CONDITIONS]
            ),
        )

    async def _patch(self, held: Held, fields: Mapping[str, Any], memory: _Memory) -> None:
        body = status_patch(fields)
        if body == memory.sent and self._now() - memory.sent_at < SAME_AGAIN:
            return
        memory.sent, memory.sent_at = body, self._now()
        try:
            await self._api.patch(f"{held.latest.path}/status", body)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise

    async def _take_back(self, held: Held) -> None:
        """Only our own entry: another daemon of this node may have written its own meanwhile."""
        body: Mapping[str, Any] = {"nodes": {self._node: None}}
        latest = held.latest
        for _ in range(ATTEMPTS):
            present = latest.status.nodes.get(self._node)
            if present is None or present.daemon != self._own:
                return
            version = latest.metadata.resource_version
            try:
                await self._api.patch(f"{latest.path}/status", status_patch(body, resource_version=version))
            except ApiError as error:
                if error.status != 409:
                    raise
                latest = read(latest.kind, decode(await self._api.get(latest.path), dict))
            else:
                return

    async def _delete(self, held: Held) -> None:
        """Delete what nobody renews any more, unless it was renewed in between or another node was first."""
        memory = self._memory.setdefault(held.uid, _Memory())
        if not memory.expired_since:
            memory.expired_since = self._now() + random.uniform(0.0, SPREAD)  # noqa: S311 - spreads the nodes
        if self._now() < memory.expired_since:
            return
        body = deletion(held.uid, resource_version=held.latest.metadata.resource_version)
        try:
            await self._api.delete(held.latest.path, body)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
        else:
            self._log.info("deleted, not renewed", resource=held.latest.display)

    # --- what the registry says -------------------------------------------------------------------------------------

    def _follower(self, kind: Kind, watch: Watch) -> Callable[[], None]:
        return lambda: self.registry.connected(kind, watch.connected)

    def _gone(self, held: Held) -> None:
        if not self._stopping:
            self._tasks.start(self._sessions.end(held.uid, reason="ended: its resource was deleted"), name="end")
            self._controller.changed()
