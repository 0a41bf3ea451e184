"""Writes this node's part of the status of each inspection policy, and posts an Event on a pod that leaves one.

A node writes its entry by a merge patch, which does not conflict with those of other nodes, and the aggregate only when
it is the reporting node (`policy_status`). A verdict of this node is about the document that it has judged last; while
the resource has another one already, nothing is written.

What changes with traffic is written rarely: `COUNTED_AGAIN` seconds for each node with an entry, and at least
`COUNTED_LEAST`, lie between two writes of counts, so that the writes of all nodes together stay few.

What the API server does not take of one policy, because it is too large or somebody's webhook fails, holds up no other
policy. Only a server that cannot be reached does.

An entry outlives a daemon that was killed. Whoever comes next in line looks now and then whether the daemon of the
reporting node still has a pod; the reporting node looks after the others, one at a time.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sidestep.aio.token_bucket import TokenBucket
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.events import EventSubject, post
from sidestep.kube.paths import escape
from sidestep.kube.policies import DaemonEntry, NodeEntry, ObservedPolicy, PolicyKey, StatusFields, status_of
from sidestep.kube.resources import micro_time, status_patch
from sidestep.kube.snapshot import list_all
from sidestep.kube.watch import decode
from sidestep.model.errors import ClusterError
from sidestep.model.inspection import InspectionPolicy
from sidestep.model.inventory import Inventory
from sidestep.node.cluster.departures import Departure, Departures
from sidestep.node.cluster.policy_status import (
    aggregate,
    conflicts_of,
    differs,
    entry_of,
    is_ours,
    patch_of,
    reporting_node,
    without_counts,
)
from sidestep.node.planning.plan import Plan
from sidestep.observability.logs import get_logger
from sidestep.tunnel.views import PolicyView

TICK = 1.0
"""Seconds between two looks."""
SAME_AGAIN, SAME_AGAIN_MOST = 3.0, 600.0
"""Seconds before an identical patch is sent again, because the watch may not have shown the first one yet; twice as
long each time: the schema that is installed may be older than this daemon, and lack a field."""
WRITES, WRITE_BURST = 0.5, 8.0
"""Writes of one policy's status: per second, and at once."""
COUNTED_AGAIN, COUNTED_LEAST = 6.0, 60.0
FAILED_AGAIN = 10.0
"""Seconds without writes after the API server could not be reached."""
LOOK_FOR_DAEMONS = 120.0
"""Seconds, about, between two looks after daemons whose entries stand."""
EVENTS, EVENT_BURST = 0.2, 20.0
"""Events about pods that leave policies: per second, and at once."""
MAX_EVENTS = 1000
"""Events that wait; further ones are dropped."""
REFUSED_AGAIN = 60.0
"""Seconds before a status is written again that the API server did not take."""
ATTEMPTS = 3
"""Attempts at a write that is conditional on the resource's version."""


class PolicyViews(Protocol):
    """What is needed of `NodeStatusView`."""

    def policies(self) -> tuple[PolicyView, ...]:
        """Return the policies that are written, as this node has them."""


class Planned(Protocol):
    """What is needed of the `Controller`."""

    @property
    def inventory(self) -> Inventory:
        """What was read last."""

    @property
    def plan(self) -> Plan:
        """What was planned last."""


@dataclass(slots=True)
class _Progress:
    """Writing state of one policy."""

    writes: TokenBucket
    sent: bytes = b""
    sent_at: float = 0.0
    same_again: float = SAME_AGAIN
    counted_at: float = 0.0
    unreported_since: float = 0.0
    refused_until: float = 0.0
    compared: tuple[InspectionPolicy, InspectionPolicy] | None = None
    """The document of the resource and that of the inventory, which were found equal."""
    settled: tuple[ObservedPolicy, PolicyView, Sequence[str]] | None = None
    """For which nothing was left to write: resource, view and conflicts."""


