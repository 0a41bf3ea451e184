"""Writes this node's part of the status of each resource: its own entry, the digest of the spec, and the aggregate.

A node writes its entry by a merge patch, which does not conflict with those of other nodes. It writes the aggregate
only when it is the reporting node (`resource_status`). The first write to a status without digest includes the digest,
conditional on the resource's version: of two nodes that saw different specs, the second write fails and that node
learns the accepted digest. Of a kind that has to be told (`Definition.is_told`) the Event is written before the digest,
by a node that has pods for it; what cannot be told is not accepted.

The cost of one resource is bounded: an identical patch is repeated after `SAME_AGAIN` seconds at the earliest, since
the watch needs time to show it; `WRITE_BURST` writes may follow each other, then `WRITES` per second.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sidestep.aio.token_bucket import TokenBucket
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError
from sidestep.kube.resources import (
    ConditionEntry,
    DaemonEntry,
    NodeEntry,
    ObservedResource,
    PodEntry,
    encode_certificate,
    micro_time,
    observe,
    status_patch,
)
from sidestep.kube.session_specs import DEFINITIONS
from sidestep.kube.watch import decode
from sidestep.model.errors import ClusterError, ConfigurationError
from sidestep.model.intercept import Intercept
from sidestep.model.text import harmless
from sidestep.node.cluster.resource_status import MAX_PODS, aggregate, differs, is_ours, reporting_node
from sidestep.node.sessions.resource import SessionResource
from sidestep.node.sessions.resources import ResourceVerdict
from sidestep.tunnel.messages import State

SAME_AGAIN = 3.0
"""Seconds before an identical patch is sent again, because the watch may not have shown the first one yet."""
REFUSAL_DELAY = 1.0
"""Seconds for which a refusal must exist before it is published; certificates and processes may still be read."""
MAX_CONDITIONS = 20
WRITES, WRITE_BURST = 1.0, 8.0
"""Writes of one resource's status: per second, and at once."""
UNTOLD_AGAIN = 5.0
"""Seconds before the Event about a resource is tried again that the API server did not take."""
ATTEMPTS = 3
"""Attempts at a write that is conditional on the resource's version."""
OUTDATED = (
    "the cluster's resource definitions are older than its node daemons, and a session cannot be pinned: kubectl apply "
    "-f deploy/daemonset.yaml"
)


@dataclass(slots=True)
class PublishState:
    """Publishing state of one resource across rounds."""

    refusal: str = ""
    refused_since: float = 0.0
    unreported_since: float = 0.0
    sent: bytes = b""
    sent_at: float = 0.0
    expired_since: float = 0.0
    verdict: ResourceVerdict | None = None
    due: float = math.inf
    """Time of the next look at the resource without a change."""
    writes: TokenBucket | None = None
    told: bool = False
    """Whether the Event about a resource that has to be told is written."""
    checked_revision: int = -1
    """Revision of the node for which the refusal was computed."""

    def look_again(self, when: float) -> None:
        """Look at the resource again at `when` or earlier."""
        self.due = min(self.due, when)


