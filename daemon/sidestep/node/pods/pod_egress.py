"""Steers the connections that one pod makes to its proxy, while a policy is about them or a session listens to them.

States

    off        they are nobody's business, or cannot be steered (`problem` says why): nothing of it exists
    attached   programs on the pod's cgroup, a listener in its namespace, both known to the proxy. Nothing is steered:
               connections go out directly, or are refused where a policy fails closed
    serving    connections are sent to the listener

    off -> attached -> serving      `apply`, once the proxy has acknowledged policies, table and listener
    serving -> attached             `look`: the proxy has gone, hangs, or says that it cannot serve
    attached -> serving             `look`: it is back
    any -> off                      `apply` with nothing to do, `detach`, a failure
    off -> attached                 after a failure also by itself: `outdated` asks for `apply` once a pause that grows
                                    is over

Invariants
  * The proxy is told of policies, table and listener before a connection is steered.
  * Whatever fails here concerns connections that the pod makes: ports that the pod serves are steered all the same.
  * Existing connections go on. What has retired keeps answering getpeername() for them until the app has closed them.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from typing import TYPE_CHECKING

from sidestep.aio.token_bucket import TokenBucket
from sidestep.model.condition import Condition, ConditionType
from sidestep.model.errors import KernelError, RefusedError, SidestepError
from sidestep.netns import reset_waiting, tcp_listener
from sidestep.node.planning.egress import steered
from sidestep.node.planning.valve import Valve
from sidestep.node.proxies.desired import DestinationTable
from sidestep.observability.logs import get_logger
from sidestep.policy.egress import EgressPolicies, address_rules
from sidestep.policy.egress_rows import from_egress_snapshot
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.proxy.control.messages import OUTBOUND
from sidestep.steering import EgressConfig, EgressPrograms, EgressSteering

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from sidestep.model.pod import Pod
    from sidestep.netns import Netns
    from sidestep.node.conditions import Statements
    from sidestep.node.proxies.supervisor import PodProxy
    from sidestep.snapshots.egress import EgressSnapshot
    from sidestep.snapshots.hindrance import Hindrance

BACKLOG = 4096
"""Connections that wait for the proxy to accept them."""
DIRECTLY = 2.0
"""Seconds for which connections to a server that could not be reached are not steered, and so not judged: long enough
for a client that tries again at once. The kernel counts in units of 1.07 s and rounds up."""
DOWNS = (20.0, 200.0)
"""Such servers that are noted a second, and at once: a proxy that was taken over could tell of any number."""
CROWDED = "connections wait for longer than the proxy takes to accept them; for a while they are not steered"
_QUEUE = struct.Struct("=24xII")
"""tcpi_unacked and tcpi_sacked of `struct tcp_info`: of a listener, its accept queue's length and limit."""
NO_CGROUP = "the pod's cgroup v2 folder is not known"
_MOST = 4096
"""Connections in a queue that are reset at once."""
FIRST_RETRY = 1.0
LAST_RETRY = 60.0
"""Seconds before the first try after a failure, doubling up to the last."""


