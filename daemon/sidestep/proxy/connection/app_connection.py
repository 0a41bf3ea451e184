"""Connects to the app on behalf of a client, and tells the host when nothing listens there."""

from __future__ import annotations

import socket
from collections.abc import Callable

from sidestep.model.errors import PeerError
from sidestep.proxy.connection.dial import Done
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.host import ConnectionHost
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.io.task import Cancel, Operation


def begin_dial(host: ConnectionHost, port: LivePort, endpoints: Endpoints, done: Done) -> Cancel:
    """Dial the app; returns a function that cancels. `done` is called as `dial.Dial` does, on a later turn."""

    def finished(sock: socket.socket | None, error: OSError | None) -> None:
        if isinstance(error, ConnectionRefusedError):
            host.no_app(port, endpoints.host)
        done(sock, error)

    return host.dial_app(endpoints, finished)


async def dial_app(host: ConnectionHost, port: LivePort, endpoints: Endpoints) -> socket.socket:
    """As `begin_dial`; returns the connected socket. Raises PeerError."""

    def start(done: Callable[[tuple[socket.socket | None, OSError | None]], None]) -> Cancel:
        return begin_dial(host, port, endpoints, lambda sock, error: done((sock, error)))

    sock, error = await Operation(start)
    if sock is None:
        raise PeerError(f"the app cannot be reached: {error}")
    return sock
