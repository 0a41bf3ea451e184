"""UDP ports of one target pod: makes their sockets, hands them to the proxy, steers them and takes them back.

An intercept of a UDP port is always global, so the port is steered whether or not an app listens. A wiretap steers
nothing: the proxy gets raw sockets that receive copies. Sending sockets are made once per pod, when its first UDP port
is intercepted. The order is that of TCP ports: configure, hand over, steer; undoing runs in reverse.

`look` finds sockets that somebody in the pod has ended (`netns.is_bound`); they are unsteered, and the next `apply`
replaces them, later each time.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidestep.model.errors import SidestepError
from sidestep.model.pod import Family, Transport
from sidestep.netns import Netns, cookie, is_bound, udp_listener, udp_sender, udp_tap
from sidestep.node.planning.listener_backoff import ListenerBackoff
from sidestep.node.planning.plan import PortPlan
from sidestep.node.pods.listening_port import families_of
from sidestep.node.proxies.supervisor import PodProxy
from sidestep.steering import Steering

Entry = tuple[int, Transport, Family]
"""What a map holds: a port that is steered."""

_SEND = {Family.IPV4: "udp-send-4", Family.IPV6: "udp-send-6"}
_TAP = {Family.IPV4: "udp-tap-4", Family.IPV6: "udp-tap-6"}


@dataclass(slots=True)
class _Port:
    listener: socket.socket | None = None
    taps: dict[Family, socket.socket] = field(default_factory=dict)
    steered: set[Family] = field(default_factory=set)
    replacement: ListenerBackoff = field(default_factory=ListenerBackoff)
    """When the listener is replaced, once it has died."""

    @property
    def listener_dead(self) -> bool:
        """Whether the listener has died and is not replaced yet."""
        return self.replacement.renew_at is not None


class DatagramPorts:
    """Those of one pod. `apply` is given all UDP plans; `close` gives the sockets back (the proxy is gone by then)."""

    def __init__(self) -> None:
        self._ports: dict[int, _Port] = {}
        self._senders: dict[Family, socket.socket] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there is no UDP port to look at."""
        return not self._ports

    def unsteer_gone(self, plans: Mapping[int, PortPlan], steering: Steering | None) -> None:
        """Before the proxy is told: steer nothing at it any more that it will not know. Raises KernelError."""
        for number, port in self._ports.items():
            plan = plans.get(number)
            if plan is None or not plan.snapshot.global_uid:
                self._unsteer(number, port, steering)

    async def apply(self, plans: Mapping[int, PortPlan], *, netns: Netns, proxy: PodProxy, steering: Steering) -> None:
        """Make the plans real; the proxy has its configuration. Raises SidestepError; what could be done is done."""
        for number in [number for number in self._ports if number not in plans]:
            await self._release(number, proxy)
        for number, plan in sorted(plans.items()):
            port = self._ports.setdefault(number, _Port())
            if plan.snapshot.global_uid:
                await self._intercept(number, port, netns=netns, proxy=proxy, steering=steering)
            else:
                await self._drop_listener(number, port, proxy)
            if plan.snapshot.global_taps:
                await self._tap(number, port, netns=netns, proxy=proxy)
            else:
                await self._drop_taps(number, port, proxy)

    async def _intercept(self, number: int, port: _Port, *, netns: Netns, proxy: PodProxy, steering: Steering) -> None:
        for family in Family:
            if family not in self._senders:
                sender = udp_sender(netns, family)
                if sender is not None:
                    self._senders[family] = await _given(proxy, 0, _SEND[family], sender)
        if port.listener_dead:
            await self._drop_listener(number, port, proxy)
            port.replacement.renewed()
        if port.listener is None:
            port.listener = await _given(proxy, number, "udp", udp_listener(netns))
        for family in families_of(port.listener):
            if family not in port.steered:
                steering.steer(number, Transport.UDP, family, port.listener.fileno())
                port.steered.add(family)

    async def _tap(self, number: int, port: _Port, *, netns: Netns, proxy: PodProxy) -> None:
        for family in Family:
            if family not in port.taps:
                tap = udp_tap(netns, family, number)
                if tap is not None:
                    port.taps[family] = await _given(proxy, number, _TAP[family], tap)

    async def _release(self, number: int, proxy: PodProxy) -> None:
        port = self._ports[number]
        await self._drop_listener(number, port, proxy)
        await self._drop_taps(number, port, proxy)
        del self._ports[number]

    async def _drop_listener(self, number: int, port: _Port, proxy: PodProxy) -> None:
        listener, port.listener = port.listener, None
        if listener is not None:
            try:
                await proxy.unlisten(number, "udp")
            finally:
                listener.close()

    async def _drop_taps(self, number: int, port: _Port, proxy: PodProxy) -> None:
        while port.taps:
            family, tap = port.taps.popitem()
            try:
                await proxy.unlisten(number, _TAP[family])
            finally:
                tap.close()

    @staticmethod
    def _unsteer(number: int, port: _Port, steering: Steering | None) -> None:
        for family in sorted(port.steered):
            if steering is not None:
                steering.unsteer(number, Transport.UDP, family)
            port.steered.discard(family)

    def pause(self, steering: Steering | None) -> None:
        """The proxy is away for longer than its clients may wait: the app gets its datagrams. Never raises."""
        for number, port in self._ports.items():
            with contextlib.suppress(SidestepError):
                self._unsteer(number, port, steering)

    def look(self, now: float) -> bool:
        """See whether the sockets still receive; whether one has died."""
        died = False
        for port in self._ports.values():
            if port.listener is not None and not port.listener_dead and not is_bound(port.listener):
                port.replacement.died(now)
                died = True
        return died

    def outdated(self, now: float) -> bool:
        """Whether a socket is to be replaced now."""
        return any(port.replacement.is_due(now) for port in self._ports.values())

    def sockets(self) -> dict[Entry, int]:
        """The kernel's number of the socket that each entry of the map should lead to. Raises KernelError."""
        return {
            (number, Transport.UDP, family): cookie(port.listener)
            for number, port in self._ports.items()
            if port.listener is not None
            for family in port.steered
        }

    def resume(self, steering: Steering) -> None:
        """The proxy is there. Raises KernelError."""
        for number, port in self._ports.items():
            if port.listener_dead:
                self._unsteer(number, port, steering)
            elif port.listener is not None and not port.steered:
                for family in families_of(port.listener):
                    steering.steer(number, Transport.UDP, family, port.listener.fileno())
                    port.steered.add(family)

    def forget_steering(self) -> None:
        """The steering was closed: nothing is steered any more."""
        for port in self._ports.values():
            port.steered.clear()

    def steered(self) -> dict[int, frozenset[Family]]:
        """The families steered now, by port."""
        return {number: frozenset(port.steered) for number, port in sorted(self._ports.items())}

    def tapped(self) -> frozenset[int]:
        """Ports of which copies are taken."""
        return frozenset(number for number, port in self._ports.items() if port.taps)

    def close(self) -> None:
        """Close all sockets. Closing twice does nothing."""
        for port in self._ports.values():
            for sock in (port.listener, *port.taps.values()):
                if sock is not None:
                    sock.close()
        for sock in self._senders.values():
            sock.close()
        self._ports.clear()
        self._senders.clear()


async def _given(proxy: PodProxy, number: int, role: str, sock: socket.socket) -> socket.socket:
    """The socket, once the proxy has it; closed when it cannot be given. Raises SidestepError."""
    try:
        await proxy.listen(number, role, sock)
    except BaseException:
        sock.close()
        raise
    return sock
