"""The host interface of a connection: what a relayed connection needs from the process around it.

`proxy.runtime.worker` implements `ConnectionHost`. `RelayedConnection` is what the host sees of a connection.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from sidestep.engine.leg import Leg
from sidestep.engine.memory_budget import Budget
from sidestep.engine.relay import Relay
from sidestep.proxy.connection.dial import Done
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.control.messages import LoggedTls
from sidestep.proxy.io.splice import Pipes
from sidestep.proxy.io.stream import PlainStream, Stream
from sidestep.proxy.mirror.scheduler import MirrorScheduler

AppTls = Callable[[socket.socket, Callable[[Stream | None], None]], Callable[[], None]]
"""Make a TLS stream to the app on a connected socket; returns a function that cancels."""


class RelayedConnection(Protocol):
    """A connection while it is relayed."""

    @property
    def relay(self) -> Relay:
        """The engine that decides."""

    @property
    def port(self) -> LivePort:
        """The steered port that accepted it."""

    @property
    def endpoints(self) -> Endpoints:
        """Its addresses."""

    @property
    def tls(self) -> bool:
        """Whether the client came over TLS that was opened."""

    @property
    def tls_facts(self) -> LoggedTls | None:
        """More of such a client, if something of the connection was mirrored while it was open."""

    @property
    def app_tls(self) -> AppTls | None:
        """How a TLS stream to the app is made; None where the connection to the app is not opened TLS."""

    @property
    def active(self) -> float:
        """When bytes last came (monotonic seconds)."""

    @property
    def allows_late_auth(self) -> bool:
        """Whether the app could still ask for the client's certificate on this connection."""

    @property
    def is_cut_off(self) -> bool:
        """Whether the app's kernel has stopped to acknowledge what the client sent."""

    def retire(self) -> None:
        """End the connection, which is idle."""

    def abandon(self) -> None:
        """Reset the connection."""


class ConnectionHost(Protocol):
    """The process, as a connection sees it. All connections share its attributes."""

    pipes: Pipes
    mirror_scheduler: MirrorScheduler
    backlog: Budget
    """Bytes that all connections have queued for peers that do not read."""
    lingering: set[object]
    """Legs that are closed and still read for a moment; a draining process waits for them."""

    def open_stream(
        self, info: ConnectionInfo, leg: Leg, done: Callable[[PlainStream | None], None]
    ) -> Callable[[], None]:
        """Ask the daemon for a connection to the handler of `leg.rule`; returns a function that cancels."""

    def dial_app(self, endpoints: Endpoints, done: Done) -> Callable[[], None]:
        """Connect to the app on behalf of a client; returns a function that cancels."""

    def release_name(self, endpoints: Endpoints, app: socket.socket) -> None:
        """Note that a connection to the app is about to be closed, before its client's is."""

    def no_app(self, port: LivePort, host: str) -> None:
        """Note that a dial to the app was refused."""

    def closed(self, connection: RelayedConnection) -> None:
        """Note that a connection is over."""

    def log_requests(self, connection: RelayedConnection) -> None:
        """Take what is in `connection.relay.mirror.notes`, and empty it."""
