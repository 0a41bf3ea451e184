"""The two ends of a connection that is being set up.

An end is a socket before its TLS handshake and a stream after it. `Ends` owns what no handshake and no relay owns: to
hand an end over is to take it out of here, so that each descriptor has one owner and is closed once.
"""

from __future__ import annotations

import socket

from sidestep.model.errors import PeerError
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import PlainStream, Stream, TlsStream, reset


class Ends:
    """The two ends of a connection that is being set up, while no handshake and no relay owns them."""

    __slots__ = ("_loop", "app", "client")

    def __init__(self, loop: Loop, client: socket.socket) -> None:
        self._loop = loop
        self.client: socket.socket | TlsStream | None = client
        """Registered with the loop."""
        self.app: socket.socket | TlsStream | None = None
        """Not registered."""

    def take_client_socket(self) -> socket.socket:
        """Hand the client's socket over. Raises PeerError when it is not here any more."""
        client, self.client = self.client, None
        if not isinstance(client, socket.socket):
            raise PeerError("the client is gone")
        return client

    def take_app_socket(self) -> socket.socket | None:
        """Hand the app's socket over, if it was connected already."""
        app = self.app
        if not isinstance(app, socket.socket):
            return None
        self.app = None
        return app

    def take_streams(self) -> tuple[Stream | None, Stream | None]:
        """Hand both ends over to a relay."""
        client, app, self.client, self.app = self.client, self.app, None, None
        return _stream(client), _stream(app)

    def close_app(self) -> None:
        """Close the app's end with a FIN."""
        app, self.app = self.app, None
        if app is not None:
            app.close()

    def reset(self) -> None:
        """Close what is here so that the peers see a reset."""
        client, app, self.client, self.app = self.client, self.app, None, None
        if client is not None:
            self._loop.remove(client.fileno() if isinstance(client, socket.socket) else client.fd)
        for end in (client, app):
            if isinstance(end, TlsStream):
                end.reset()
            elif end is not None:
                reset(end)


def _stream(end: socket.socket | TlsStream | None) -> Stream | None:
    return PlainStream(end) if isinstance(end, socket.socket) else end
