"""One target pod: opens, changes and releases its namespace, steering, listeners and proxy together.

`open` is a transaction: it verifies the namespace, attaches the program with an empty map (which steers nothing) and
starts the proxy; if any step fails, the steps before it are undone. `apply` then brings the ports in line with a plan:
the proxy gets its configuration and a listener, acknowledges both, and only then the port goes into the kernel's map.
Undoing runs in reverse: the port leaves the map, the proxy stops listening (it still accepts what is queued), and the
configuration is taken away last. A connection therefore never arrives at a proxy that has no configuration for it.

Ports that a policy closes follow the plan before anything else does (`follow_policies`). If another daemon's program is
attached when `open` attaches ours, they are closed from the first lookup on: that daemon hands over, what it steers is
still served, and what it has closed stays closed.

Releasing resets no connection. `detach` empties the map at once; `drain` lets the proxy finish; `abandon` gives
everything back immediately, for a namespace that is gone and would keep the pod's veth alive.

What the proxy reports arrives through `proxy_reports`; `proxy_presence` says whether the proxy is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import RefusedError, SidestepError
from sidestep.model.pod import Family, NetnsId, Pod, Transport
from sidestep.netns import Netns
from sidestep.node.conditions import Statements
from sidestep.node.planning.plan import PodPlan, PortPlan
from sidestep.node.pods.client_addresses import ClientAddresses
from sidestep.node.pods.closed_ports import entries_of
from sidestep.node.pods.datagram_ports import DatagramPorts, Entry
from sidestep.node.pods.pod_counters import PodCounters
from sidestep.node.pods.pod_egress import PodEgress
from sidestep.node.pods.pod_engines import PodEngines
from sidestep.node.pods.pod_netns import Address, open_pod_netns
from sidestep.node.pods.probed_apps import ProbedApps
from sidestep.node.pods.proxy_presence import ProxyPresence
from sidestep.node.pods.proxy_reports import ProxyReports
from sidestep.node.pods.stream_ports import StreamPorts
from sidestep.node.pods.toolbox import Toolbox
from sidestep.node.proxies.supervisor import PodProxy, ProxyState
from sidestep.observability.logs import get_logger
from sidestep.proxy.control.messages import OUTBOUND
from sidestep.steering import Steering, programs_attached

if TYPE_CHECKING:
    from sidestep.node.planning.inspection_times import InspectionTimes, Uninspected
    from sidestep.node.proxies.dials import Dialled
    from sidestep.proxy.control.messages import Dial, Probed, UseNetwork
    from sidestep.snapshots.hindrance import Hindrance
    from sidestep.snapshots.inspection import PolicySnapshot
    from sidestep.snapshots.ports import PortSnapshot
    from sidestep.tunnel.views import EngineView

_MEANWHILE = "its ports are left to the app, or closed by a policy"


class Target:
    """A target pod. `await open()`, then `apply` as often as needed, then `detach` and one of `drain` and `abandon`."""

    def __init__(self, pod: Pod, uid: int, tools: Toolbox, *, times: InspectionTimes) -> None:
        self.pod = pod
        self.uid = uid
        self._tools = tools
        self._times = times
        self._log = get_logger("target").bind(pod=str(pod.key))
        self._netns: Netns | None = None
        self._addresses: frozenset[Address] = frozenset()
        self._steering: Steering | None = None
        self._proxy: PodProxy | None = None
        self._statements = Statements(tools.conditions, pod.key)
        self._streams = StreamPorts(pod.key, owner=self, statements=self._statements, now=tools.now)
        self._datagrams = DatagramPorts()
        self._apps = ProbedApps()
        self._generation = 0
        self._presence = ProxyPresence(now=tools.now, on_gone=self._proxy_gone)
        self._served: frozenset[str] = frozenset()
        self._policies: dict[int, tuple[PolicySnapshot, ...]] = {}
        self._makes_records = False
        """The proxy has been told that somebody reads records of inspection."""
        self.why_fewer_workers = ""
        """Why its proxy has one process although its annotations ask for more."""
        self.client_addresses = ClientAddresses.off()
        self._reports = ProxyReports(
            self, tools=tools, statements=self._statements, streams=self._streams, apps=self._apps
        )
        self._engines = PodEngines(
            pod, uid, tools, statements=self._statements, proxy=self._running, changed=self.changed
        )
        self._egress = PodEgress(
            pod,
            programs=tools.outbound,
            statements=self._statements,
            changed=lambda: tools.on_change(pod.key),
            now=tools.now,
        )

    # --- life -------------------------------------------------------------------------------------------------------

    async def open(self, *, claim: Callable[[NetnsId], None], closing: frozenset[int] = frozenset()) -> None:
        """Enter the pod; nothing is steered yet. Raises SidestepError, and then nothing is left behind.

        `claim` is called before anything is made; it raises SidestepError when the namespace is another target's.
        `closing` are the ports that a policy closes.
        """
        async with contextlib.AsyncExitStack() as undo:
            pod_netns = open_pod_netns(self.pod)
            undo.callback(pod_netns.netns.close)
            claim(pod_netns.netns.id)
            closed = closing if programs_attached(pod_netns.netns.fd) else frozenset()
            steering = Steering.attach(self._tools.program, pod_netns.netns.fd, closed=entries_of(closed))
            undo.callback(steering.close)
            client_addresses = await self._attach_client_addresses(self.pod)
            undo.callback(client_addresses.close)
            proxy = self._tools.supervisor.proxy(
                str(self.pod.key), netns_fd=pod_netns.netns.fd, uid=self.uid, handler=self._reports
            )
            undo.push_async_callback(self._tools.supervisor.remove, proxy)
            await proxy.start()
            undo.pop_all()
        self._netns, self._addresses = pod_netns.netns, pod_netns.addresses
        self._steering, self._proxy = steering, proxy
        self.client_addresses = client_addresses
        self._streams.enter(pod_netns.netns, own=pod_netns.addresses, steering=steering, closed=closed)
        self._streams.follow_policies(closing)
        for number in closed:
            self.stands(number, None)  # the daemon that hands over inspects it, or has closed it
        self._statements.begin()
        self._log.info("target opened", netns=pod_netns.netns.path, proxy_pid=proxy.pid, uid=self.uid)

    async def apply(self, plan: PodPlan, *, drain_timeout: float) -> None:
        """Bring proxy and ports in line with this plan. Raises SidestepError; the steps that succeeded stay."""
        proxy = self._running()
        await self._follow_cgroup(plan.pod)
        self.pod = plan.pod
        wanted = {port.number: port for port in plan.ports if port.transport is Transport.TCP}
        datagrams = {port.number: port for port in plan.ports if port.transport is Transport.UDP}
        self._datagrams.unsteer_gone(datagrams, self._steering)
        await self._streams.leave_gone(wanted, proxy=proxy)
        self._generation += 1
        self._apps.outdated = False
        known = self._streams.plans()
        for number, port in wanted.items():
            if number not in known or known[number].snapshot.app != port.snapshot.app:
                self._apps.forget(number)
        records = self._tools.records.wanted
        failures = await proxy.apply(
            {
                name: self._tools.credential(self.pod.key, name)
                for names in (
                    *(port.snapshot.credentials for port in plan.ports),
                    *(each.credentials for each in plan.egress),
                )
                for name in names
            },
            generation=self._generation,
            ports=tuple(self._snapshot(port) for port in plan.ports),
            drain_timeout=drain_timeout,
            client_sources=self.client_addresses.sources,
            records=records,
            egress=plan.egress,
            outbound=plan.outbound,
            workers=plan.workers,
        )
        self.why_fewer_workers = plan.why_fewer_workers
        self._makes_records = records
        self._served = plan.uids
        self._policies = {number: port.snapshot.policies for number, port in wanted.items()}
        self._reports.on_credentials(failures)
        self._engines.follow(self.pod, [port.snapshot for port in wanted.values()], plan.egress)
        await self._streams.apply(wanted, proxy=proxy)
        if self._netns is not None and self._steering is not None:
            await self._datagrams.apply(datagrams, netns=self._netns, proxy=proxy, steering=self._steering)
            if self._datagrams.is_empty:
                self._statements.state(None, "datagrams", ())
            await self._egress.apply(
                plan.egress,
                listened=plan.outbound is not None,
                pod=plan.pod,
                proxy=proxy,
                netns=self._netns,
                own=self._addresses,
            )
        self._streams.look(force=True)
        self._log.info("target configured", ports=sorted(wanted), generation=self._generation)

    async def dial(self, dial: Dial, network: UseNetwork) -> Dialled:
        """Have the proxy make a connection for a session; as `PodProxy.dial`."""
        return await self._running().dial(dial, network)

    def follow_policies(self, closing: frozenset[int]) -> None:
        """Close these ports and open all others, before the plan that says so is applied. Never raises."""
        if self.attached:
            self._streams.follow_policies(closing)

    def hand_over(self) -> None:
        """This daemon hands over: its successor decides which ports are closed, once it is attached. Never raises."""
        if self.attached:
            self._streams.hand_over()

    def detach(self) -> None:
        """Unsteer and open everything now; connections that have arrived go on. Never raises."""
        if self.attached:
            self._times.detached(self._tools.now())
        self._streams.detached()
        self._egress.detach()
        self._datagrams.forget_steering()
        if self._steering is not None:
            self._steering.close()
            self._steering = None
        self._engines.release()
        self._statements.end()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the proxy's deadline, not ours
        """Let the proxy finish within `timeout` seconds, then give everything back. Never raises."""
        self.detach()
        if self._proxy is not None and self._presence.state is ProxyState.RUNNING:
            try:
                # The next request of a connection that is kept alive goes to the app.
                await self._proxy.apply({}, generation=self._generation + 1, ports=(), drain_timeout=timeout)
            except SidestepError as error:
                self._log.info("target could not be told to stop diverting", reason=str(error))
        if self._proxy is not None:
            await self._proxy.drain(timeout)
        await self.abandon()

    async def abandon(self) -> None:
        """Give everything back now; connections through the proxy end. Never raises."""
        self.detach()
        self._presence.stop()
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            await self._tools.supervisor.remove(proxy)
            self._log.info("target released")
        await self._engines.aclose()
        self.client_addresses.close()
        self._egress.close()
        self._streams.close()
        self._datagrams.close()
        if self._netns is not None:
            self._netns.close()
            self._netns = None

    # --- what reality says ------------------------------------------------------------------------------------------

    @property
    def netns(self) -> Netns | None:
        """The namespace, while it is held."""
        return self._netns

    @property
    def proxy_state(self) -> ProxyState:
        """State of the pod proxy."""
        return self._presence.state

    @property
    def counters(self) -> PodCounters:
        """What the present proxy process has counted."""
        return self._reports.counters

    def engines(self) -> tuple[EngineView, ...]:
        """The engines beside the proxy that policies want, and how many connections the proxy fed them."""
        return self._engines.shown(self.counters)

    def why_unjudged(self, policies: tuple[PolicySnapshot, ...]) -> str:
        """As `PodEngines.why_unjudged`."""
        return self._engines.why_unjudged(policies)

    @property
    def connections(self) -> int:
        """Open client connections."""
        return self._reports.counters.connections

    @property
    def seen(self) -> bool:
        """Whether any connection has ever arrived: proof that the pod's traffic reaches the hook."""
        return self._reports.seen

    @property
    def proxy_pid(self) -> int | None:
        """Its present process."""
        return self._proxy.pid if self._proxy is not None else None

    @property
    def proxy_pids(self) -> tuple[int, ...]:
        """All its present processes."""
        return self._proxy.pids if self._proxy is not None else ()

    @property
    def attached(self) -> bool:
        """Whether it steers or may steer; not before `open`, nor after `detach`."""
        return self._steering is not None

    @property
    def broken(self) -> bool:
        """Whether it must be made anew, because of a bug."""
        return self._proxy is not None and self._proxy.broken

    def alive(self) -> bool:
        """Whether the namespace that is held is still the pod's. Costs one stat."""
        if self._netns is None:
            return False
        try:
            status = os.stat(self._netns.path)  # noqa: PTH116 - a sixth of the cost of a Path's
        except (OSError, ValueError):
            return False
        return (status.st_dev, status.st_ino) == (self._netns.id.device, self._netns.id.inode)

    def steered(self) -> dict[int, frozenset[Family]]:
        """The families steered now, by port; ports that wait for an app or a proxy have none."""
        return self._streams.steered()

    def steered_datagrams(self) -> dict[int, frozenset[Family]]:
        """The same for UDP ports."""
        return self._datagrams.steered()

    def takes(self, number: int, transport: Transport) -> bool:
        """Whether traffic of a port reaches the proxy now: steered to it, or copied."""
        if transport is Transport.UDP:
            return bool(self._datagrams.steered().get(number)) or number in self._datagrams.tapped()
        return bool(self.steered().get(number))

    def serves(self, uid: str) -> bool:
        """Whether the proxy has been told of this intercept or wiretap."""
        return uid in self._served

    def inspects(self, number: int, policies: tuple[PolicySnapshot, ...]) -> bool:
        """Whether the proxy has been told of exactly these inspection policies of a TCP port."""
        return self._policies.get(number, ()) == policies

    @property
    def egress(self) -> PodEgress:
        """Connections that the pod makes."""
        return self._egress

    def waits_for_app(self, number: int) -> bool:
        """Whether a port is not steered only because no app listens on it."""
        return self._streams.waits_for_app(number)

    def probed(self, number: int) -> Probed | None:
        """What the last probe of the app behind a port found, as long as it holds."""
        return self._apps.get(number)

    @property
    def outdated(self) -> bool:
        """Whether `apply` has something to do although the plan is the same."""
        ports = self._apps.outdated or self._streams.outdated or self._datagrams.outdated(self._tools.now())
        return ports or self._egress.outdated or self._makes_records is not self._tools.records.wanted

    def why_left(self, number: int, transport: Transport) -> str:
        """Why no traffic of a port reaches the proxy, as far as the proxy is the reason; empty otherwise."""
        if transport is Transport.UDP:
            return self.absence() or self._streams.why_all_left()
        return self._streams.why_left(number)

    def look(self) -> None:
        """Ask which apps listen, and bring the map in line. Never raises."""
        self._streams.look()
        self._look_at_datagrams()
        self._egress.look(absent=bool(self.absence()))
        self._engines.look()
        if self._makes_records is not self._tools.records.wanted and self._generation:
            self.changed()

    def sweep(self) -> None:
        """Reset whoever waits for a proxy that does not take connections. Never raises."""
        self._streams.sweep()
        if self.is_proxy_gone():
            self._egress.sweep()

    def _look_at_datagrams(self) -> None:
        if self._steering is None or self._datagrams.is_empty:
            return
        if self._datagrams.look(self._tools.now()):
            self._log.warning("a UDP socket was closed by somebody in the pod")
        if self.absence() or self._streams.why_all_left():
            self._datagrams.pause(self._steering)
        else:
            try:
                self._datagrams.resume(self._steering)
            except SidestepError as error:
                text = f"datagrams are left to the app, because steering failed: {error}"
                failed = [Condition(ConditionType.STEERING_FAILED, f"pod {self.pod.key}", text)]
                self._statements.state(None, "datagrams", failed)
            else:
                self._statements.state(None, "datagrams", ())
        if self._datagrams.outdated(self._tools.now()):
            self.changed()

    def expected(self) -> frozenset[Entry]:
        """What the kernel's map should hold."""
        udp = ((number, Transport.UDP, each) for number, all_ in self._datagrams.steered().items() for each in all_)
        return self._streams.expected() | frozenset(udp)

    def drift(self) -> list[str]:
        """Compare with the kernel, repair what can be repaired here; one text per difference. Raises SidestepError."""
        if self._steering is None:
            return []
        if not self._steering.attached():
            raise RefusedError("the steering program is no longer attached")
        if self._egress.is_lost:
            raise RefusedError("the programs for connections that the pod makes are no longer attached")
        real, expected = self._steering.entries(), self.expected()
        astray = {entry for entry, number in self._sockets().items() if self._steering.socket_of(*entry) != number}
        found = []
        for number, transport, family in sorted(astray | (expected - real)):
            how = "was steered to another socket" if (number, transport, family) in real else "was not steered any more"
            found.append(f"port {number}/{transport} ({family.name}) {how}")
            if transport is Transport.UDP:
                self._datagrams.pause(self._steering)
                self._datagrams.resume(self._steering)
            else:
                self._streams.lost(number, family)
        for number, transport, family in sorted(real - expected):
            found.append(f"port {number}/{transport} ({family.name}) was steered without a reason")
            self._steering.unsteer(number, transport, family)
        found += self._streams.repair_closed()
        if found:
            self._streams.look(force=True)
        return found

    def _sockets(self) -> dict[Entry, int]:
        """The kernel's number of the socket that each entry of the map should lead to. Raises KernelError."""
        return {**self._streams.sockets(), **self._datagrams.sockets()}

    # --- the proxy reports (proxy_reports.ReportsOwner) ---------------------------------------------------------------

    @property
    def own_addresses(self) -> frozenset[Address]:
        """The pod's addresses."""
        return self._addresses

    def hindered(self, hindrances: tuple[Hindrance, ...]) -> None:
        """The proxy cannot serve as it should, or can again: unsteer what it cannot serve, at once."""
        self._streams.hindered([each for each in hindrances if each.port != OUTBOUND])
        self._egress.hindered(hindrances)
        self._egress.look(absent=bool(self.absence()))
        self._look_at_datagrams()
        self.changed()

    def inspector_late(self) -> None:
        """The inspector has missed a deadline: end it."""
        self._engines.inspector_late()

    def server_unreachable(self, address: str, port: int) -> None:
        """A server that the pod connects to refused the proxy, or did not answer it."""
        self._egress.unreachable(address, port)

    def proxy_changed(self, state: ProxyState, reason: str) -> None:
        """The proxy came, went, or is given up for now."""
        was_there = self._presence.changed(state)
        if state is ProxyState.RUNNING:
            self._engines.proxy_runs()
        if state is not ProxyState.RUNNING:
            self.client_addresses.reset()
        self._log.info("pod proxy", state=state.value, reason=reason, pid=self.proxy_pid)
        if was_there:
            self._streams.proxy_gone()
            self._egress.process_gone()
        conditions = []
        if state is ProxyState.FAILED:
            self._streams.unsteer()
            self._streams.close_unserved()
            self._streams.sweep()
            self._datagrams.pause(self._steering)
            text = f"the pod proxy keeps ending ({reason}); {_MEANWHILE}, and it is tried again"
            conditions.append(Condition(ConditionType.PROXY_CRASH_LOOP, f"pod {self.pod.key}", text))
        self._statements.state(None, "state", conditions)
        self.changed()

    def worker_ended(self, worker: int, reason: str) -> None:
        """One of several processes of the proxy has ended: the others serve on."""
        self.client_addresses.reset(worker)
        self._log.info("a process of the pod proxy has ended", worker=worker, reason=reason)
        self.changed()

    def _proxy_gone(self) -> None:
        """The proxy has been away for longer than its clients may wait."""
        text = f"{self.absence()}; {_MEANWHILE} until it is"
        condition = Condition(ConditionType.PROXY_NOT_READY, f"pod {self.pod.key}", text)
        self._statements.state(None, "state", [condition])
        self.look()
        self.sweep()
        self.changed()

    # --- the ports ask (stream_ports.Owner) -------------------------------------------------------------------------

    def absence(self) -> str:
        """Why the proxy takes no connections now, nor will in a moment; empty: it does."""
        return self._presence.absence(quiet=self._proxy.quiet if self._proxy is not None else 0.0)

    def is_proxy_gone(self) -> bool:
        """Whether no proxy is there that could take what waits, nor will be in a moment."""
        return self._presence.is_gone

    def app_gone(self, number: int) -> None:
        """Nothing listens behind a port any more; what comes next may speak another protocol."""
        if self._apps.gone(number):
            self.changed()

    def stands(self, number: int, uninspected: Uninspected | None) -> None:
        """What becomes of new connections to a port with policies."""
        self._times.stand(number, uninspected, self._tools.now())

    def changed(self) -> None:
        """What the target does has changed by itself."""
        self._tools.on_change(self.pod.key)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _follow_cgroup(self, pod: Pod) -> None:
        """Attach to the pod's cgroup where it is known only now: the runtime makes it while the pod starts."""
        if pod.location.cgroup is not None and pod.location.cgroup != self.pod.location.cgroup:
            self.client_addresses.close()
            self.client_addresses = await self._attach_client_addresses(pod)

    async def _attach_client_addresses(self, pod: Pod) -> ClientAddresses:
        cgroup = pod.location.cgroup
        if cgroup is None:
            return ClientAddresses.off()
        try:
            return ClientAddresses.attach(await self._tools.peernames(), cgroup)
        except SidestepError as error:
            return ClientAddresses.off(f"off: {error}")

    def _snapshot(self, port: PortPlan) -> PortSnapshot:
        """What the proxy is told of a port: the plan, and what is known about the app."""
        return self._tools.late_client_auth.snapshot(self.pod, self._apps.snapshot(port))

    def _running(self) -> PodProxy:
        if self._proxy is None or self._steering is None or self._netns is None:
            raise RefusedError(f"pod {self.pod.key} is being released")
        return self._proxy