@dataclass(slots=True)
class PolicyPublisher:
    """See the module. `own` is this daemon's entry; `observed` are the resources as they are now."""

    api: Api
    node: str
    own: DaemonEntry
    observed: Callable[[], tuple[ObservedPolicy, ...]]
    controller: Planned
    views: PolicyViews
    now: Callable[[], float]
    _progress: dict[str, _Progress] = field(default_factory=dict)
    _departures: Departures = field(default_factory=Departures)
    _leaving: list[Departure] = field(default_factory=list)
    _events: TokenBucket | None = None
    _next_look: float = 0.0
    _turn: int = 0

    async def run(self) -> None:
        """Write statuses and post Events until cancelled."""
        log = get_logger("policies")
        while True:
            try:
                await self.once()
            except ClusterError as error:
                log.warning("status of a policy not written", reason=str(error))
                await asyncio.sleep(FAILED_AGAIN)
            await asyncio.sleep(TICK)

    async def once(self) -> None:
        """Write what differs now. Raises ClusterError."""
        observed = self.observed()
        self._progress = {
            each.uid: self._progress.get(each.uid)
            or _Progress(TokenBucket(rate=WRITES, burst=WRITE_BURST, now=self.now()))
            for each in observed
        }
        names = frozenset(each.policy.display for each in observed if each.policy is not None)
        leaving = [*self._leaving, *self._departures.look(self.controller.plan, names)]
        self._leaving = list(dict.fromkeys(leaving))[:MAX_EVENTS]
        if observed:
            views = {(each.namespace, each.name): each for each in self.views.policies()}
            conflicts = conflicts_of(self.controller.plan, tuple(views.values()))
            written = self._written()
            for each in observed:
                view = views.get(each.key)
                if view is not None and self._is_judged(each, written):
                    await self._look_at(each, view, conflicts.get("/".join(filter(None, each.key)), ()))
            await self._look_for_daemons(observed)
        await self._post_events()

    async def withdraw(self) -> None:
        """Remove this daemon's entries, unless another daemon of this node has replaced them. Raises ClusterError."""
        views = {(each.namespace, each.name): each for each in self.views.policies()}
        for each in self.observed():
            view = views.get(each.key)
            if view is not None:
                await self._remove(each, self.node, self.own, view)

    # --- statuses ---------------------------------------------------------------------------------------------------

    def _written(self) -> Mapping[PolicyKey, InspectionPolicy | str]:
        inventory = self.controller.inventory
        parsed = {(each.namespace, each.name): each for each in inventory.policies}
        return {**inventory.invalid_policies, **parsed}

    def _is_judged(self, observed: ObservedPolicy, written: Mapping[PolicyKey, InspectionPolicy | str]) -> bool:
        """Whether what this node says of a policy is about the document that the resource has now."""
        there = written.get(observed.key)
        if observed.policy is None or not isinstance(there, InspectionPolicy):
            return observed.policy is None and there == observed.problem
        progress = self._progress[observed.uid]
        pair = (observed.policy, there)
        if progress.compared is not None and all(a is b for a, b in zip(progress.compared, pair, strict=True)):
            return True
        progress.compared = pair if observed.policy == there else None
        return progress.compared is not None

    async def _look_at(self, observed: ObservedPolicy, view: PolicyView, conflicts: Sequence[str]) -> None:
        """Publish, unless nothing has changed since there was nothing to write."""
        progress = self._progress[observed.uid]
        settled = progress.settled
        if settled is not None and settled[0] is observed and settled[1:] == (view, conflicts):
            return
        is_settled = await self._publish(observed, view, conflicts)
        progress.settled = (observed, view, conflicts) if is_settled else None

    async def _publish(self, observed: ObservedPolicy, view: PolicyView, conflicts: Sequence[str]) -> bool:
        """Write what differs and may be written now; returns whether nothing differs."""
        progress, status, now = self._progress[observed.uid], observed.status, self.now()
        nodes: dict[str, NodeEntry | None] = dict(status.nodes)
        present = nodes.get(self.node)
        if not is_ours(present, self.own):
            return True  # a newer daemon of this node writes the entry
        count = sum(entry is not None for entry in nodes.values())
        entry = entry_of(view, observed.generation, self.own, conflicts, present, nodes=count)
        pause = max(COUNTED_LEAST, COUNTED_AGAIN * len(nodes))
        with_counts = not progress.counted_at or now - progress.counted_at >= pause
        fields: dict[str, Any] = {}
        if entry != present and (with_counts or without_counts(entry) != without_counts(present)):
            fields["nodes"] = {self.node: patch_of(entry, present)}
            nodes[self.node] = entry
        is_settled = entry == present
        if self._reports(nodes, progress):
            whole = aggregate(observed, view, nodes, now=_time())
            is_settled = is_settled and not differs(whole, status, with_counts=True)
            if differs(whole, status, with_counts=with_counts or bool(fields)):
                fields |= whole
        elif not reporting_node(nodes):
            is_settled = False  # this node may be the one that reports
        if fields and await self._write(observed, fields, progress):
            progress.counted_at = now
        return is_settled

    def _reports(self, nodes: Mapping[str, NodeEntry | None], progress: _Progress) -> bool:
        there = reporting_node(nodes)
        if there:
            progress.unreported_since = 0.0
            return there == self.node
        if not progress.unreported_since:
            progress.unreported_since = self.now() + random.uniform(0.2, 2.0)  # noqa: S311 - spreads the nodes
        return self.now() >= progress.unreported_since

    async def _write(self, observed: ObservedPolicy, fields: Mapping[str, Any], progress: _Progress) -> bool:
        """Write to a status, unless it was written too often or the same is on its way; returns whether it was."""
        now, body = self.now(), status_patch(fields)
        is_same = body == progress.sent
        if is_same and now - progress.sent_at < progress.same_again:
            return False
        if now < progress.refused_until or not progress.writes.take(now):
            return False
        progress.same_again = min(2 * progress.same_again, SAME_AGAIN_MOST) if is_same else SAME_AGAIN
        progress.sent, progress.sent_at = body, now
        try:
            await self.api.patch(f"{observed.path}/status", body)
        except ApiError as error:
            if error.status == 404:
                return False
            progress.refused_until = now + REFUSED_AGAIN
            get_logger("policies").warning("status refused", policy=observed.path, reason=str(error))
            return False
        return True

    async def _remove(self, observed: ObservedPolicy, node: str, daemon: DaemonEntry, view: PolicyView) -> None:
        """Remove the entry that a daemon wrote, unless the API server does not let it be removed."""
        try:
            await self._remove_entry(observed, node, daemon, view)
        except ApiError as error:
            if error.status != 404:
                get_logger("policies").warning("entry not removed", policy=observed.path, reason=str(error))

    async def _remove_entry(self, observed: ObservedPolicy, node: str, daemon: DaemonEntry, view: PolicyView) -> None:
        """Remove the entry if it still stands; if no other is left, say so in the aggregate. Raises ClusterError."""
        status, version = observed.status, observed.resource_version
        for _ in range(ATTEMPTS):
            present = status.nodes.get(node)
            if present is None or present.daemon != daemon:
                return
            fields: dict[str, Any] = {"nodes": {node: None}}
            nodes = {name: entry for name, entry in status.nodes.items() if name != node}
            if not reporting_node(nodes):
                fields |= aggregate(observed, view, nodes, now=_time())
            try:
                await self.api.patch(f"{observed.path}/status", status_patch(fields, resource_version=version))
            except ApiError as error:
                if error.status != 409:
                    raise
                status, version = await self._read(observed)
            else:
                return

    async def _read(self, observed: ObservedPolicy) -> tuple[StatusFields, str]:
        value = decode(await self.api.get(observed.path), dict)
        return status_of(value), str((value.get("metadata") or {}).get("resourceVersion", ""))

    # --- entries of daemons that are gone ---------------------------------------------------------------------------

    async def _look_for_daemons(self, observed: tuple[ObservedPolicy, ...]) -> None:
        """Now and then, look whether a daemon still has a pod, and remove its entries if not."""
        now = self.now()
        if now < self._next_look:
            return
        first, self._next_look = not self._next_look, now + LOOK_FOR_DAEMONS * random.uniform(0.7, 1.3)  # noqa: S311
        if first:
            return
        self._turn += 1
        found: dict[tuple[str, str], DaemonEntry] = {}
        for each in observed:
            if (name := self._looked_after(each.status.nodes)) and (entry := each.status.nodes[name]) is not None:
                found.setdefault((name, entry.daemon.pod), entry.daemon)
        views = {(each.namespace, each.name): each for each in self.views.policies()}
        for (name, _), daemon in list(found.items())[:4]:
            if await self._has_pod(daemon):
                continue
            for each in observed:
                if each.key in views:
                    await self._remove(each, name, daemon, views[each.key])

    def _looked_after(self, nodes: Mapping[str, NodeEntry | None]) -> str:
        """The node whose daemon this one looks for: the reporting node, or one of the others if that is this one."""
        reporting = reporting_node(nodes)
        if reporting != self.node:
            return reporting
        others = sorted(name for name, entry in nodes.items() if entry is not None and name != self.node)
        return others[self._turn % len(others)] if others else ""

    async def _has_pod(self, daemon: DaemonEntry) -> bool:
        path = f"/api/v1/namespaces/{escape(daemon.namespace)}/pods"
        return bool(await list_all(self.api, path, query={"fieldSelector": f"metadata.name={daemon.pod}"}))

    # --- Events -----------------------------------------------------------------------------------------------------

    async def _post_events(self) -> None:
        now = self.now()
        if self._events is None:
            self._events = TokenBucket(rate=EVENTS, burst=EVENT_BURST, now=now)
        while self._leaving and self._events.take(now):
            each = self._leaving.pop(0)
            kind = "InspectionPolicy" if "/" in each.policy else "ClusterInspectionPolicy"
            try:
                await post(
                    self.api,
                    EventSubject("v1", "Pod", each.pod.namespace, each.pod.name, each.uid),
                    reason="InspectionEnded",
                    message=f"{kind} {each.policy} selects it no longer: its labels or its namespace's have changed",
                    node=self.node,
                    warning=True,
                )
            except ApiError as error:  # its namespace is being deleted
                get_logger("policies").warning("event not written", pod=str(each.pod), reason=str(error))


def _time() -> str:
    return micro_time(dt.datetime.now(dt.UTC))[:19] + "Z"
