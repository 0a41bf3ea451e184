"""TCP ports of one target pod: listeners made in its namespace, given to its proxy, steered, and given back.

*Steered* is decided here, per port and family: a port is in the map while its plan wants it, the proxy runs, its queue
is not overloaded, and - unless the plan takes the whole port - an app listens (asked of the kernel by `look`, told at
once by the proxy when a dial is refused). A family whose dial was refused although something seems to listen is left
alone for a while.

The way back is the reverse: out of the map first, then the proxy stops listening (it goes on accepting what is queued).
When the kernel will not take a port out of the map, the owner has to detach the whole program.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import KernelError, RefusedError, SidestepError
from sidestep.model.pod import Family, PodKey, Transport
from sidestep.netns import Connection, Netns, destroy, established, listening, queue_length, queue_limit, tcp_listener
from sidestep.netns.fingerprint import Question, fingerprint
from sidestep.node.proxy_uids import is_proxy
from sidestep.node.survey import port_subject
from sidestep.node.valve import Valve
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from sidestep.node.conditions import Statements
    from sidestep.node.located import Address
    from sidestep.node.plan import PortPlan
    from sidestep.node.supervisor import PodProxy
    from sidestep.proxy.messages import NoApp
    from sidestep.steering import Steering

BACKLOG = 4096
"""Connections that may wait to be accepted (limited by the namespace's net.core.somaxconn)."""

REFUSED_PAUSE = 0.5
"""Seconds for which a port is left alone after a refused dial although something listens; doubles up to the next."""

REFUSED_PAUSE_MAX = 30.0

_LOOPBACK = IPv4Address("127.0.0.1")
"""Where our own listeners are found, whatever their family."""

Entry = tuple[int, Transport, Family]
"""What a map holds: a port that is steered."""


class Owner(Protocol):
    """The target whose ports these are."""

    def may_steer(self) -> bool:
        """Whether the proxy takes connections now, or will in a moment."""

    def detach(self) -> None:
        """Take everything out of the map at once."""

    def app_gone(self, number: int) -> None:
        """Nothing listens behind a port any more."""

    def changed(self) -> None:
        """Other ports are steered now."""


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
    leaving: bool = False
    """It is being given up: whatever a look finds meanwhile, it is not steered again."""
    reset_for: frozenset[str] = frozenset()
    """The intercepts for which the connections that existed have been ended."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Families that the listener can take."""
        return tuple(Family) if self.listener.family == socket.AF_INET6 else (Family.IPV4,)

    @property
    def waits_for_app(self) -> bool:
        """Whether it is not steered only because no app listens."""
        return self.plan.needs_app and not self.served and not self.steered


class StreamPorts:
    """Those of one pod, in a namespace that is entered and given back by the owner."""

    def __init__(self, pod: PodKey, *, owner: Owner, statements: Statements, now: Callable[[], float]) -> None:
        self._pod = pod
        self._owner = owner
        self._statements = statements
        self._now = now
        self._netns: Netns | None = None
        self._own: frozenset[Address] = frozenset()
        self._steering: Steering | None = None
        self._ports: dict[int, _Port] = {}
        self._ground: tuple[bytes | None, bool] | None = None
        """What the last look was based on; as long as it stands, there is nothing to do."""
        self._question: Question | None = None
        """About the sockets on which a look depends: the apps', and our own with their queues. None: about none."""
        self._log = get_logger("target").bind(pod=str(pod))

    def enter(self, netns: Netns, *, own: frozenset[Address], steering: Steering) -> None:
        """From now on ports may be steered here; `own` are the pod's addresses."""
        self._netns, self._own, self._steering = netns, own, steering

    def detached(self) -> None:
        """The program is gone: nothing is steered any more."""
        self._steering = None
        for port in self._ports.values():
            port.steered.clear()

    def close(self) -> None:
        """Close the listeners; the proxy is gone by then. Closing twice does nothing."""
        for port in self._ports.values():
            port.listener.close()
        self._ports.clear()
        self._netns = None

    # --- plans ------------------------------------------------------------------------------------------------------

    async def leave_gone(self, plans: Mapping[int, PortPlan], *, proxy: PodProxy) -> None:
        """Before the proxy is told: give up the ports that it will not know any more. Raises SidestepError."""
        gone = [number for number in self._ports if number not in plans]
        for number in gone:
            self._ports[number].leaving = True
            self._unsteer(self._ports[number])
        for number in gone:
            await self._unlisten(proxy, self._ports.pop(number))

    async def apply(self, plans: Mapping[int, PortPlan], *, proxy: PodProxy) -> None:
        """Make the plans real; the proxy has its configuration. Raises SidestepError; what could be done is done."""
        for number, plan in sorted(plans.items()):
            if number in self._ports:
                self._ports[number].plan = plan
                self._ports[number].leaving = False
                self._ask_anew()
            else:
                await self._listen(proxy, plan)

    async def _listen(self, proxy: PodProxy, plan: PortPlan) -> None:
        if self._netns is None:
            raise RefusedError(f"pod {self._pod} is being released")
        listener = tcp_listener(self._netns, backlog=BACKLOG)
        try:
            await proxy.listen(plan.number, plan.transport.value, listener)
        except BaseException:
            listener.close()
            raise
        self._ports[plan.number] = _Port(plan, listener)
        self._ask_anew()

    async def _unlisten(self, proxy: PodProxy, port: _Port) -> None:
        number = port.plan.number
        try:
            await proxy.unlisten(number, port.plan.transport.value)
        finally:
            port.listener.close()
            self._ask_anew()
            self._statements.forget(number)

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

    def look(self, *, afresh: bool = False) -> None:
        """Ask which apps listen, and steer what should be steered, nothing else. Never raises.

        `afresh`: do so although nothing seems to have changed.
        """
        if self._netns is None or self._steering is None:
            return
        if afresh:
            self._ground = None
        try:
            seen = fingerprint(self._netns, self._question) if self._question is not None else None
            ground = (seen, self._owner.may_steer())
            self._look_at_queues(changed=seen is None or self._ground is None or seen != self._ground[0])
            waiting = any(port.refused_until or port.valve.watching for port in self._ports.values())
            if seen != b"" and ground == self._ground and not waiting:
                return
            if seen is not None:
                table = listening(self._netns)
                for number, port in self._ports.items():
                    had = bool(port.served)
                    port.served = {family for family in Family if table.serves(number, family, self._own)}
                    if had and not port.served:
                        self._owner.app_gone(number)
            for port in self._ports.values():
                self._settle(port)
            self._ground = ground
        except SidestepError as error:
            # Without an answer nobody knows whether there is an app: be a wire.
            self._log.warning("steering failed, the pod's ports are left to the app", reason=str(error))
            self.unsteer()

    def _ask_anew(self) -> None:
        """Other ports matter now. What takes the whole port does not depend on an app."""
        self._ground = self._question = None
        if any(port.plan.needs_app for port in self._ports.values()):
            apps = ((each, number) for number in self._ports for each in self._own if not each.is_loopback)
            ours = ((_LOOPBACK, port.listener.getsockname()[1]) for port in self._ports.values())
            self._question = Question.about((*apps, *ours))

    def refused(self, no_app: NoApp) -> bool:
        """A dial was refused: leave the port to itself at once. Whether that changed anything."""
        port = self._ports.get(no_app.port)
        family = next((each for each in Family if each.value == no_app.family), None)
        if port is None or family is None or not port.plan.needs_app or family not in port.steered:
            return False
        port.refused_until[family] = self._now() + port.refused_pause
        port.refused_pause = min(2 * port.refused_pause, REFUSED_PAUSE_MAX)
        port.served.discard(family)
        if not port.served:
            self._owner.app_gone(no_app.port)
        try:
            self._settle(port)
        except SidestepError as error:
            self._log.warning("unsteering failed", port=no_app.port, reason=str(error))
            self._owner.detach()
        return True

    def unsteer(self) -> None:
        """Leave all ports to the app until the next look. Never raises."""
        self._ground = None
        for port in self._ports.values():
            self._unsteer(port)

    def _unsteer(self, port: _Port) -> None:
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

    def lost(self, number: int, family: Family) -> None:
        """The kernel's map does not hold this port any more: the next look puts it back."""
        self._ports[number].steered.discard(family)

    def _settle(self, port: _Port) -> None:
        """Bring the map in line for one port. Raises SidestepError."""
        if self._steering is None:
            return
        plan, now = port.plan, self._now()
        wanted: set[Family] = set()
        port.refused_until = {family: until for family, until in port.refused_until.items() if until > now}
        if self._owner.may_steer() and not port.valve.shut and not port.leaving:
            wanted = {
                family
                for family in port.families
                if not plan.needs_app or (family in port.served and family not in port.refused_until)
            }
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
        self._owner.changed()

    def _look_at_queues(self, *, changed: bool) -> None:
        """Look how full the queues are: where something has `changed`, or was suspicious. Raises KernelError.

        What the kernel answers about listening sockets tells their queues, too: when that is the same, so are they.
        """
        for number, port in self._ports.items():
            if not changed and not port.valve.watching:
                continue
            was_shut, length = port.valve.shut, queue_length(port.listener)
            port.valve.look(length=length, limit=queue_limit(port.listener) if length else 1, now=self._now())
            if port.valve.shut == was_shut:
                continue
            conditions = []
            if port.valve.shut:
                text = "connections come faster than the pod proxy takes them; the port is left to the app for a while"
                conditions.append(Condition(ConditionType.OVERLOADED, port_subject(self._pod, number), text))
            self._statements.state(number, "overload", conditions)
            self._ground = None

    def _tell_app(self, port: _Port) -> None:
        conditions = []
        if port.waits_for_app:
            subject = port_subject(self._pod, port.plan.number)
            text = "nothing listens there, so nothing is steered; it will be as soon as an app does"
            conditions.append(Condition(ConditionType.NO_APP, subject, text))
        self._statements.state(port.plan.number, "app", conditions)

    # --- connections that were there before -------------------------------------------------------------------------

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
            conditions.append(Condition(ConditionType.EXISTING_KEPT, port_subject(self._pod, port.plan.number), text))
        self._statements.state(port.plan.number, "existing", conditions)