class PodEgress:
    """That of one pod. `changed` is called when `problem` has changed by itself."""

    def __init__(
        self,
        pod: Pod,
        *,
        programs: Callable[[], Awaitable[EgressPrograms]],
        statements: Statements,
        changed: Callable[[], None],
        now: Callable[[], float],
    ) -> None:
        self._pod = pod
        self._programs = programs
        self._statements = statements
        self._changed = changed
        self._now = now
        self._downs = TokenBucket(rate=DOWNS[0], burst=DOWNS[1], now=now())
        self._valve = Valve()
        self._steering: EgressSteering | None = None
        self._listener: socket.socket | None = None
        self._config: EgressConfig | None = None
        self._cgroup = ""
        self._retired: list[tuple[EgressSteering, socket.socket]] = []
        self._serving = False
        self._hindered = False
        self._over = False
        self._policies: tuple[EgressSnapshot, ...] = ()
        """Those that are in effect."""
        self._rules: tuple[tuple[EgressSnapshot, ...], EgressPolicies] | None = None
        """Policies with their rules about addresses, made when they are first asked."""
        self.is_wanted = False
        """Whether a policy is about them, or a session listens to them."""
        self._pause = FIRST_RETRY
        self._again: float | None = None
        """When to try again what has failed."""
        self.problem = ""
        """Why connections that the pod makes are not inspected although a policy is about them."""
        self._log = get_logger("egress").bind(pod=str(pod.key))

    @property
    def serving(self) -> bool:
        """Whether connections are sent to the proxy."""
        return self._serving

    @property
    def open_connections(self) -> int:
        """Connections that were sent to the proxy and that the app has not closed."""
        return self._steering.open_entries() if self._steering is not None else 0

    def verdicts(self) -> dict[str, int]:
        """What the kernel has counted since connections are steered, by lower-case name of `EgressVerdict`."""
        try:
            return self._steering.counters() if self._steering is not None else {}
        except KernelError:
            return {}

    @property
    def outdated(self) -> bool:
        """Whether what has failed is to be tried again now."""
        return self._again is not None and self._now() >= self._again

    @property
    def is_lost(self) -> bool:
        """Whether programs of its are not where they were attached any more."""
        return self._steering is not None and not self._steering.attached()

    def inspects(self, policies: tuple[EgressSnapshot, ...]) -> bool:
        """Whether exactly these policies are in effect."""
        return self._policies == policies and (not policies or self._serving)

    async def apply(
        self,
        policies: tuple[EgressSnapshot, ...],
        *,
        listened: bool,
        pod: Pod,
        proxy: PodProxy,
        netns: Netns,
        own: Collection[IPv4Address | IPv6Address],
    ) -> None:
        """Bring everything in line with these policies, and with whether a session listens. The proxy has been told.

        Raises no SidestepError.
        """
        self._pod = pod
        self.is_wanted = listened or bool(policies)
        try:
            await self._follow(policies, listened=listened, proxy=proxy, netns=netns, own=own)
        except SidestepError as error:
            self._retire()
            with contextlib.suppress(SidestepError):
                await proxy.unlisten_outbound()
            self._state(str(error))
            self._again = self._now() + self._pause
            self._pause = min(2 * self._pause, LAST_RETRY)
            self._log.warning("outbound connections cannot be steered", reason=str(error), again=self._pause)
        else:
            self._again, self._pause = None, FIRST_RETRY
        self.look(absent=False)

    async def _follow(
        self,
        policies: tuple[EgressSnapshot, ...],
        *,
        listened: bool,
        proxy: PodProxy,
        netns: Netns,
        own: Collection[IPv4Address | IPv6Address],
    ) -> None:
        cgroup = self._pod.location.cgroup or ""
        if self._steering is not None and (not self.is_wanted or cgroup != self._cgroup):
            self._retire()
            await proxy.unlisten_outbound()
        if not self.is_wanted or not cgroup:
            self._policies = ()
            self._state(NO_CGROUP if self.is_wanted else "")
            return
        config = _config(policies, own, listened=listened)
        if self._steering is None:
            await self._attach(config, cgroup, proxy=proxy, netns=netns)
        else:
            if config != self._config:
                self._steering.update(config)
            if policies != self._policies:
                self._steering.forget_unreachable()  # what was let out was judged by other policies
        self._config, self._policies = config, policies
        self._state("")

    async def _attach(self, config: EgressConfig, cgroup: str, *, proxy: PodProxy, netns: Netns) -> None:
        programs = await self._programs()
        if self._over:
            raise RefusedError("the pod is being released")
        listener = tcp_listener(netns, backlog=BACKLOG)
        try:
            steering = EgressSteering.attach(programs, cgroup, netns.fd, config)
            try:
                table = DestinationTable(steering.table_fd, str(steering.network), steering.entries)
                await proxy.listen_outbound(table, listener)
                if self._over:
                    raise RefusedError("the pod is being released")
            except BaseException:
                steering.close()
                raise
        except BaseException:
            listener.close()
            raise
        self._steering, self._listener, self._cgroup = steering, listener, cgroup
        self._log.info("outbound connections are steered", cgroup=cgroup, network=str(steering.network))

    def look(self, *, absent: bool) -> None:
        """Steer, or do not, by whether the proxy is there; give back what nobody uses any more. Never raises."""
        for steering, listener in [*self._retired]:
            if steering.open_entries() == 0:
                self._retired.remove((steering, listener))
                _close(steering, listener)
        if self.outdated:
            self._changed()
        if self._steering is None or self._listener is None:
            return
        self._look_at_queue(self._listener)
        wanted = not (absent or self._hindered or self._valve.shut)
        if wanted == self._serving:
            return
        try:
            if wanted:
                self._steering.serve(self._listener.fileno())
            else:
                self._steering.unserve()
        except SidestepError as error:
            self._state(f"steering failed: {error}")
        else:
            self._serving = wanted
            self._changed()

    def _look_at_queue(self, listener: socket.socket) -> None:
        """Shut the valve while the proxy does not keep up, and tell."""
        shut = self._valve.shut
        length, limit = _QUEUE.unpack(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE.size))
        self._valve.look(length=length, limit=limit, now=self._now())
        if self._valve.shut is not shut:
            found = [Condition(ConditionType.OVERLOADED, f"pod {self._pod.key}", CROWDED)] if self._valve.shut else []
            self._statements.state(None, "egress queue", found)

    def unreachable(self, address: str, port: int) -> None:
        """Leave connections to a server that cannot be reached to the pod for a while. `address` comes from the proxy.

        So its processes see what is wrong, and try the next address of several. Not where a rule blocks the address:
        the proxy dials no such server.
        """
        if self._steering is None or not self._downs.take(self._now()):
            return
        try:
            server = ip_address(address)
            if not self._blocks(server, port):
                self._steering.unreachable(server, port, seconds=DIRECTLY)
        except (ValueError, SidestepError) as error:
            self._log.info("a server that cannot be reached was not noted", reason=str(error))

    def _blocks(self, server: IPv4Address | IPv6Address, port: int) -> bool:
        """Whether a rule blocks connections to this address and port by these alone. Raises ConfigurationError."""
        if self._rules is None or self._rules[0] != self._policies:
            self._rules = self._policies, address_rules(map(from_egress_snapshot, self._policies))
        judging = self._rules[1]
        return judging.blocks_address(judging.treatment(server, port), ConnectionFacts(destination=server, port=port))

    def sweep(self) -> None:
        """Reset whoever waits for a proxy that is gone. Never raises."""
        if self._listener is not None and not self._serving:
            reset_waiting(self._listener, most=_MOST)

    def hindered(self, hindrances: Collection[Hindrance]) -> None:
        """Take the proxy's report of all that keeps it from serving."""
        self._hindered = any(each.port in (0, OUTBOUND) for each in hindrances)

    def process_gone(self) -> None:
        """The process of the proxy has ended; what it said does not hold any more."""
        self._hindered = False

    def detach(self) -> None:
        """Steer nothing any more, for good; connections that have arrived go on. Never raises."""
        self._over = True
        self._retire()

    def close(self) -> None:
        """Give everything back. Never raises."""
        self.detach()
        for steering, listener in self._retired:
            _close(steering, listener)
        self._retired = []

    def _retire(self) -> None:
        steering, listener = self._steering, self._listener
        self._steering = self._listener = self._config = None
        self._serving, self._policies, self._valve = False, (), Valve()
        self._statements.state(None, "egress queue", ())
        if steering is not None and listener is not None:
            steering.retire()
            self._retired.append((steering, listener))

    def _state(self, problem: str) -> None:
        self.problem = problem
        text = f"connections that the pod makes are not inspected: {problem}"
        found = [Condition(ConditionType.NOT_INSPECTED, f"pod {self._pod.key}", text)] if problem else []
        self._statements.state(None, "egress", found)


def _close(steering: EgressSteering, listener: socket.socket) -> None:
    steering.close()
    listener.close()


def _config(
    policies: tuple[EgressSnapshot, ...], own: Collection[IPv4Address | IPv6Address], *, listened: bool
) -> EgressConfig:
    """What the kernel is told; `own` are the pod's addresses, of which the first of each family is used."""
    wanted = steered(policies, listened=listened)
    first: dict[int, IPv4Address | IPv6Address] = {}
    for each in sorted(own, key=lambda each: (each.version, int(each))):
        first.setdefault(each.version, each)
    return EgressConfig(
        steered=wanted.steered,
        passed=wanted.passed,
        ports=wanted.ports,
        fail=wanted.fails,
        block_quic=wanted.blocks_quic,
        own=tuple(first.values()),
    )
