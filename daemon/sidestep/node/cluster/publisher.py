"""The status of each resource as this node has it to say: its own entry, the digest of the spec, and the whole.

A node writes its entry by a merge patch, so that none meets another, and the whole only where it speaks for all
(`resource_status`). The digest is part of the first write to a status that has none; that write says which version of
the resource it is about, so that of two nodes which saw different specs one is too late, and learns of the other's.

What one resource costs is bounded: the same is not written again for `SAME_AGAIN` seconds, which the watch may take to
show it, and there are `WRITE_BURST` writes at once and `WRITES` a second after that.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sidestep.aio.allowance import Allowance
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
from sidestep.kube.watch import decode
from sidestep.model.errors import ClusterError, ConfigurationError
from sidestep.model.intercept import Intercept
from sidestep.model.text import harmless
from sidestep.node.cluster.resource_status import MAX_PODS, aggregate, differs, is_ours, reporting_node
from sidestep.node.sessions.resource import SessionResource
from sidestep.node.sessions.resources import ResourceVerdict
from sidestep.tunnel.messages import State

SAME_AGAIN = 3.0
"""Seconds before the same patch is sent again: the watch may not have shown the first one yet."""
SETTLED = 1.0
"""Seconds that a refusal must have stood before it is told: certificates and processes are still being read."""
MAX_CONDITIONS = 20
WRITES, WRITE_BURST = 1.0, 8.0
"""The same for the writes of one resource's status."""
ATTEMPTS = 3
"""Tries to write what may only be written if nobody else has written meanwhile."""
OUTDATED = (
    "the cluster's resource definitions are older than its node daemons, and a session cannot be pinned: kubectl apply "
    "-f deploy/daemonset.yaml"
)


@dataclass(slots=True)
class PublishState:
    """State of one resource that lasts from round to round."""

    refusal: str = ""
    refused_since: float = 0.0
    unspoken_since: float = 0.0
    sent: bytes = b""
    sent_at: float = 0.0
    expired_since: float = 0.0
    verdict: ResourceVerdict | None = None
    due: float = math.inf
    """When it is to be looked at again although nothing has changed."""
    writes: Allowance | None = None
    asked: int = -1
    """The picture of the node for which the refusal was found out."""

    def look_again(self, when: float) -> None:
        """Look at the resource again at `when` or earlier."""
        self.due = min(self.due, when)


class Publisher:
    """Writes statuses. `own` is this daemon's entry; `picture` counts what refusals depend on: while it is the same, so
    are they."""

    def __init__(
        self,
        api: Api,
        *,
        node: str,
        own: DaemonEntry,
        certificate: bytes,
        refusal: Callable[[Intercept], str],
        state: Callable[[str], State],
        now: Callable[[], float],
    ) -> None:
        self.own = own
        self.picture = 0
        self._api = api
        self._node = node
        self._certificate = certificate
        self._refusal = refusal
        self._state = state
        self._now = now
        self._outdated = False
        """Whether the API server drops the digest, which its definitions do not know."""

    async def publish(self, resource: SessionResource, verdict: ResourceVerdict, memory: PublishState) -> None:
        """Write what is different, if it is this node's to write. Raises ClusterError."""
        status = resource.latest.status
        entry = self._entry(resource, verdict, memory)
        present = status.nodes.get(self._node)
        fields: dict[str, Any] = {}
        nodes: dict[str, NodeEntry | None] = dict(status.nodes)
        if is_ours(present, self.own):
            nodes[self._node] = entry
            if entry != present:
                fields["nodes"] = {self._node: msgspec.to_builtins(entry)}
        elif present is not None:
            return  # a newer daemon of this node speaks
        whole = aggregate(resource, verdict, nodes, before=status, now=micro_time(dt.datetime.now(dt.UTC))[:19] + "Z")
        if differs(whole, status) and self._speaks(nodes, memory):
            fields |= whole
        if fields or (entry is not None and not status.spec_digest):
            await self._patch(resource, fields, memory)

    def _speaks(self, nodes: Mapping[str, NodeEntry | None], memory: PublishState) -> bool:
        there = reporting_node(nodes)
        if there:
            memory.unspoken_since = 0.0
            return there == self._node
        if not memory.unspoken_since:
            memory.unspoken_since = self._now() + random.uniform(0.2, 1.5)  # noqa: S311 - spreads the nodes
        memory.look_again(memory.unspoken_since)
        return self._now() >= memory.unspoken_since

    def _entry(self, resource: SessionResource, verdict: ResourceVerdict, memory: PublishState) -> NodeEntry | None:
        intercept = resource.intercept
        if not verdict.standing or not verdict.pods or intercept is None:
            return None
        if memory.asked != self.picture:
            memory.asked = self.picture
            refusal = self._refusal(intercept)
            if refusal != memory.refusal:
                memory.refusal, memory.refused_since = refusal, self._now()
        refusal = OUTDATED if self._outdated else memory.refusal
        settled = refusal and self._now() - memory.refused_since >= SETTLED
        if refusal and not settled:
            memory.look_again(memory.refused_since + SETTLED)
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
            refusal=harmless(refusal) if settled else "",
            conditions=tuple(
                ConditionEntry(each.type, harmless(each.subject), harmless(each.text))
                for each in state.conditions[:MAX_CONDITIONS]
            ),
        )

    async def _patch(self, resource: SessionResource, fields: Mapping[str, Any], memory: PublishState) -> None:
        now = self._now()
        if memory.writes is None:
            memory.writes = Allowance(rate=WRITES, burst=WRITE_BURST, now=now)
        body = status_patch(fields)
        if body == memory.sent and now - memory.sent_at < SAME_AGAIN:
            memory.look_again(memory.sent_at + SAME_AGAIN)
            return
        if not memory.writes.take(now):
            memory.look_again(now + memory.writes.wait())
            return
        memory.sent, memory.sent_at = body, now
        memory.look_again(now + SAME_AGAIN)
        await self._write(resource, fields)

    async def _write(self, resource: SessionResource, fields: Mapping[str, Any]) -> None:
        """Write to a status; with it the digest of the spec, while it has none: then only if nobody wrote meanwhile."""
        latest = resource.latest
        for _ in range(ATTEMPTS):
            if latest.status.spec_digest or not resource.validated:
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
                if resource.validated:
                    self._outdated = not self._sight(resource, answer).status.spec_digest
            return

    async def _read(self, resource: SessionResource) -> ObservedResource:
        return self._sight(resource, await self._api.get(resource.latest.path))

    @staticmethod
    def _sight(resource: SessionResource, answer: bytes) -> ObservedResource:
        try:
            return observe(resource.latest.kind, decode(answer, dict))
        except ConfigurationError as error:
            raise ClusterError(f"the API server's answer cannot be read: {error}") from error

    async def withdraw(self, resource: SessionResource) -> None:
        """Take away our own entry, and no other: another daemon of this node may have written its own meanwhile.

        Raises ClusterError.
        """
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
