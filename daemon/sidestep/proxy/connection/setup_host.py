"""What the setup of a connection asks of the process around it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sidestep.engine.mirror.ledger import Ledger
from sidestep.model.condition import ConditionType
from sidestep.model.errors import PeerError
from sidestep.proxy.connection.dial import Done
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.host import ConnectionHost, RelayedConnection
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.io.task import Cancel, Operation
from sidestep.proxy.tls.credentials import Credentials

if TYPE_CHECKING:
    from sidestep.proxy.connection.setup import ConnectionSetup


class SetupHost(ConnectionHost, Protocol):
    """What a setup asks, besides what the relay that follows asks."""

    credentials: Credentials
    detection_timeout: float
    ledger: Ledger

    def opened(self, connection: RelayedConnection) -> None:
        """A connection is relayed from now on."""

    def setup_over(self, setup: ConnectionSetup) -> None:
        """A setup is over, whatever came of it."""

    def release_names(self, endpoints: Endpoints) -> None:
        """A connection ended, or its dial to the app did, before it was relayed."""

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """A connection of this port met a condition or, with an empty text, found that it does not hold any more."""

    def late_client_auth_seen(self, port: LivePort) -> None:
        """The app has asked for a client's certificate after the handshake."""

    def observe_protocol(self, port: LivePort, endpoints: Endpoints, *, tls: bool) -> None:
        """A connection began with a ClientHello, or with HTTP in clear."""


def begin_dial(host: SetupHost, port: LivePort, endpoints: Endpoints, done: Done) -> Cancel:
    """Connect to the app on behalf of a client; tell the host when nothing listens there."""

    def finished(sock: socket.socket | None, error: OSError | None) -> None:
        if isinstance(error, ConnectionRefusedError):
            host.no_app(port, endpoints.host)
        done(sock, error)

    return host.dial_app(endpoints, finished)


async def dial_app(host: SetupHost, port: LivePort, endpoints: Endpoints) -> socket.socket:
    """As `begin_dial`; returns the connected socket. Raises PeerError."""

    def start(done: Callable[[tuple[socket.socket | None, OSError | None]], None]) -> Cancel:
        return begin_dial(host, port, endpoints, lambda sock, error: done((sock, error)))

    sock, error = await Operation(start)
    if sock is None:
        raise PeerError(f"the app cannot be reached: {error}")
    return sock
