"""The node daemon: makes, connects and starts every part in order, and stops them in the reverse order.

Start: the compiler child, the zygote and the first reading of the manifests run side by side; the first plan is made;
the socket opens last, so that a daemon that answers is ready. Nothing is steered before a session asks for it.

Upgrade: a daemon that starts on the socket of another one serves first and then asks the other to drain. The other one
tells its sessions to register anew and keeps steering for a while (`OVERLAP`), during which the new one attaches beside
it (the last attached wins); from the moment it is asked, it attaches and repairs nothing.

End, by SIGTERM, SIGINT or a successor: nothing new begins, the sessions are told, every port is unsteered at once
(which resets no connection), the proxies finish what they have within the drain timeout, the socket is closed. A second
signal ends the waiting. When a task of ours crashes, every port is unsteered first, then the daemon ends with status 1:
without it the app serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sidestep import __version__
from sidestep.aio.meter import MeteredLoop
from sidestep.aio.once import Once
from sidestep.aio.tasks import Tasks
from sidestep.config.node_options import NodeOptions
from sidestep.config.node_settings import OWN_NAMESPACE, NodeSettings
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import BugError, ClusterError, ConfigurationError, KernelError
from sidestep.model.pod import PodKey
from sidestep.node.api.local_api import LocalApi
from sidestep.node.api.status import NodeStatusView
from sidestep.node.certificates.material import InventorySecrets
from sidestep.node.certificates.reader import Reader
from sidestep.node.certificates.store import CertificateStore
from sidestep.node.conditions import Conditions, Source
from sidestep.node.controller import Controller
from sidestep.node.engines import Engines
from sidestep.node.manifests import InventorySource, ManifestDirectory, Reading
from sidestep.node.own_addresses import own_addresses
from sidestep.node.pod_world import NodePodWorld
from sidestep.node.pods.audit import Audit
from sidestep.node.pods.reconciler import Reconciler
from sidestep.node.pods.toolbox import Toolbox
from sidestep.node.policies import PolicyStore
from sidestep.node.proxies.memory_cgroups import MemoryCgroups
from sidestep.node.proxies.supervisor import ProxySupervisor, SupervisorSettings
from sidestep.node.records.eve_log import EveLog
from sidestep.node.records.live import LiveRecordRelay
from sidestep.node.records.presence import Presence, absence
from sidestep.node.sessions.registry import SessionRegistry
from sidestep.node.shown_changes import ShownChanges
from sidestep.node.startup_checks import Place, find_place
from sidestep.observability import logs
from sidestep.steering import CompiledProgram, compile_egress, compile_peername, compile_program

if TYPE_CHECKING:
    from sidestep.node.cluster.service import ClusterService

OVERLAP = 2.0
OVERLAP_PER_TARGET = 0.1
OVERLAP_MAX = 20.0
"""Seconds for which a daemon that hands over goes on steering, at most the last.

Its sessions find the new one meanwhile, and that one attaches to the same pods."""

POLICIES = 5.0
"""Seconds for which the first plan waits for policies to be judged, so that it has them."""

PRESENCE = Path("/var/log/sidestep/inspected.json")
"""What the next daemon is told in a cluster (`records.presence`): beside the log, in a folder of the node."""

_PR_SET_DUMPABLE = 4


def run(options: NodeOptions) -> int:
    """Run the daemon until it is told to stop; returns the exit status.

    Raises ConfigurationError or another SidestepError when it cannot start.
    """
    with find_place(options) as place:
        logs.configure()
        _raise_file_limit()
        _leave_no_core()
        try:
            with asyncio.Runner(loop_factory=MeteredLoop) as runner:
                return runner.run(_Daemon(options, place).run())
        finally:
            logs.drain()


class _Ground(msgspec.Struct, frozen=True):
    """What must be there before anything can be built."""

    program: CompiledProgram
    supervisor: ProxySupervisor
    reading: Reading


class _Parts(msgspec.Struct, frozen=True):
    """What the daemon consists of while it serves."""

    conditions: Conditions
    controller: Controller
    certificates: CertificateStore
    policies: PolicyStore
    engines: Engines
    view: NodeStatusView
    sessions: SessionRegistry
    world: NodePodWorld
    reconciler: Reconciler
    audit: Audit
    records: EveLog
    presence: Presence
    api: LocalApi


@dataclass(slots=True)
class _Stop:
    """Why and how the daemon ends."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    hurried: asyncio.Event = field(default_factory=asyncio.Event)
    crash: BaseException | None = None
    succeeded: bool = False
    """Another daemon has taken over."""


