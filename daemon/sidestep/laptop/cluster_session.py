"""A session in a cluster: a resource that states the request, and a tunnel to each node with pods of the workload.

    create    an Intercept, Wiretap or Capture in the workload's namespace; RBAC decides
    renew     every ten seconds
    follow    its status, which names the daemons with pods of the workload, and their certificates
    tunnel    to each of these daemons (`node_tunnel`)
    delete    at the end, which ends the session on every node

While the API server or a node is unreachable, renewals and tunnels are retried. The session ends by `stop`, when
somebody deletes the resource, or when every node refuses it before it was ever active.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import dataclass
from typing import Any

from sidestep import __version__
from sidestep.aio.tasks import Tasks
from sidestep.aio.time_limit import time_limit
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.errors import ApiError, UnreachableClusterError
from sidestep.kube.resource_fields import GROUP
from sidestep.kube.resources import (
    RENEWAL,
    NodeEntry,
    Resource,
    collection_path,
    deletion,
    manifest,
    read,
    renewal,
)
from sidestep.kube.session_specs import DEFINITIONS
from sidestep.kube.watch import KubeObject, Watch, decode
from sidestep.laptop.api_refusals import explain
from sidestep.laptop.handler import Handler
from sidestep.laptop.node_tunnel import NodeTunnel, TunnelKey, key_of
from sidestep.laptop.session import Outcome, SessionObserver
from sidestep.laptop.session_resource import kind_of, spec_fields
from sidestep.model.errors import ClusterError, RefusedError, SidestepError
from sidestep.model.intercept import FLOWS
from sidestep.tunnel.channel import Channel
from sidestep.tunnel.limits import DEFAULT_LIMITS, TunnelLimits
from sidestep.tunnel.messages import (
    VERSION,
    AnyEvent,
    ConditionText,
    Ended,
    Hello,
    Moving,
    PodState,
    SessionSpec,
    State,
)
from sidestep.tunnel.opening import StreamOpening
from sidestep.tunnel.proof import generate, public_text
from sidestep.tunnel.session_names import base_name
from sidestep.tunnel.versions import difference

MAX_NAMES = 20
"""Names tried when none was given: orders, orders-2, …"""
FAREWELL = 5.0
"""Seconds for deleting the resource at the end."""
PATIENCE = 60.0
"""Seconds for which a session that was active tolerates refusals of the API server."""
NO_NODE = 2.0
"""Seconds without a node before the observer is told."""

_ACTIVE = frozenset({"active", "attached"})


@dataclass(slots=True)
class _OpenTunnel:
    tunnel: NodeTunnel
    state: State | None = None
    parting: str = ""
    """Why the daemon ends the tunnel, as it said itself."""


class ClusterSession:
    """One session in a cluster. `stop` may be called at any time, from the same event loop."""

    def __init__(
        self,
        *,
        access: ClusterAccess,
        spec: SessionSpec,
        handler: Handler,
        observer: SessionObserver,
        limits: TunnelLimits = DEFAULT_LIMITS,
    ) -> None:
        self._api = Api(access)
        self._spec = spec
        self._kind = kind_of(spec)
        self._handler = handler
        self._observer = observer
        self._limits = limits
        self._key = generate()
        self._over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._tasks = Tasks("session", on_crash=self._crashed)
        self._tunnels: dict[TunnelKey, _OpenTunnel] = {}
        self._latest: Resource | None = None
        self._published: State | None = None
        self._was_active = False
        self._interrupted = False
        self._refused_since: float | None = None
        self._noted: set[str] = set()

    def stop(self) -> None:
        """End the session in order; `run` then returns."""
        self._finish(Outcome())

    async def run(self) -> Outcome:
        """Create the resource, serve, delete the resource; returns how the session ended.

        Raises RefusedError or ClusterError when it could not begin.
        """
        created: Resource | None = None
        try:
            creating = self._tasks.start(self._create(), name="create")
            either: set[asyncio.Future[Any]] = {creating, self._over}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not creating.done():
                created = await self._created(creating)
                return self._over.result()
            created = creating.result()
            self._serve(created)
            return await self._over
        finally:
            # The resource is deleted before the tunnels close: first nothing matches it any more, then connections end.
            await self._delete(created)
            await self._tasks.aclose()
            await self._api.aclose()
            self._over.cancel()
            if not self._over.cancelled():
                self._over.exception()  # reported before, or the session ended otherwise

    # --- the resource -----------------------------------------------------------------------------------------------

    async def _create(self) -> Resource:
        spec = self._spec
        base = spec.name or base_name(spec)
        body = spec_fields(spec, public_text(self._key), self._api.access.user)
        for number in range(1, MAX_NAMES + 1):
            name = base if number == 1 else f"{base}-{number}"
            path = collection_path(self._kind, spec.namespace)
            try:
                answer = await self._api.create(path, manifest(self._kind, spec.namespace, name, body))
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise self._explained(error, "create") from error
                if spec.name:
                    raise RefusedError(
                        f"{self._kind} {spec.namespace}/{name} exists already; choose another --name, or end it with: "
                        f"sidestep leave {FLOWS if spec.heads_only else self._kind}/{name} -n {spec.namespace}"
                    ) from error
                continue
            return read(self._kind, decode(answer, dict))
        raise RefusedError(f"{MAX_NAMES} {self._kind}s named {base} exist already in {spec.namespace}; choose --name")

    def _serve(self, created: Resource) -> None:
        self._latest = created
        metadata = created.metadata
        self._hello = Hello(VERSION, __version__, "", "", metadata.uid, metadata.namespace, metadata.name)
        self._handler.intercept = f"{metadata.namespace}/{metadata.name}"
        self._observer.registered(self._hello)
        query = {"fieldSelector": f"metadata.name={metadata.name}"}
        watch = Watch(self._api, (collection_path(self._kind, metadata.namespace),), self, query=query)
        watch.on_state = lambda: self._watch_state(watch)
        self._tasks.start(watch.run(), name="watch")
        self._tasks.start(self._renew(created), name="renewal")
        self._tasks.start(self._report_no_node(), name="patience")

    async def _renew(self, created: Resource) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            try:
                await self._api.patch(created.path, renewal(dt.datetime.now(dt.UTC)))
            except UnreachableClusterError:
                continue
            except ApiError as error:
                if error.status == 404:
                    self._deleted()
                elif error.forbidden:
                    self._refused(self._explained(error, "patch"))
            else:
                self._refused_since = None

    async def _created(self, creating: asyncio.Future[Resource]) -> Resource | None:
        """Return what was being created when the session was stopped, so that it is deleted; None where nothing was."""
        try:
            async with time_limit(FAREWELL):
                return await asyncio.shield(creating)
        except (TimeoutError, SidestepError):
            return None

    async def _delete(self, created: Resource | None) -> None:
        if created is None:
            return
        try:
            async with time_limit(FAREWELL):
                await self._api.delete(created.path, deletion(created.metadata.uid))
        except (TimeoutError, ClusterError):
            pass  # without renewals it stops matching and is deleted later

    def _explained(self, error: ApiError, verb: str) -> SidestepError:
        resource = f"{DEFINITIONS[self._kind].plural}.{GROUP}"
        return explain(error, verb=verb, resource=resource, namespace=self._spec.namespace)

    # --- events of the watch (Sink)
    # -------------------------------------------------------------------------------------

    def replace(self, values: list[KubeObject], /) -> None:
        """As Sink.replace."""
        mine = [value for value in values if self._is_mine(value)]
        if mine:
            self.apply(mine[0])
        elif self._latest is not None:
            self._deleted()

    def apply(self, value: KubeObject, /) -> None:
        """As Sink.apply. The status may name other daemons."""
        if not self._is_mine(value):
            return
        self._latest = read(self._kind, value)
        status = self._latest.status
        there = {key_of(node, entry): (node, entry) for node, entry in status.nodes.items() if entry is not None}
        for key, open_ in self._tunnels.items():
            open_.tunnel.wanted = key in there
        for key, (node, entry) in there.items():
            if key not in self._tunnels:
                self._start_tunnel(key, node, entry)
        if status.state == "Refused" and not self._was_active:
            self._finish(Outcome(error=RefusedError(status.message)))
        self._publish_state()

    def remove(self, value: KubeObject, /) -> None:
        """As Sink.remove."""
        if self._is_mine(value):
            self._deleted()

    def _is_mine(self, value: KubeObject) -> bool:
        uid = (value.get("metadata") or {}).get("uid")
        return self._latest is not None and uid == self._latest.metadata.uid

    def _watch_state(self, watch: Watch) -> None:
        if watch.problem is not None:
            self._refused(self._explained(watch.problem, "watch"))

    def _deleted(self) -> None:
        if self._over.done():
            return
        ended = Ended(reason="was ended: somebody deleted it")
        self._observer.event(ended)
        self._finish(Outcome(ended=ended))

    # --- tunnels ----------------------------------------------------------------------------------------------------

    def _start_tunnel(self, key: TunnelKey, node: str, entry: NodeEntry) -> None:
        """Start the tunnel to one daemon.

        Registers it here and not in its task: several versions of the status may be applied before that runs, and of
        two tunnels to one daemon each would end the other.
        """
        assert self._latest is not None  # noqa: S101 - tunnels start after the resource was created
        tunnel = NodeTunnel(
            api=self._api,
            node=node,
            entry=entry,
            uid=self._latest.metadata.uid,
            key=self._key,
            dial=self._dial,
            hear=self._handler.hear,
            access=self._handler.access,
            on_event=lambda event: self._on_event(key, event),
            on_end=lambda reason: self._on_tunnel_end(key, reason),
            on_refusal=self._refused,
            on_hello=self._on_hello,
            limits=self._limits,
        )
        self._tunnels[key] = _OpenTunnel(tunnel)
        self._tasks.start(self._run_tunnel(key, tunnel), name=f"tunnel to {node}")

    async def _run_tunnel(self, key: TunnelKey, tunnel: NodeTunnel) -> None:
        try:
            await tunnel.run()
        finally:
            del self._tunnels[key]
            self._publish_state()

    def _on_hello(self, hello: Hello) -> None:
        note = difference(hello.software)
        if note and note not in self._noted:
            self._noted.add(note)
            self._observer.note(note)

    def _on_event(self, key: TunnelKey, event: AnyEvent) -> None:
        match event:
            case State():
                self._tunnels[key].state = event
                self._publish_state()
            case Ended() if event.over:
                self._observer.event(event)
                self._finish(Outcome(ended=event))
            case Ended() | Moving():
                # This daemon ends. The resource tells whether the session does, and which daemon follows.
                self._tunnels[key].parting = event.reason
            case _:
                self._observer.event(event)

    def _on_tunnel_end(self, key: TunnelKey, reason: str) -> None:
        open_ = self._tunnels[key]
        reason = reason or open_.parting or "the node daemon is gone"
        open_.state, open_.parting = None, ""
        if self._over.done():
            return
        if any(each.state is not None for each in self._tunnels.values()):
            self._publish_state(extra=(ConditionText("TunnelBroken", f"node {key[0]}", reason),))
        else:
            self._published, self._interrupted = None, True
            self._observer.interrupted(reason)

    def _publish_state(self, *, extra: tuple[ConditionText, ...] = ()) -> None:
        """Send the observer the state of all tunnels together, when it has changed."""
        pods: dict[str, PodState] = {}
        conditions: dict[ConditionText, None] = dict.fromkeys(extra)
        states = [open_.state for open_ in self._tunnels.values() if open_.state is not None]
        for state in states:
            conditions.update(dict.fromkeys(state.conditions))
            for pod in state.pods:
                if pod.pod not in pods or pod.state in _ACTIVE:
                    pods[pod.pod] = pod
        if not states:
            return
        if self._interrupted:
            self._interrupted = False
            self._observer.registered(self._hello)
        if self._latest is not None and self._latest.status.state in {"Refused", "Stale"} and self._was_active:
            status = self._latest.status
            subject = f"{self._kind} {self._latest.display}"
            conditions[ConditionText(status.state, subject, status.message)] = None
        state = State(tuple(pods[name] for name in sorted(pods)), tuple(conditions))
        self._was_active = self._was_active or state.active > 0
        if state != self._published and not self._over.done():
            self._published = state
            self._observer.event(state)

    async def _report_no_node(self) -> None:
        await asyncio.sleep(NO_NODE)
        if not self._tunnels and self._published is None and self._latest is not None:
            self._published = State(())
            self._observer.event(self._published)

    async def _dial(self, opening: StreamOpening) -> Channel:
        try:
            return await self._handler.dial(opening)
        except RefusedError as error:
            self._observer.handler_refused(opening, str(error))
            raise

    def _refused(self, error: SidestepError) -> None:
        """Handle a refusal of the API server. It ends a session that was never active.

        An active session tolerates refusals for `PATIENCE` seconds: an API server that has just started refuses every
        request until it has loaded its roles.
        """
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
        if not self._was_active or now - self._refused_since > PATIENCE:
            self._finish(Outcome(error=error))

    # --- the end ----------------------------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        if not self._over.done():
            self._over.set_result(outcome)

    def _crashed(self, _task: str, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error)
