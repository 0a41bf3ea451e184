"""One target pod: its namespace, its steering, its listeners, its proxy - made, changed and given back together.

Built aside, attached last: the namespace is opened and verified, the link attached with an empty map (which changes
nothing for anybody), the proxy started. Then, per port: the proxy is configured, gets the listener, and only when it
has acknowledged both does the port go into the map. The way back is the reverse: out of the map first, then the proxy
stops listening (it goes on accepting what is queued), then its configuration. So no connection ever arrives at a proxy
that does not know what to do with it, and no failure leaves a port steered at nobody.

*Steered* is decided here, per port and family: a port is in the map while its plan wants it, the proxy runs, and -
unless the plan takes the whole port - an app listens (asked of the kernel by `look`, told at once by the proxy when a
dial is refused). A family whose dial was refused although something seems to listen is left alone for a while.

A release resets nobody: `detach` takes everything out of the map at once, without waiting; `drain` lets the proxy
finish. `abandon` is for a namespace that is gone: it must not be held open for a moment longer than necessary.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import KernelError, RefusedError, SidestepError
from sidestep.model.pod import Family, Pod, PodKey, Transport
from sidestep.netns import Connection, Netns, destroy, established, listening, queue_length, queue_limit, tcp_listener
from sidestep.netns.fingerprint import fingerprint
from sidestep.node.client_addresses import ClientAddresses
from sidestep.node.conditions import Conditions, Source
from sidestep.node.datagram_ports import DatagramPorts
from sidestep.node.located import Address, locate
from sidestep.node.planner import PodPlan, PortPlan
from sidestep.node.proxy_uids import is_proxy
from sidestep.node.supervisor import CredentialSource, PodProxy, ProxyState, ProxySupervisor
from sidestep.node.survey import port_subject
from sidestep.node.valve import Valve
from sidestep.observability.logs import get_logger
from sidestep.proxy.messages import (
    DivertedRequest,
    ForgetClient,
    Heartbeat,
    NameClient,
    NoApp,
    Open,
    PortSnapshot,
    Probed,
    Report,
    Requests,
    Reset,
)
from sidestep.steering import CompiledProgram, PeernamePrograms, Steering

BACKLOG = 4096
"""Connections that may wait to be accepted (limited by the namespace's net.core.somaxconn)."""

RESTART_PATIENCE = 1.0
"""Seconds a proxy may be away before its ports are unsteered; its clients wait in the accept queue meanwhile."""

REFUSED_PAUSE = 0.5
"""Seconds for which a port is left alone after a refused dial although something listens; doubles up to the next."""

REFUSED_PAUSE_MAX = 30.0

REPORTED = frozenset(
    {
        ConditionType.UPSTREAM_UNVERIFIED,
        ConditionType.UPSTREAM_TLS_FAILED,
        ConditionType.CLIENT_CERTIFICATE_REQUESTED,
        ConditionType.ALPN_UNSUPPORTED,
        ConditionType.SNI_UNSUPPORTED,
        ConditionType.NO_CERTIFICATE,
        ConditionType.PROTOCOL_CONTRADICTION,
    }
)
"""Conditions that a pod proxy may state about its ports; it is not trusted with any other."""


class Handlers(Protocol):
    """What is needed of `Sessions`."""

    async def open_stream(self, opening: Open, *, pod: PodKey) -> socket.socket:
        """Connect to a handler."""

    def reset_stream(self, stream: int, *, pod: PodKey) -> None:
        """Break a connection to a handler."""

    def record(self, requests: tuple[DivertedRequest, ...], *, pod: PodKey) -> None:
        """Log diverted requests."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What all targets of a node are made with. `credential` gives the source of a named credential of a pod."""

    program: CompiledProgram
    supervisor: ProxySupervisor
    handlers: Handlers
    credential: Callable[[PodKey, str], CredentialSource]
    conditions: Conditions
    now: Callable[[], float]
    peernames: Callable[[], Awaitable[PeernamePrograms]]
    """The programs that let apps see their clients; compiled when first asked for. Raises SidestepError."""
    on_change: Callable[[PodKey], None]
    """Called when what the target can do has changed by itself: its proxy is back, has failed, lost its app."""


@dataclass(slots=True)
class _Port:
    """A port that the proxy listens for."""

    plan: PortPlan
    listener: socket.socket
    served: set[Family] = field(default_factory=set)
    steered: set[Family] = field(default_factory=set)
    refused_until: dict[Family, float] = field(default_factory=dict)
    refused_pause: float = REFUSED_PAUSE
    valve: Valve = field(default_factory=Valve)
    reset_for: frozenset[str] = frozenset()
    """The intercepts for which the connections that existed have been ended."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Families that the listener can take."""
        return tuple(Family) if self.listener.family == socket.AF_INET6 else (Family.IPV4,)


class Target:
    """A target pod. `await open()`, then `apply` as often as needed, then `detach` and one of `drain` and `abandon`."""

    def __init__(self, pod: Pod, uid: int, tools: Toolbox) -> None:
        self.pod = pod
        self.uid = uid
        self._tools = tools
        self._log = get_logger("target").bind(pod=str(pod.key))
        self._netns: Netns | None = None
        self._addresses: frozenset[Address] = frozenset()
        self._steering: Steering | None = None
        self._proxy: PodProxy | None = None
        self._ports: dict[int, _Port] = {}
        self._generation = 0
        self._proxy_state = ProxyState.STOPPED
        self._away_since: float | None = None
        self._ground: tuple[bytes | None, int, ProxyState, bool] | None = None
        """What the last look was based on; as long as it stands, there is nothing to do."""
        self.counters: dict[int, dict[str, int]] = {}
        """By port, as the present proxy process last reported them."""
        self._served: frozenset[str] = frozenset()
        self._datagrams = DatagramPorts()
        self.datagram_counters: dict[str, int] = {}
        """Of all UDP ports together."""
        self.anomalies: dict[str, int] = {}
        """Connections that became a wire, by reason."""
        self.client_addresses = ClientAddresses.off()
        self.connections = 0
        self.seen = False
        """Whether any connection has ever arrived: proof that the pod's traffic reaches the hook."""
        self.probed: dict[int, Probed] = {}
        """By port, what the last probe of the app found, as long as it holds."""
        self.outdated = False
        """The proxy should be configured anew although the plan is the same."""
        self._losses: dict[int, int] = {}
        """How often an app has gone that was probed, by port."""

    # --- life -------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Enter the pod; nothing is steered yet. Raises SidestepError, and then nothing is left behind."""
        async with contextlib.AsyncExitStack() as undo:
            located = locate(self.pod)
            undo.callback(located.netns.close)
            steering = Steering.attach(self._tools.program, located.netns.fd)
            undo.callback(steering.close)
            client_addresses = await self._attach_client_addresses()
            undo.callback(client_addresses.close)
            proxy = self._tools.supervisor.proxy(
                str(self.pod.key), netns_fd=located.netns.fd, uid=self.uid, handler=self
            )
            undo.push_async_callback(self._tools.supervisor.remove, proxy)
            await proxy.start()
            undo.pop_all()
        self._netns, self._addresses = located.netns, located.addresses
        self._steering, self._proxy = steering, proxy
        self.client_addresses = client_addresses
        self._log.info("target opened", netns=located.netns.path, proxy_pid=proxy.pid, uid=self.uid)

    async def apply(self, plan: PodPlan, *, drain_timeout: float) -> None:
        """Make this plan real. Raises SidestepError when something must be tried again; what could be done is done."""
        proxy = self._running()
        self.pod = plan.pod
        wanted = {port.number: port for port in plan.ports if port.transport is Transport.TCP}
        datagrams = {port.number: port for port in plan.ports if port.transport is Transport.UDP}
        self._datagrams.unsteer_gone(datagrams, self._steering)
        gone = [number for number in self._ports if number not in wanted]
        for number in gone:
            self._unsteer(self._ports[number])
        for number in gone:
            await self._unlisten(proxy, self._ports.pop(number))
        self._generation += 1
        self.outdated = False
        for number, port in wanted.items():
            if number not in self._ports or self._ports[number].plan.snapshot.app != port.snapshot.app:
                self.probed.pop(number, None)
        failures = await proxy.apply(
            {name: self._tools.credential(self.pod.key, name) for name in _credentials(plan)},
            generation=self._generation,
            ports=tuple(self._snapshot(port) for port in plan.ports),
            drain_timeout=drain_timeout,
            client_addresses=self.client_addresses.on,
        )
        self._served = frozenset().union(*(port.uids for port in plan.ports))
        self.on_credentials(failures)
        for number, port in sorted(wanted.items()):
            if number in self._ports:
                self._ports[number].plan = port
            else:
                await self._listen(proxy, port)
        if self._netns is not None and self._steering is not None:
            await self._datagrams.apply(datagrams, netns=self._netns, proxy=proxy, steering=self._steering)
        self._ground = None
        self.look()
        self._log.info("target configured", ports=sorted(wanted), generation=self._generation)

    def detach(self) -> None:
        """Steer nothing any more, now; connections that have arrived go on. Never raises."""
        for port in self._ports.values():
            port.steered.clear()
        self._datagrams.forget_steering()
        if self._steering is not None:
            self._steering.close()
            self._steering = None
            self._tools.conditions.forget(self.pod.key, check="proxy")

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - it is the proxy's deadline, not ours
        """Let the proxy finish within `timeout` seconds, then give everything back. Never raises."""
        self.detach()
        if self._proxy is not None:
            try:
                # The next request of a connection that is kept alive goes to the app.
                await self._proxy.apply({}, generation=self._generation + 1, ports=(), drain_timeout=timeout)
            except SidestepError as error:
                self._log.info("target could not be told to stop diverting", reason=str(error))
            await self._proxy.drain(timeout)
        await self.abandon()

    async def abandon(self) -> None:
        """Give everything back now; connections through the proxy end. Never raises."""
        self.detach()
        proxy, self._proxy = self._proxy, None
        if proxy is not None:
            await self._tools.supervisor.remove(proxy)
            self._log.info("target released")
        self.client_addresses.close()
        for port in self._ports.values():
            port.listener.close()
        self._ports.clear()
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
        return self._proxy_state

    @property
    def proxy_pid(self) -> int | None:
        """Its present process."""
        return self._proxy.pid if self._proxy is not None else None

    @property
    def attached(self) -> bool:
        """Whether it steers or may steer; not before `open`, nor after `detach`."""
        return self._steering is not None

    def alive(self) -> bool:
        """Whether the namespace that is held is still the pod's. Asked often: a bare stat is all it costs."""
        if self._netns is None:
            return False
        try:
            status = os.stat(self._netns.path)  # noqa: PTH116 - a sixth of the cost of a Path's
        except (OSError, ValueError):
            return False
        return (status.st_dev, status.st_ino) == (self._netns.id.device, self._netns.id.inode)

    def steered(self) -> dict[int, frozenset[Family]]:
        """The families steered now, by port; ports that wait for an app or a proxy have none."""
        return {number: frozenset(port.steered) for number, port in sorted(self._ports.items())}

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

    def waits_for_app(self, number: int) -> bool:
        """Whether a port is not steered only because no app listens on it."""
        port = self._ports.get(number)
        return port is not None and port.plan.needs_app and not port.served and not port.steered

    def look(self) -> None:
        """Ask which apps listen, and steer what should be steered, nothing else. Never raises."""
        if self._netns is None or self._steering is None:
            return
        try:
            # What takes the whole port does not depend on an app.
            seen = fingerprint(self._netns) if any(port.plan.needs_app for port in self._ports.values()) else None
            ground = (seen, self._generation, self._proxy_state, self._away())
            self._look_at_queues(changed=seen is None or self._ground is None or seen != self._ground[0])
            waiting = any(port.refused_until or port.valve.watching for port in self._ports.values())
            if seen != b"" and ground == self._ground and not waiting:
                return
            if seen is not None:
                table = listening(self._netns)
                for number, port in self._ports.items():
                    had = bool(port.served)
                    port.served = {family for family in Family if table.serves(number, family, self._addresses)}
                    if had and not port.served:
                        self._app_gone(number)
            for port in self._ports.values():
                self._settle(port)
            self._ground = ground
        except SidestepError as error:
            # Without an answer nobody knows whether there is an app: be a wire.
            self._log.warning("steering failed, the pod's ports are left to the app", reason=str(error))
            self._unsteer_all()

    def expected(self) -> frozenset[tuple[int, Transport, Family]]:
        """What the kernel's map should hold."""
        tcp = ((number, port.plan.transport, family) for number, port in self._ports.items() for family in port.steered)
        udp = ((number, Transport.UDP, each) for number, all_ in self._datagrams.steered().items() for each in all_)
        return frozenset((*tcp, *udp))

    def drift(self) -> list[str]:
        """Compare with the kernel, repair what can be repaired here; one text per difference. Raises SidestepError."""
        if self._steering is None:
            return []
        if not self._steering.attached():
            raise RefusedError("the steering program is no longer attached")
        real, expected = self._steering.entries(), self.expected()
        found = []
        for number, transport, family in sorted(expected - real):
            found.append(f"port {number}/{transport} ({family.name}) was not steered any more")
            if transport is Transport.UDP:
                self._datagrams.pause(self._steering)
                self._datagrams.resume(self._steering)
            else:
                self._ports[number].steered.discard(family)
        for number, transport, family in sorted(real - expected):
            found.append(f"port {number}/{transport} ({family.name}) was steered without a reason")
            self._steering.unsteer(number, transport, family)
        if found:
            self._ground = None
            self.look()
        return found

    # --- the proxy speaks (ProxyHandler) ----------------------------------------------------------------------------

    async def open_stream(self, request: Open, /) -> socket.socket:
        """Connect to a handler. Raises RefusedError."""
        return await self._tools.handlers.open_stream(request, pod=self.pod.key)

    def on_reset(self, message: Reset, /) -> None:
        """Break a connection to a handler."""
        self._tools.handlers.reset_stream(message.stream, pod=self.pod.key)

    def on_requests(self, requests: Requests, /) -> None:
        """Log diverted requests."""
        self._tools.handlers.record(requests.requests, pod=self.pod.key)

    def on_report(self, report: Report, /) -> None:
        """Take a condition of a port that this proxy serves."""
        kind = next((each for each in REPORTED if each.value == report.type), None)
        if kind is None or report.port not in self._ports:
            return
        subject = port_subject(self.pod.key, report.port)
        conditions = [Condition(kind, subject, report.text)] if report.text else []
        self._state(report.port, kind.value, conditions)

    def on_name_client(self, message: NameClient, /) -> None:
        """Have the app see a client's own address. Raises SidestepError."""
        self.client_addresses.name(message, ports=self._ports, own=self._addresses)

    def on_forget_client(self, message: ForgetClient, /) -> None:
        """A named connection is over. Raises SidestepError."""
        self.client_addresses.forget(message)

    def on_probed(self, probed: Probed, /) -> None:
        """Take what a probe of the app found."""
        if probed.tls not in ("yes", "no"):
            self.probed.pop(probed.port, None)
        elif probed.port in self._ports:
            self.probed[probed.port] = probed

    def on_no_app(self, no_app: NoApp, /) -> None:
        """A dial was refused: leave the port to itself at once."""
        port = self._ports.get(no_app.port)
        family = next((each for each in Family if each.value == no_app.family), None)
        if port is None or family is None or not port.plan.needs_app or family not in port.steered:
            return
        now = self._tools.now()
        port.refused_until[family] = now + port.refused_pause
        port.refused_pause = min(2 * port.refused_pause, REFUSED_PAUSE_MAX)
        port.served.discard(family)
        if not port.served:
            self._app_gone(no_app.port)
        try:
            self._settle(port)
        except SidestepError as error:
            self._log.warning("unsteering failed", port=no_app.port, reason=str(error))
            self.detach()
        self._tools.on_change(self.pod.key)

    def on_heartbeat(self, beat: Heartbeat, /) -> None:
        """Keep the counters of ports that there are."""
        self.connections = beat.connections
        self.anomalies = beat.anomalies
        self.datagram_counters = beat.ports.get(0, {})
        self.counters = {number: counts for number, counts in beat.ports.items() if number in self._ports}
        arrived = any(counts.get("accepted", 0) > 0 for counts in self.counters.values())
        if not self.seen and (arrived or self.datagram_counters.get("flows", 0) > 0):
            self.seen = True
            self._tools.on_change(self.pod.key)

    def on_state(self, state: ProxyState, reason: str, /) -> None:
        """The proxy came, went, or is given up for now."""
        self._proxy_state = state
        if state is not ProxyState.RUNNING:
            self.client_addresses.reset()
        self._log.info("pod proxy", state=state.value, reason=reason, pid=self.proxy_pid)
        self._away_since = None if state is ProxyState.RUNNING else self._tools.now()
        conditions = []
        if state is ProxyState.FAILED:
            self._unsteer_all()
            self._datagrams.pause(self._steering)
            text = f"the pod proxy keeps ending ({reason}); its ports are left to the app, and it is tried again"
            conditions.append(Condition(ConditionType.PROXY_CRASH_LOOP, f"pod {self.pod.key}", text))
        elif state is ProxyState.RUNNING and self._steering is not None:
            try:
                self._datagrams.resume(self._steering)
            except SidestepError as error:
                self._log.warning("steering datagrams failed", reason=str(error))
        self._state(None, "state", conditions)
        self._tools.on_change(self.pod.key)

    def on_credentials(self, failures: Mapping[str, str], /) -> None:
        """Some credentials could not be used: those ports carry TLS end to end."""
        for number, port in self._ports.items():
            snapshot = port.plan.snapshot
            named = (snapshot.identity, snapshot.upstream_identity, snapshot.client_trust, snapshot.upstream_trust)
            reasons = sorted({failures[name] for name in named if name in failures})
            subject = port_subject(self.pod.key, number)
            texts = [f"the pod proxy cannot use the certificate, TLS is carried end to end: {each}" for each in reasons]
            conditions = [Condition(ConditionType.CERTIFICATE_INVALID, subject, text) for text in texts]
            self._state(number, "credentials", conditions)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _attach_client_addresses(self) -> ClientAddresses:
        cgroup = self.pod.location.cgroup
        if cgroup is None:
            return ClientAddresses.off()
        try:
            return ClientAddresses.attach(await self._tools.peernames(), cgroup)
        except SidestepError as error:
            return ClientAddresses.off(f"off: {error}")

    def _running(self) -> PodProxy:
        if self._proxy is None or self._steering is None or self._netns is None:
            raise RefusedError(f"pod {self.pod.key} is being released")
        return self._proxy

    def _snapshot(self, port: PortPlan) -> PortSnapshot:
        """What the proxy is told of a port: the plan, and that an app it probed has gone since."""
        losses = self._losses.get(port.number, 0)
        return msgspec.structs.replace(port.snapshot, app=f"{port.snapshot.app}/{losses}") if losses else port.snapshot

    def _app_gone(self, number: int) -> None:
        """Nothing listens any more; what comes next may speak another protocol."""
        if self.probed.pop(number, None) is not None:
            self._losses[number] = self._losses.get(number, 0) + 1
            self.outdated = True
            self._tools.on_change(self.pod.key)

    def _state(self, port: int | None, detail: str, conditions: list[Condition]) -> None:
        # A target that is being released has no say any more: another one of the same pod may have begun.
        if self.attached:
            self._tools.conditions.state(Source("proxy", self.pod.key, port, detail), conditions)

    async def _listen(self, proxy: PodProxy, plan: PortPlan) -> None:
        if self._netns is None:
            raise RefusedError(f"pod {self.pod.key} is being released")
        listener = tcp_listener(self._netns, backlog=BACKLOG)
        try:
            await proxy.listen(plan.number, plan.transport.value, listener)
        except BaseException:
            listener.close()
            raise
        self._ports[plan.number] = _Port(plan, listener)

    async def _unlisten(self, proxy: PodProxy, port: _Port) -> None:
        number = port.plan.number
        try:
            await proxy.unlisten(number, port.plan.transport.value)
        finally:
            port.listener.close()
            for detail in ("credentials", "app", "overload", "existing", *(kind.value for kind in REPORTED)):
                self._state(number, detail, [])

    def _settle(self, port: _Port) -> None:
        """Bring the map in line for one port. Raises SidestepError."""
        if self._steering is None:
            return
        plan, now = port.plan, self._tools.now()
        wanted: set[Family] = set()
        port.refused_until = {family: until for family, until in port.refused_until.items() if until > now}
        if self._proxy_state in (ProxyState.RUNNING, ProxyState.RESTARTING) and not self._away():
            wanted = {
                family
                for family in port.families
                if not plan.needs_app or (family in port.served and family not in port.refused_until)
            }
        if port.valve.shut:
            wanted = set()
        resets = plan.resets - port.reset_for if wanted else frozenset()
        existing = self._existing(port) if resets else ()
        if wanted == port.steered:
            self._tell_app(port)
            self._reset(port, existing)
            return
        for family in sorted(port.steered - wanted):
            self._steering.unsteer(plan.number, plan.transport, family)
            port.steered.discard(family)
        for family in sorted(wanted - port.steered):
            self._steering.steer(plan.number, plan.transport, family, port.listener.fileno())
            port.steered.add(family)
        self._reset(port, existing)
        self._log.info("port steered" if wanted else "port unsteered", port=plan.number, families=sorted(wanted))
        self._tell_app(port)
        self._tools.on_change(self.pod.key)

    def _look_at_queues(self, *, changed: bool) -> None:
        """Look how full the queues are: where something has `changed`, or was suspicious. Raises KernelError.

        What the kernel answers about listening sockets tells their queues, too: when that is the same, so are they.
        """
        for number, port in self._ports.items():
            if not changed and not port.valve.watching:
                continue
            was_shut, length = port.valve.shut, queue_length(port.listener)
            port.valve.look(length=length, limit=queue_limit(port.listener) if length else 1, now=self._tools.now())
            if port.valve.shut == was_shut:
                continue
            conditions = []
            if port.valve.shut:
                text = "connections come faster than the pod proxy takes them; the port is left to the app for a while"
                conditions.append(Condition(ConditionType.OVERLOADED, port_subject(self.pod.key, number), text))
            self._state(number, "overload", conditions)
            self._ground = None

    def _existing(self, port: _Port) -> tuple[Connection, ...]:
        """The connections of a port that are not the proxy's. Raises KernelError."""
        assert self._netns is not None  # noqa: S101 - `look` says so
        return tuple(each for each in established(self._netns, port.plan.number) if not is_proxy(each.uid))

    def _reset(self, port: _Port, existing: tuple[Connection, ...]) -> None:
        """End what was there before the port was steered, for those who asked for it; once for each of them."""
        if self._netns is None or not port.steered or port.plan.resets <= port.reset_for:
            return
        port.reset_for = port.plan.resets
        conditions = []
        try:
            ended = sum(destroy(self._netns, each) for each in existing)
            self._log.info("existing connections ended", port=port.plan.number, count=ended)
        except KernelError as error:
            text = f"connections that existed stay with the app: {error}"
            conditions.append(
                Condition(ConditionType.EXISTING_KEPT, port_subject(self.pod.key, port.plan.number), text)
            )
        self._state(port.plan.number, "existing", conditions)

    def _away(self) -> bool:
        """Whether the proxy has been away for too long to let its clients wait."""
        return self._away_since is not None and self._tools.now() - self._away_since > RESTART_PATIENCE

    def _tell_app(self, port: _Port) -> None:
        conditions = []
        if self.waits_for_app(port.plan.number):
            subject = port_subject(self.pod.key, port.plan.number)
            text = "nothing listens there, so nothing is steered; it will be as soon as an app does"
            conditions.append(Condition(ConditionType.NO_APP, subject, text))
        self._state(port.plan.number, "app", conditions)

    def _unsteer(self, port: _Port) -> None:
        """Take a port out of the map; if the kernel will not, detach altogether."""
        try:
            if self._steering is not None:
                for family in sorted(port.steered):
                    self._steering.unsteer(port.plan.number, port.plan.transport, family)
            port.steered.clear()
        except SidestepError as error:
            self._log.warning("unsteering failed, the program is detached", reason=str(error))
            self.detach()

    def _unsteer_all(self) -> None:
        self._ground = None
        for port in self._ports.values():
            self._unsteer(port)


def _credentials(plan: PodPlan) -> frozenset[str]:
    names = set()
    for port in plan.ports:
        snapshot = port.snapshot
        names |= {snapshot.identity, snapshot.client_trust, snapshot.upstream_identity, snapshot.upstream_trust}
    return frozenset(names - {""})