class _Daemon:
    """One run of the daemon."""

    def __init__(self, options: NodeOptions, place: Place) -> None:
        self._place = place
        self._options = options
        self._cluster: ClusterService | None = None
        self._source: InventorySource
        self._reader = Reader(manifests=options.manifests is not None)
        self._pod_reader = Reader()
        """For sessions: its children live for minutes, and must not end when a certificate's file system hangs."""
        self._stop = _Stop()
        self._log = logs.get_logger("node")
        self._shown = ShownChanges()

    async def run(self) -> int:
        """Start, serve, drain. Returns the exit status."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._loop_error)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        self._log.info("starting", version=__version__, pid=os.getpid(), manifests=str(self._options.manifests))
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(self._reader.close)
            undo.callback(self._pod_reader.close)
            ground = await self._ground(undo)
            if ground is not None:
                undo.push_async_callback(ground.supervisor.aclose)
                await self._serve(ground, undo)
        crash = self._stop.crash
        if isinstance(crash, ConfigurationError | KernelError | ClusterError):
            raise crash  # somebody else's fault, which its text names; a refusal that nobody has caught is a bug
        if crash is not None:
            self._log.error("crashed", error=repr(crash))
            raise BugError(f"the node daemon met a bug and ended: {crash!r}") from crash
        self._log.info("stopped")
        return 0

    async def _join_cluster(self, undo: contextlib.AsyncExitStack) -> InventorySource:
        from sidestep.kube.access import in_cluster
        from sidestep.node.cluster.service import ClusterService

        self._cluster = ClusterService(
            self._place.access or in_cluster(),
            self._options,
            on_crash=self._crashed,
            now=asyncio.get_running_loop().time,
            node_addresses=partial(own_addresses, in_pod=True),
        )
        undo.push_async_callback(self._cluster.aclose)
        await self._cluster.start()
        return self._cluster.source

    async def _ground(self, undo: contextlib.AsyncExitStack) -> _Ground | None:
        """Do what takes long side by side; when one fails, the others are ended. None when told to stop meanwhile."""
        async with Tasks("start") as tasks:
            asked = tasks.start(self._stop.asked.wait(), name="signal")
            compiling = tasks.start(compile_program(), name="compile the program")
            await asyncio.sleep(0)  # the compiler starts before this process imports the rest
            # An API server may not answer for a long time.
            loading = tasks.start(self._load(undo), name="inventory")
            waiting: set[asyncio.Task[Any]] = {asked, compiling, loading}
            while loading in waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if tasks.crash is not None:
                    raise tasks.crash
                if asked in done:
                    return None
                waiting -= done
            settings = SupervisorSettings(cgroups=self._memory_cgroups())
            supervisor = await ProxySupervisor.start(on_output=self._proxy_output, settings=settings)
            try:
                program = await compiling
            except BaseException:
                await supervisor.aclose()
                raise
        return _Ground(program, supervisor, loading.result())

    async def _load(self, undo: contextlib.AsyncExitStack) -> Reading:
        if self._options.manifests is not None:
            self._source = ManifestDirectory(self._options.manifests, self._reader)
        else:
            self._source = await self._join_cluster(undo)
        return await self._source.load()

    def _memory_cgroups(self) -> MemoryCgroups | None:
        """Where proxies get memory cgroups: in local mode only, a container's are its runtime's."""
        if self._options.manifests is None:
            return None
        try:
            cgroups = MemoryCgroups.find()
        except ConfigurationError as error:
            self._log.warning("proxies have no memory cgroups of their own", reason=str(error))
            return None
        cgroups.begin()
        return cgroups

    def _build(self, ground: _Ground, undo: contextlib.AsyncExitStack) -> _Parts:
        """Make the parts and connect them; nothing runs yet. Raises SidestepError."""
        loop = asyncio.get_running_loop()
        conditions = Conditions(on_change=self._shown.changed)
        controller = Controller(
            node_name=self._options.node_name,
            conditions=conditions,
            node_addresses=own_addresses(in_pod=self._cluster is not None),
            own_namespace=self._options.pod.namespace if self._options.pod is not None else OWN_NAMESPACE,
        )
        certificates = CertificateStore(
            reader=self._reader,
            secrets=InventorySecrets(self._source, lambda: controller.inventory),
            conditions=conditions,
            on_change=controller.changed,
            on_crash=self._crashed,
        )
        undo.push_async_callback(certificates.aclose)
        policies = PolicyStore(conditions=conditions, on_change=controller.changed)
        engines = Engines(conditions=conditions, on_change=controller.changed, crs=self._options.crs)
        undo.push_async_callback(engines.aclose)
        view = NodeStatusView(
            node_name=self._options.node_name,
            controller=controller,
            certificates=certificates,
            policies=policies,
            conditions=conditions,
            now=loop.time,
            meter=loop.meter if isinstance(loop, MeteredLoop) else None,
        )
        sessions = SessionRegistry(
            view=view,
            node=self._options.node_name,
            local_refusal="" if self._cluster is None else "this node belongs to a cluster: intercept through its API",
        )

        node = self._options.node_name
        records = EveLog(
            node=node,
            path=self._options.eve,
            on_problem=lambda reason: _state_records(conditions, node, reason),
            names=engines.names,
        )

        peernames, outbound = Once(compile_peername), Once(compile_egress)

        def tools(on_change: Callable[[PodKey], None]) -> Toolbox:
            return Toolbox(
                program=ground.program,
                supervisor=ground.supervisor,
                handlers=sessions,
                credential=certificates.credential,
                conditions=conditions,
                now=loop.time,
                peernames=peernames.get,
                outbound=outbound.get,
                on_change=on_change,
                records=records,
                live_records=LiveRecordRelay(
                    node=node, feed=sessions.record_feed, names=engines.names, recent=records.recent
                ),
                ids_rules=engines.ids_rules,
                inspectors=engines.inspectors,
            )

        kept = PRESENCE if self._cluster is not None else self._options.socket.with_suffix(".inspected")
        reconciler = Reconciler(
            tools=tools,
            conditions=conditions,
            on_change=self._shown.changed,
            on_crash=self._crashed,
            absence=absence(kept),
        )
        sessions.world = world = NodePodWorld(
            inventory=lambda: controller.inventory,
            reader=self._pod_reader,
            name=self._options.node_name,
            target=reconciler.target,
            denied=lambda: controller.settings.outbound_deny,
            node_addresses=partial(own_addresses, in_pod=self._cluster is not None),
        )
        return _Parts(
            conditions=conditions,
            controller=controller,
            certificates=certificates,
            policies=policies,
            engines=engines,
            view=view,
            sessions=sessions,
            world=world,
            reconciler=reconciler,
            audit=Audit(reconciler, conditions, node=self._options.node_name),
            records=records,
            presence=Presence(kept),
            api=LocalApi(path=self._options.socket, view=view, sessions=sessions, on_drain=self._succeeded),
        )

    def _connect(self, parts: _Parts, ground: _Ground) -> None:
        """Tell each part which others it works with, and the controller what there is."""
        sessions, controller, audit = parts.sessions, parts.controller, parts.audit
        parts.view.connect(
            sessions=sessions,
            reconciler=parts.reconciler,
            counters=lambda: {
                "drift_repaired": audit.repaired,
                "zygote_restarts": ground.supervisor.zygote.restarts,
                "unread_streams_reset": sessions.budget.shed_count,
                **{f"records_{name}": count for name, count in parts.records.counts.items() if count},
            },
            alerts=parts.records.recent,
        )
        sessions.alerts = parts.records.recent.of
        sessions.on_change = controller.changed
        intercepts = sessions.intercepts
        if self._cluster is None:
            self._shown.connect(sessions.refresh)
        else:
            self._shown.connect(sessions.refresh, self._cluster.changed)
            self._cluster.connect(
                controller=controller,
                sessions=sessions,
                view=parts.view,
                conditions=parts.conditions,
                alerts=parts.records.alerts,
            )
            intercepts = self._cluster.intercepts
        controller.connect(
            certificates=parts.certificates,
            policies=parts.policies,
            intercepts=intercepts,
            want_secrets=self._source.want_secrets,
            use_settings=partial(_use_settings, parts),
            use_policies=parts.engines.offer,
            complete=parts.engines.complete,
        )
        controller.replace_inventory(ground.reading)

    async def _serve(self, ground: _Ground, undo: contextlib.AsyncExitStack) -> None:
        """Serve until told to stop, then drain."""
        parts = self._build(ground, undo)
        self._connect(parts, ground)
        controller, reconciler = parts.controller, parts.reconciler
        tasks = Tasks("node", on_crash=self._crashed)
        undo.push_async_callback(tasks.aclose)
        tasks.start(parts.policies.run(), name="policies")
        parts.engines.start(tasks)
        await parts.policies.settle(within=POLICIES)
        await controller.plan_once(reconciler)
        reconciler.start()
        tasks.start(controller.run(reconciler, self._shown.changed), name="controller")
        tasks.start(controller.watch_locations(), name="locations")
        tasks.start(self._source.watch(controller.replace_inventory), name="inventory")
        tasks.start(parts.certificates.poll(), name="certificates")
        if self._place.lock is not None:
            tasks.start(self._place.lock.wait_for(), name="lock on the manifests")
        tasks.start(parts.records.run(), name="records")
        keeping = tasks.start(parts.presence.run(reconciler.inspected), name="presence")
        auditing = tasks.start(parts.audit.run(), name="audit")
        try:
            await parts.api.start()
            if self._cluster is not None:
                tasks.start(self._cluster.run(), name="cluster")
                self._cluster.health.status = parts.view.status
            self._log.info("ready", socket=str(self._options.socket), pods=len(controller.inventory.pods))
            await self._stop.asked.wait()
        finally:
            controller.stopping = True
            auditing.cancel()
            keeping.cancel()
            reconciler.freeze()
            await self._hand_over(parts)
            await self._drain(parts)

    async def _hand_over(self, parts: _Parts) -> None:
        """Send the sessions away; while a successor attaches, go on steering. Nothing is steered when this ends."""
        parts.sessions.move("another node daemon takes over" if self._stop.succeeded else "the node daemon stops")
        try:
            if self._stop.succeeded:
                overlap = OVERLAP + OVERLAP_PER_TARGET * len(parts.reconciler.targets())
                await self._unless_hurried(asyncio.sleep(min(overlap, OVERLAP_MAX)))
        finally:
            parts.reconciler.abandon()
            parts.presence.finish()

    async def _drain(self, parts: _Parts) -> None:
        """Let the proxies finish what they have, then close what others connect to."""
        timeout = parts.controller.settings.drain_timeout
        self._log.info("draining", targets=len(parts.reconciler.targets()), timeout=timeout)
        if self._cluster is not None:
            await self._cluster.withdraw()
        await self._unless_hurried(parts.reconciler.close())
        await parts.records.aclose()
        await parts.sessions.close("the node daemon stops")
        await parts.api.aclose()

    async def _unless_hurried(self, closing: Any) -> None:
        """Wait for the drain, but no longer once a second signal comes or something has crashed."""
        async with Tasks("drain") as tasks:
            waiting = {
                tasks.start(closing, name="targets"),
                tasks.start(self._stop.hurried.wait(), name="second signal"),
            }
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)

    # --- what comes from outside ------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        self._log.info("signal", signal=signal.Signals(number).name)
        if self._stop.asked.is_set():
            self._stop.hurried.set()
        self._stop.asked.set()

    def _succeeded(self) -> None:
        self._log.info("another node daemon takes over")
        self._stop.succeeded = True
        self._stop.asked.set()

    def _crashed(self, task: str, error: BaseException) -> None:
        self._log.error("task crashed", task=task, error=repr(error), exc_info=error)
        self._stop.crash = self._stop.crash or error
        self._stop.asked.set()
        self._stop.hurried.set()

    def _loop_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._log.error("event loop", message=str(context.get("message")), exc_info=context.get("exception"))

    def _proxy_output(self, line: str) -> None:
        self._log.warning("pod proxy output", line=line)


def _use_settings(parts: _Parts, settings: NodeSettings) -> None:
    parts.records.use(settings.eve)
    parts.world.follow_settings()


def _state_records(conditions: Conditions, node: str, reason: str) -> None:
    """State why records of inspection are not written; "" takes it back."""
    text = f"records of inspection are not written: {reason}"
    stated = [Condition(ConditionType.RECORDS_NOT_WRITTEN, f"node {node}", text)] if reason else []
    conditions.state(Source("records"), stated)


def _leave_no_core() -> None:
    """Keys pass through this process: whatever ends it, its memory goes to no file and no crash reporter (core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _raise_file_limit() -> None:
    """A target pod takes about ten descriptors, every diverted connection two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
