"""TCP ports of one target pod: makes their listeners, hands them to the proxy, steers them and takes them back.

`PortState.unsteered` decides, for each port and family, from what this module collects: whether an app listens (`look`
asks the kernel; the proxy reports a refused dial at once), how full the accept queue is, whether the listener still
listens, whether the proxy is there and what it reports that it cannot do. `look` runs twice a second, and at once when
the proxy reports something.

While the proxy is away, or cannot serve a port, `sweep` resets what is still in the accept queue, so that clients
connect again and reach the app. A listener that has died is replaced.

Undoing goes the other way round: the port leaves the map first, then the proxy stops listening (it still accepts what
is queued). When the kernel refuses to take a port out of the map, the owner detaches the whole program.

Ports that a policy closes are in the kernel's other map (`closed_ports`), whether they are steered or not.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import KernelError, RefusedError, SidestepError
from sidestep.model.pod import Family, PodKey
from sidestep.netns import Netns, accept_queue, cookie, listening, tcp_listener
from sidestep.netns.fingerprint import Question, fingerprint
from sidestep.node.planning.inspection_times import REASONS, STEERING_FAILED, Outcome, Uninspected, uninspected_of
from sidestep.node.planning.port_conditions import about_app, about_proxy
from sidestep.node.planning.port_state import Availability, Unsteered
from sidestep.node.planning.readiness import ALL_PORTS, Readiness
from sidestep.node.pods.closed_ports import ClosedPorts
from sidestep.node.pods.datagram_ports import Entry
from sidestep.node.pods.existing_connections import ExistingConnections
from sidestep.node.pods.listening_port import ListeningPort
from sidestep.node.pods.sweeper import Sweeper
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from sidestep.node.conditions import Statements
    from sidestep.node.planning.plan import PortPlan
    from sidestep.node.pods.pod_netns import Address
    from sidestep.node.proxies.supervisor import PodProxy
    from sidestep.proxy.control.messages import NoApp
    from sidestep.snapshots.hindrance import Hindrance
    from sidestep.steering import Steering

BACKLOG = 4096
"""Connections that may wait to be accepted (limited by the namespace's net.core.somaxconn)."""

FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
"""Seconds until a pod with too many listening sockets is looked at again, doubled each time.

Such a look takes a third of a second, in which the daemon does nothing else."""

_LOOPBACK = IPv4Address("127.0.0.1")
"""Where our own listeners are found, whatever their family."""


class Owner(Protocol):
    """The target whose ports these are."""

    def absence(self) -> str:
        """Why the proxy takes no connections now, nor will in a moment; empty: it does."""

    def is_proxy_gone(self) -> bool:
        """Whether no proxy is there that could take what waits, nor will be in a moment."""

    def detach(self) -> None:
        """Take everything out of the map at once."""

    def app_gone(self, number: int) -> None:
        """Nothing listens behind a port any more."""

    def stands(self, number: int, uninspected: Uninspected | None) -> None:
        """Say what becomes of new connections to a port with policies; None: they are inspected."""

    def changed(self) -> None:
        """Other ports are steered now."""


class StreamPorts:
    """The ports of one pod, in a namespace that the owner opens and closes."""

    def __init__(self, pod: PodKey, *, owner: Owner, statements: Statements, now: Callable[[], float]) -> None:
        self._pod = pod
        self._owner = owner
        self._statements = statements
        self._now = now
        self._netns: Netns | None = None
        self._own: frozenset[Address] = frozenset()
        self._steering: Steering | None = None
        self._ports: dict[int, ListeningPort] = {}
        self._given_up: list[ListeningPort] = []
        """Ports that are unsteered while the proxy is told to stop listening."""
        self._readiness = Readiness()
        self._sweeper = Sweeper(pod, now=now)
        self._existing = ExistingConnections(pod, statements)
        self._closed = ClosedPorts()
        self._closing: frozenset[int] = frozenset()
        """The ports that the latest plan closes, which may not have been applied yet."""
        self._last_look: tuple[bytes | None, str] | None = None
        """What the last look found: the fingerprint of the sockets, and why the proxy is absent.

        A look that finds the same has nothing to do."""
        self._question: Question | None = None
        """Covers the sockets on which a look depends: the apps' and our own, with their queues. None: no socket."""
        self._look_again, self._look_pause = 0.0, FIRST_PAUSE
        """When the next look is made at the earliest, and how long the next pause will be."""
        self._log = get_logger("target").bind(pod=str(pod))

    def enter(self, netns: Netns, *, own: frozenset[Address], steering: Steering, closed: Collection[int] = ()) -> None:
        """From now on ports may be steered here; `own` are the pod's addresses, `closed` the ports closed already."""
        self._netns, self._own, self._steering = netns, own, steering
        self._closed.enter(steering, closed=closed)

    def detached(self) -> None:
        """The program is gone: nothing is steered any more."""
        self._steering = None
        self._closed.detached()
        for port in self._ports.values():
            port.steered.clear()

    def close(self) -> None:
        """Close the listeners; the proxy is gone by then. Closing twice does nothing."""
        for port in (*self._ports.values(), *self._given_up):
            port.listener.close()
        self._ports.clear()
        self._given_up.clear()
        self._netns = None

    # --- plans ------------------------------------------------------------------------------------------------------

    async def leave_gone(self, plans: Mapping[int, PortPlan], *, proxy: PodProxy) -> None:
        """Before the proxy is told: give up the ports that it will not know any more. Raises SidestepError."""
        gone = [number for number in self._ports if number not in plans]
        for number in gone:
            self._ports[number].leaving = True
            self._unsteer(self._ports[number])
        for number in gone:
            port = self._ports.pop(number)
            self._given_up.append(port)
            try:
                await self._unlisten(proxy, port)
            finally:
                self._given_up.remove(port)
                port.listener.close()

    async def apply(self, plans: Mapping[int, PortPlan], *, proxy: PodProxy) -> None:
        """Make the plans real; the proxy has its configuration. Raises SidestepError; what could be done is done."""
        for number, plan in sorted(plans.items()):
            if number in self._ports:
                self._ports[number].plan = plan
                self._ports[number].reset_for &= plan.resets
                self._ports[number].leaving = False
                self._invalidate_look()
                if self._ports[number].replacement.is_due(self._now()):
                    await self._renew(proxy, self._ports[number])
            else:
                await self._listen(proxy, plan)

    def follow_policies(self, closing: frozenset[int]) -> None:
        """Close and open ports as the latest plan says, before it is applied. Never raises."""
        self._closing = closing
        self._last_look = None  # the next look says what becomes of the ports
        try:
            self._closed.keep_only(closing)
        except SidestepError as error:
            self._log.warning("opening failed, the program is detached", reason=str(error))
            self._owner.detach()
        self.close_unserved()

    def close_unserved(self) -> None:
        """Close what the latest plan closes: the ports that have a listener, and all while no proxy is there.

        Never raises; what fails is tried again by the next look.
        """
        gone = self._owner.is_proxy_gone()
        try:
            for number in sorted(self._closing if gone else self._closing & self._ports.keys()):
                self._closed.close(number)
                if number not in self._ports:
                    self._owner.stands(number, Uninspected(Outcome.CLOSED, REASONS[Unsteered.NO_PROXY]))
        except SidestepError as error:
            self._log.warning("closing failed", reason=str(error))

    def hand_over(self) -> None:
        """This daemon hands over: open what is closed once the successor's program is attached. Never raises."""
        if self._netns is None:
            return
        try:
            self._closed.hand_over(self._netns.fd)
        except SidestepError as error:
            self._log.warning("opening failed, the program is detached", reason=str(error))
            self._owner.detach()

    async def _listen(self, proxy: PodProxy, plan: PortPlan) -> None:
        if self._netns is None:
            raise RefusedError(f"pod {self._pod} is being released")
        listener = tcp_listener(self._netns, backlog=BACKLOG)
        try:
            await proxy.listen(plan.number, plan.transport.value, listener)
        except BaseException:
            listener.close()
            raise
        self._ports[plan.number] = ListeningPort(plan=plan, listener=listener)
        self._invalidate_look()

    async def _unlisten(self, proxy: PodProxy, port: ListeningPort) -> None:
        number = port.plan.number
        try:
            await proxy.unlisten(number, port.plan.transport.value)
        finally:
            self._invalidate_look()
            self._statements.forget(number)

    async def _renew(self, proxy: PodProxy, port: ListeningPort) -> None:
        """Replace a listener that died. Raises SidestepError; `apply` then tries again."""
        if self._netns is None:
            raise RefusedError(f"pod {self._pod} is being released")
        number, transport = port.plan.number, port.plan.transport.value
        listener = tcp_listener(self._netns, backlog=BACKLOG)
        try:
            await proxy.unlisten(number, transport)
            await proxy.listen(number, transport, listener)
        except BaseException:
            listener.close()
            raise
        port.replace_listener(listener)
        self._log.info("listener replaced", port=number)
        self._invalidate_look()

    @property
    def outdated(self) -> bool:
        """Whether something is to be made anew: `apply` does it."""
        now = self._now()
        return any(port.replacement.is_due(now) for port in self._ports.values())

    # --- what is there ----------------------------------------------------------------------------------------------

    def __contains__(self, number: object) -> bool:
        return number in self._ports

    def plans(self) -> dict[int, PortPlan]:
        """The plans of the ports that the proxy listens for."""
        return {number: port.plan for number, port in self._ports.items()}

    def steered(self) -> dict[int, frozenset[Family]]:
        """The families steered now, by port; ports that wait for an app or a proxy have none."""
        return {number: frozenset(port.steered) for number, port in sorted(self._ports.items())}

    def waits_for_app(self, number: int) -> bool:
        """Whether a port is not steered only because no app listens on it."""
        port = self._ports.get(number)
        return port is not None and port.waits_for_app

    # --- what reality says ------------------------------------------------------------------------------------------

    def look(self, *, force: bool = False) -> None:
        """Ask which apps listen, and bring the map in line. Never raises.

        `force`: look although nothing seems to have changed. While a pod with too many sockets waits for its next look,
        its ports are unsteered, and nothing is done.
        """
        now = self._now()
        if self._netns is None or self._steering is None or now < self._look_again:
            return
        if force:
            self._last_look = None
        try:
            seen = fingerprint(self._netns, self._question) if self._question is not None else None
            basis = (seen, self._owner.absence())
            self._look_at_queues(changed=seen is None or self._last_look is None or seen != self._last_look[0])
            if seen != b"" and basis == self._last_look and not self._is_waiting(now):
                return
            if seen is not None:
                self._look_for_apps(self._netns)
            for port in self._ports.values():
                self._update_map(port)
            self._last_look = basis
        except SidestepError as error:
            # Without the kernel's answer it is unknown whether there is an app: leave the ports to it.
            text = f"the pod's ports are left to the app, or closed by a policy, because steering failed: {error}"
            conditions = [Condition(ConditionType.STEERING_FAILED, f"pod {self._pod}", text)]
            self._statements.state(None, "steering", conditions)
            self.unsteer()
            self.close_unserved()
            for number in self._ports:
                self._owner.stands(number, Uninspected(self._outcome(number), STEERING_FAILED))
            if isinstance(error, KernelError) and error.errno == errno.E2BIG:
                self._look_again = self._now() + self._look_pause
                self._look_pause = min(2 * self._look_pause, LAST_PAUSE)
        else:
            self._look_pause = FIRST_PAUSE
            self._statements.state(None, "steering", ())
        if self.outdated:
            self._owner.changed()

    def _outcome(self, number: int) -> Outcome:
        """What becomes of connections to a port that is not steered."""
        return Outcome.CLOSED if number in self._closed else Outcome.OPEN

    def _is_waiting(self, now: float) -> bool:
        """Whether the next look matters although nothing else has changed."""
        if self._readiness.is_watched(now):
            return True
        for port in self._ports.values():  # noqa: SIM110 - asked twice a second of every pod; any() costs three times that
            if port.refused_until or port.valve.watching or port.listener_dead:
                return True
        return False

    def _look_for_apps(self, netns: Netns) -> None:
        table = listening(netns, self._ports)
        for number, port in self._ports.items():
            had = bool(port.served)
            port.found({family for family in Family if table.serves(number, family, self._own)})
            if had and not port.served:
                self._owner.app_gone(number)

    def hindered(self, hindrances: Collection[Hindrance]) -> None:
        """Take the proxy's report of all that keeps it from serving."""
        self._readiness.told(hindrances, self._now())
        self._mark_hindered()
        self.look(force=True)

    def proxy_gone(self) -> None:
        """The process of the proxy has ended; what it said does not hold any more."""
        self._readiness.process_gone(self._now())
        self._mark_hindered()

    def _mark_hindered(self) -> None:
        self._sweeper.hindered([number for number in self._ports if self._readiness.is_hindered(number)])

    def sweep(self) -> None:
        """Reset whoever waits to be accepted by a proxy that is not there or cannot. Never raises."""
        if self._owner.is_proxy_gone():
            self._sweeper.sweep_all((*self._ports.values(), *self._given_up))
        else:
            self._sweeper.sweep_hindered(self._ports)

    def _invalidate_look(self) -> None:
        """Look at everything next time: other ports matter now. A global intercept does not depend on an app."""
        self._last_look = self._question = None
        self._look_again = 0.0
        if any(port.plan.needs_app for port in self._ports.values()):
            apps = ((each, number) for number in self._ports for each in self._own if not each.is_loopback)
            ours = ((_LOOPBACK, port.listener.getsockname()[1]) for port in self._ports.values())
            self._question = Question.about((*apps, *ours))

    def refused(self, no_app: NoApp) -> bool:
        """A dial was refused: unsteer the family at once. Returns True when it was steered."""
        port = self._ports.get(no_app.port)
        family = next((each for each in Family if each.value == no_app.family), None)
        if port is None or family is None or not port.plan.needs_app or family not in port.steered:
            return False
        port.refuse(family, self._now())
        if not port.served:
            self._owner.app_gone(no_app.port)
        try:
            self._update_map(port)
        except SidestepError as error:
            self._log.warning("unsteering failed", port=no_app.port, reason=str(error))
            self._owner.detach()
        return True

    def unsteer(self) -> None:
        """Unsteer all ports until the next look. Never raises."""
        self._last_look = None
        for port in self._ports.values():
            self._unsteer(port)

    def _unsteer(self, port: ListeningPort) -> None:
        """Take a port out of the map; if the kernel will not, detach altogether."""
        try:
            if self._steering is not None:
                for family in sorted(port.steered):
                    self._steering.unsteer(port.plan.number, port.plan.transport, family)
            port.steered.clear()
        except SidestepError as error:
            self._log.warning("unsteering failed, the program is detached", reason=str(error))
            self._owner.detach()

    def expected(self) -> frozenset[Entry]:
        """What the kernel's map should hold of them."""
        return frozenset(
            (number, port.plan.transport, family) for number, port in self._ports.items() for family in port.steered
        )

    def repair_closed(self) -> list[str]:
        """Bring the kernel's map of closed ports in line; a text for each difference. Raises KernelError."""
        return self._closed.repair()

    def lost(self, number: int, family: Family) -> None:
        """The kernel's map does not hold this port any more: the next look puts it back."""
        self._ports[number].steered.discard(family)

    def _update_map(self, port: ListeningPort) -> None:
        """Bring the map in line for one port. Raises SidestepError."""
        if self._steering is None or self._netns is None:
            return
        plan, now = port.plan, self._now()
        if plan.number in self._closing and not port.leaving:
            self._closed.close(plan.number)
        port.forget_refusals(now)
        hindrance = {family: self._readiness.reason(plan.number, family, now) for family in port.families}
        proxy = Availability(self._owner.absence(), hindrance)
        unsteered = {family: port.unsteered(family, proxy=proxy, now=now) for family in port.families}
        wanted = {family for family, why in unsteered.items() if why is None}
        reasons, closes = set(unsteered.values()), plan.number in self._closed
        self._statements.state(
            plan.number, "proxy", about_proxy(self._pod, plan.number, reasons=reasons, proxy=proxy, closes=closes)
        )
        existing = self._existing.of(port, self._netns) if wanted else ()
        changed = wanted != port.steered
        for family in sorted(port.steered - wanted):
            self._steering.unsteer(plan.number, plan.transport, family)
            port.steered.discard(family)
        for family in sorted(wanted - port.steered):
            self._steering.steer(plan.number, plan.transport, family, port.listener.fileno())
            port.steered.add(family)
        self._owner.stands(plan.number, uninspected_of(reasons, closes=closes))
        self._existing.end(port, self._netns, existing)
        self._statements.state(plan.number, "app", about_app(self._pod, port))
        if changed:
            self._log.info("port steered" if wanted else "port unsteered", port=plan.number, families=sorted(wanted))
            self._owner.changed()

    def _look_at_queues(self, *, changed: bool) -> None:
        """Look whether the listeners listen, and how full their queues are: where something has `changed`, or was
        suspicious. Raises KernelError.

        What the kernel answers about listening sockets tells their queues, too: when that is the same, so are they.
        """
        for number, port in self._ports.items():
            if port.listener_dead or not (changed or port.valve.watching):
                continue
            queue = accept_queue(port.listener)
            if queue is None:
                self._log.warning("a listener was closed by somebody in the pod", port=number)
                port.replacement.died(self._now())
                self._last_look = None
                continue
            was_shut = port.valve.shut
            port.valve.look(length=queue.length, limit=queue.limit, now=self._now())
            if port.valve.shut != was_shut:
                self._last_look = None

    def why_left(self, number: int) -> str:
        """Why no connection to a port reaches the proxy, as far as the proxy is the reason; empty otherwise."""
        port, now = self._ports.get(number), self._now()
        if port is None or port.steered:
            return ""
        if port.listener_dead:
            return Unsteered.LISTENER_DEAD.value
        if port.served and port.refused_until:
            return Unsteered.REFUSED.value
        return self._owner.absence() or self._readiness.reason(number, Family.IPV4, now)

    def why_all_left(self) -> str:
        """Why the proxy says that it can serve no port whatever; empty otherwise."""
        return self._readiness.reason(ALL_PORTS, Family.IPV4, self._now())

    def sockets(self) -> dict[Entry, int]:
        """The kernel's number of the socket that each entry of the map should lead to. Raises KernelError."""
        numbers = {number: cookie(port.listener) for number, port in self._ports.items() if port.steered}
        return {entry: numbers[entry[0]] for entry in self.expected()}
