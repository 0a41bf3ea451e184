"""Connections that the pod makes, in one pod proxy: their listener, their table, their policies.

The kernel sends a connection that the pod makes to a listener on loopback (bpf/sidestep_egress.c), and the table says
where it was meant to go (`model.egress_table`). One that the table does not know was made to the listener itself, by
somebody in the pod: it is closed, and nothing is dialled.

    serve       accept on this listener from now on, in the place of any other; destinations are in this table
    retire      accept for a moment more, as any listener that is given up (`Acceptor.retire`)
    configure   judge new connections by these policies; those that are relayed go on

Nothing of this exists in a proxy while no policy is about such connections, and no session listens to them.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Protocol

from sidestep.model.egress_table import Original
from sidestep.policy.inspection_match import Address
from sidestep.proxy.connection.acceptor import Acceptor
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.egress.outbound_host import OutboundHost, Process
from sidestep.proxy.egress.outbound_policies import OutboundPolicies
from sidestep.proxy.egress.outbound_setup import OutboundSetup
from sidestep.proxy.io.loop import Loop
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot
from sidestep.snapshots.waf import PortWaf


class Table(Protocol):
    """What is needed of `EgressTable`."""

    def take(self, local: Address, port: int) -> Original | None:
        """The original destination of a connection that was accepted at this address and port."""


class Outbound:
    """All of it. `has_room`, `outcome` and `retired` are those of `Acceptor`."""

    def __init__(
        self,
        loop: Loop,
        process: Process,
        *,
        has_room: Callable[[], bool],
        outcome: Callable[[int], None],
        retired: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._process = process
        self._host = OutboundHost(loop, process)
        self._policies = OutboundPolicies(process.firewalls_changed)
        self._has_room = has_room
        self._outcome = outcome
        self._retired = retired
        self._acceptor: Acceptor | None = None
        self._retiring: set[Acceptor] = set()

    @property
    def port(self) -> LivePort:
        """Where its counters are."""
        return self._policies.port

    @property
    def firewalls(self) -> tuple[PortWaf, ...]:
        """Those that may judge requests."""
        return self._policies.firewalls.known

    @property
    def is_retiring(self) -> bool:
        """Whether a listener that was given up is not closed yet."""
        return bool(self._retiring)

    def configure(self, snapshots: Sequence[EgressSnapshot], listened: PortSnapshot | None = None) -> None:
        """Replace the policies, and who listens. Raises ConfigurationError, and changes nothing then."""
        self._policies.configure(snapshots, listened)

    def serve(self, listener: socket.socket, table: Table) -> None:
        """Accept on a listener."""
        self.retire()

        def accepted(sock: socket.socket, endpoints: Endpoints) -> None:
            self._accepted(sock, endpoints, table)

        self._acceptor = Acceptor(
            self._loop, listener, None, accepted=accepted, has_room=self._has_room, outcome=self._outcome
        )

    def retire(self) -> None:
        """Give the listener up, if there is one."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is None:
            return
        self._retiring.add(acceptor)

        def done() -> None:
            self._retiring.discard(acceptor)
            self._retired()

        acceptor.retire(done)

    def close_retired(self) -> None:
        """Close listeners that are being given up without waiting for their queues to be empty."""
        for acceptor in [*self._retiring]:
            acceptor.close()

    def _accepted(self, sock: socket.socket, endpoints: Endpoints, table: Table) -> None:
        original = table.take(ip_address(endpoints.host), endpoints.port)
        if original is None:
            self.port.counters["outbound_unknown"] += 1
            sock.close()
            return
        self.port.counters["outbound"] += 1
        wanted = Endpoints(endpoints.client, endpoints.client_port, str(original.address), original.port)
        setup = OutboundSetup(self._loop, sock, policies=self._policies, endpoints=wanted, host=self._host)
        self._process.setup_begins(setup)
        try:
            setup.begin()
        except OSError as error:
            self._process.setup_failed(error.errno or 0)
            setup.abandon()