class Publisher:
    """Writes statuses. `own` is this daemon's entry. `tell` writes the Event about a capture; it returns why not.

    `node_revision` counts changes of what refusals depend on; refusals are computed again when it changes.
    """

    def __init__(
        self,
        api: Api,
        *,
        node: str,
        own: DaemonEntry,
        certificate: bytes,
        tell: Callable[[Intercept], Awaitable[str]],
        refusal: Callable[[Intercept], str],
        state: Callable[[str], State],
        now: Callable[[], float],
    ) -> None:
        self.own = own
        self.node_revision = 0
        self._api = api
        self._node = node
        self._certificate = certificate
        self._tell = tell
        self._refusal = refusal
        self._state = state
        self._now = now
        self._outdated = False
        """Whether the API server drops the digest because its resource definitions are too old."""

    async def publish(self, resource: SessionResource, verdict: ResourceVerdict, progress: PublishState) -> None:
        """Write the parts that differ and are this node's to write. Raises ClusterError."""
        status = resource.latest.status
        untold = await self._untold(resource, verdict, progress)
        entry = self._entry(resource, verdict, progress, untold)
        present = status.nodes.get(self._node)
        fields: dict[str, Any] = {}
        nodes: dict[str, NodeEntry | None] = dict(status.nodes)
        if is_ours(present, self.own):
            nodes[self._node] = entry
            if entry != present:
                fields["nodes"] = {self._node: msgspec.to_builtins(entry)}
        elif present is not None:
            return  # a newer daemon of this node writes the entry
        whole = aggregate(resource, verdict, nodes, before=status, now=micro_time(dt.datetime.now(dt.UTC))[:19] + "Z")
        if differs(whole, status) and self._reports(nodes, progress):
            fields |= whole
        if fields or (entry is not None and not status.spec_digest and self._pins(resource, progress)):
            await self._patch(resource, fields, progress)

    async def _untold(self, resource: SessionResource, verdict: ResourceVerdict, progress: PublishState) -> str:
        """Write the Event that a resource needs before it is accepted; returns why that is not possible, or ""."""
        intercept = resource.intercept
        if self._pins(resource, progress) or resource.latest.status.spec_digest:
            return ""
        if not verdict.standing or not verdict.pods or intercept is None:
            return ""
        reason = await self._tell(intercept)
        progress.told = not reason
        if reason:
            progress.look_again(self._now() + UNTOLD_AGAIN)
        return reason

    @staticmethod
    def _pins(resource: SessionResource, progress: PublishState) -> bool:
        """Whether this node may write the digest, which accepts a resource."""
        return progress.told or not DEFINITIONS[resource.latest.kind].is_told

    def _reports(self, nodes: Mapping[str, NodeEntry | None], progress: PublishState) -> bool:
        there = reporting_node(nodes)
        if there:
            progress.unreported_since = 0.0
            return there == self._node
        if not progress.unreported_since:
            progress.unreported_since = self._now() + random.uniform(0.2, 1.5)  # noqa: S311 - spreads the nodes
        progress.look_again(progress.unreported_since)
        return self._now() >= progress.unreported_since

    def _entry(
        self, resource: SessionResource, verdict: ResourceVerdict, progress: PublishState, untold: str
    ) -> NodeEntry | None:
        intercept = resource.intercept
        if not verdict.standing or not verdict.pods or intercept is None:
            return None
        if progress.checked_revision != self.node_revision:
            progress.checked_revision = self.node_revision
            refusal = self._refusal(intercept)
            if refusal != progress.refusal:
                progress.refusal, progress.refused_since = refusal, self._now()
        refusal = OUTDATED if self._outdated else untold or progress.refusal
        stable = refusal and (bool(untold) or self._now() - progress.refused_since >= REFUSAL_DELAY)
        if refusal and not stable:
            progress.look_again(progress.refused_since + REFUSAL_DELAY)
        state = self._state(resource.uid)
        known = {each.pod: each for each in state.pods}
        pods = []
        for key in verdict.pods[:MAX_PODS]:
            pod = known.get(str(key))
            pods.append(PodEntry(key.name, pod.state, harmless(pod.detail)) if pod else PodEntry(key.name, "pending"))
        return NodeEntry(
            daemon=self.own,
            certificate=encode_certificate(self._certificate),
            pods=tuple(pods),
            refusal=harmless(refusal) if stable else "",
            conditions=tuple(
                ConditionEntry(each.type, harmless(each.subject), harmless(each.text))
                for each in state.conditions[:MAX_CONDITIONS]
            ),
        )

    async def _patch(self, resource: SessionResource, fields: Mapping[str, Any], progress: PublishState) -> None:
        now = self._now()
        if progress.writes is None:
            progress.writes = TokenBucket(rate=WRITES, burst=WRITE_BURST, now=now)
        body = status_patch(fields)
        if body == progress.sent and now - progress.sent_at < SAME_AGAIN:
            progress.look_again(progress.sent_at + SAME_AGAIN)
            return
        if not progress.writes.take(now):
            progress.look_again(now + progress.writes.wait())
            return
        progress.sent, progress.sent_at = body, now
        progress.look_again(now + SAME_AGAIN)
        await self._write(resource, fields, pins=self._pins(resource, progress))

    async def _write(self, resource: SessionResource, fields: Mapping[str, Any], *, pins: bool) -> None:
        """Write to a status. While it has no digest, add it, conditional on the resource's version."""
        latest = resource.latest
        for _ in range(ATTEMPTS):
            if latest.status.spec_digest or not resource.validated or not pins:
                body = status_patch(fields)
            else:
                version = latest.metadata.resource_version
                body = status_patch({**fields, "specDigest": resource.digest}, resource_version=version)
            try:
                answer = await self._api.patch(f"{latest.path}/status", body)
            except ApiError as error:
                if error.status == 409:
                    latest = await self._read(resource)
                    continue
                if error.status != 404:
                    raise
            else:
                if resource.validated and pins:
                    self._outdated = not self._observe(resource, answer).status.spec_digest
            return

    async def _read(self, resource: SessionResource) -> ObservedResource:
        return self._observe(resource, await self._api.get(resource.latest.path))

    @staticmethod
    def _observe(resource: SessionResource, answer: bytes) -> ObservedResource:
        try:
            return observe(resource.latest.kind, decode(answer, dict))
        except ConfigurationError as error:
            raise ClusterError(f"the API server's answer cannot be read: {error}") from error

    async def withdraw(self, resource: SessionResource) -> None:
        """Remove this daemon's entry, unless another daemon of this node has replaced it. Raises ClusterError."""
        body: Mapping[str, Any] = {"nodes": {self._node: None}}
        latest = resource.latest
        for _ in range(ATTEMPTS):
            present = latest.status.nodes.get(self._node)
            if present is None or present.daemon != self.own:
                return
            version = latest.metadata.resource_version
            try:
                await self._api.patch(f"{latest.path}/status", status_patch(body, resource_version=version))
            except ApiError as error:
                if error.status != 409:
                    raise
                latest = await self._read(resource)
            else:
                return
