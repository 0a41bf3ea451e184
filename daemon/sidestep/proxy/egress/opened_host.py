"""The host of one connection that the pod makes and that is opened: what its setup asks, as `SetupHost` says.

It dials the server at the port that the connection is opened for, which is not the one that the client dialled where
clear HTTP leaves in TLS, and keeps to itself what ports of the pod tell operators: what is wrong with a server is told
by records and counters.
"""

from __future__ import annotations

from collections.abc import Callable

from sidestep.model.condition import ConditionType
from sidestep.proxy.connection.dial import Done
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.egress.outbound_host import OutboundHost, Process
from sidestep.proxy.egress.server_dial import ServerDial
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.tls.credentials import ConnectionCredentials


class OpenedHost(OutboundHost):
    """One for a connection. `late_auth` is called if the server asks for a certificate after the handshake."""

    def __init__(
        self, loop: Loop, process: Process, *, credentials: ConnectionCredentials, late_auth: Callable[[], None]
    ) -> None:
        super().__init__(loop, process)
        self.credentials = credentials
        self.detection_timeout = process.detection_timeout
        self.hellos = process.hellos
        self.ledger = process.ledger
        self.ids = process.ids
        self.inspector = process.inspector
        self.tls_port: int | None = None
        """Where the server is dialled, if it is not the client's own choice."""
        self._late_auth = late_auth

    def dial_app(self, endpoints: Endpoints, done: Done) -> Callable[[], None]:
        """Connect to the server; returns a function that cancels."""
        if self.tls_port is None:
            return super().dial_app(endpoints, done)
        return ServerDial(self._loop, endpoints.host, self.tls_port, done).cancel

    def release_names(self, endpoints: Endpoints) -> None:
        """Do nothing, as `release_name`."""

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """Do nothing; see the module."""

    def late_client_auth_seen(self, port: LivePort) -> None:
        """The server has asked for a certificate after the handshake."""
        del port
        self._late_auth()

    def observe_protocol(self, port: LivePort, endpoints: Endpoints, *, tls: bool) -> None:
        """Do nothing: servers of others are not probed."""
