"""The host of connections that the pod makes: what their conductors ask, as `connection.host` says.

Streams to sessions are those of captures.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final, Protocol

from sidestep.engine.leg import Leg
from sidestep.engine.mirror.ledger import Ledger
from sidestep.proxy.connection.dial import Done
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.host import ConnectionHost, RelayedConnection
from sidestep.proxy.connection.inspector_link import InspectorLink
from sidestep.proxy.connection.kept_hellos import KeptHellos
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.setup_host import PendingConnection
from sidestep.proxy.control.messages import LoggedRequest
from sidestep.proxy.control.record_queue import RecordQueue
from sidestep.proxy.egress.server_dial import ServerDial
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import PlainStream
from sidestep.proxy.mirror.ids_feeds import IdsFeeds
from sidestep.proxy.tls.credentials import Credentials

UNREACHABLE: Final = frozenset(
    {errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET, errno.EHOSTDOWN}
)
"""Errors of a dial that are the server's, or of the way to it."""


class Process(ConnectionHost, Protocol):
    """What is asked of the process around it."""

    records: RecordQueue
    credentials: Credentials
    detection_timeout: float
    hellos: KeptHellos
    ledger: Ledger
    """What copies may hold."""
    ids: IdsFeeds
    inspector: InspectorLink

    def setup_begins(self, setup: PendingConnection) -> None:
        """A connection was accepted, and is being set up."""

    def setup_failed(self, error: int) -> None:
        """The kernel refused what a connection needs; `error` is its errno."""

    def log_flow(self, line: LoggedRequest) -> None:
        """Tell a session of a connection."""

    def opened(self, connection: RelayedConnection) -> None:
        """A connection is relayed from now on."""

    def setup_over(self, setup: PendingConnection) -> None:
        """A setup is over, whatever came of it."""

    def no_server(self, host: str, port: int) -> None:
        """A server refused, or did not answer."""

    def firewalls_changed(self) -> None:
        """Requests may be judged by further firewalls (`Outbound.firewalls`)."""


class OutboundHost:
    """One for a process. Dials go to servers."""

    def __init__(self, loop: Loop, process: Process) -> None:
        self._loop = loop
        self.process = process
        self.pipes = process.pipes
        self.mirror_scheduler = process.mirror_scheduler
        self.backlog = process.backlog
        self.lingering = process.lingering
        self.records = process.records
        self.ledger = process.ledger

    def open_stream(
        self, info: ConnectionInfo, leg: Leg, done: Callable[[PlainStream | None], None]
    ) -> Callable[[], None]:
        """Ask for the stream of a capture."""
        return self.process.open_stream(info, leg, done)

    def dial_app(self, endpoints: Endpoints, done: Done) -> Callable[[], None]:
        """Connect to the server; returns a function that cancels."""

        def finished(sock: socket.socket | None, error: OSError | None) -> None:
            if error is not None and error.errno in UNREACHABLE:
                self.process.no_server(endpoints.host, endpoints.port)
            done(sock, error)

        return ServerDial(self._loop, endpoints.host, endpoints.port, finished).cancel

    def release_name(self, endpoints: Endpoints, app: socket.socket) -> None:
        """Do nothing: no connection to a server has the name of a client."""

    def no_app(self, port: LivePort, host: str) -> None:
        """Count a server that refused."""
        del host
        port.counters["servers_refused"] += 1

    def opened(self, connection: RelayedConnection) -> None:
        """A connection is relayed from now on."""
        self.process.opened(connection)

    def closed(self, connection: RelayedConnection) -> None:
        """A connection is over."""
        self.process.closed(connection)

    def setup_over(self, setup: PendingConnection) -> None:
        """A setup is over, whatever came of it."""
        self.process.setup_over(setup)

    def log_requests(self, connection: RelayedConnection) -> None:
        """Take the notes of a connection's mirror."""
        self.process.log_requests(connection)

    def log_flow(self, line: LoggedRequest) -> None:
        """Tell a session of heads of a connection."""
        self.process.log_flow(line)
