"""Connecting the legs that a relay asks for: to the app by a dial, to a handler through the daemon.

Each function starts the work and keeps `io.cancel` up to date while it lasts. `done(io, stream)` is called once, with
None if the leg is refused, and not at all if the work is cancelled.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from sidestep.proxy.connection.app_connection import begin_dial
from sidestep.proxy.connection.connection_leg import ConnectionLeg
from sidestep.proxy.connection.endpoints import ConnectionInfo, Endpoints
from sidestep.proxy.connection.host import AppTls, ConnectionHost
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.io.stream import PlainStream, Stream

Opened = Callable[[ConnectionLeg, Stream | None], None]


def open_app(
    io: ConnectionLeg, host: ConnectionHost, port: LivePort, endpoints: Endpoints, *, tls: AppTls | None, done: Opened
) -> None:
    """Dial the app, and shake hands with it where the connection is opened TLS."""

    def connected(sock: socket.socket | None, error: OSError | None) -> None:
        del error
        io.cancel = None
        if sock is not None:
            _secure(io, PlainStream(sock), tls, done)
        else:
            done(io, None)

    io.cancel = begin_dial(host, port, endpoints, connected)


def open_handler(
    io: ConnectionLeg, host: ConnectionHost, info: ConnectionInfo, *, tls: AppTls | None, done: Opened
) -> None:
    """Ask the daemon for a stream to the handler of the leg's rule. `tls`: it stands where the app would."""

    def arrived(stream: PlainStream | None) -> None:
        io.cancel = None
        if stream is None:
            done(io, None)
        else:
            _secure(io, stream, tls, done)

    io.cancel = host.open_stream(info, io.leg, arrived)


def _secure(io: ConnectionLeg, stream: PlainStream, tls: AppTls | None, done: Opened) -> None:
    if tls is None:
        done(io, stream)
        return

    def secured(secure: Stream | None) -> None:
        io.cancel = None
        done(io, secure)

    io.cancel = tls(stream.sock, secured)
