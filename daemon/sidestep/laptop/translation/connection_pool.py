"""HTTP/1.1 connections to the handler: one request at a time each, kept for further requests where the handler allows
it.

A connection is kept only after an exchange that left nothing unread or unsent. A handler may close an idle connection
at any time, which loses a request sent at that moment. Therefore an idle connection with pending input is not used, and
requests that must not or cannot be sent twice use new connections only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import h11

from sidestep.laptop.channels.tls_channel import TlsChannel
from sidestep.tunnel.channel import SocketChannel

HandlerChannel = SocketChannel | TlsChannel
Dial = Callable[[], Awaitable[HandlerChannel]]
"""Connects to the handler. Raises RefusedError."""

KEPT: Final = 8
"""Idle connections that are kept; further ones are closed."""
MAX_HEAD: Final = 64 * 1024
"""Bytes of a handler's response head or chunk header; the same limit as that of the pod proxy for HTTP/1.1."""


class HandlerConnection:
    """One connection to the handler. `used`: it has completed an exchange."""

    def __init__(self, channel: HandlerChannel) -> None:
        self.channel = channel
        self.used = False
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    async def send(self, event: h11.Event) -> None:
        """Send a part of a request. Raises ChannelBrokenError, h11.LocalProtocolError."""
        data = self._http.send(event)
        if data:
            await self.channel.write(data)

    async def receive(self) -> h11.Event:
        """Return the next part of the answer. Raises ChannelBrokenError, h11.RemoteProtocolError."""
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                raise h11.RemoteProtocolError("it goes on after the end of its answer")
            self._http.receive_data(await self.channel.read())

    def rewind(self) -> bool:
        """Prepare for the next exchange; returns False when the connection cannot carry another."""
        self.used = True
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        if self._http.trailing_data[0]:
            return False
        self._http.start_next_cycle()
        return True


class ConnectionPool:
    """The handler connections of one client connection. `first` is a channel that is already connected."""

    def __init__(self, dial: Dial, first: HandlerChannel | None = None) -> None:
        self._dial = dial
        self._kept = [] if first is None else [HandlerConnection(first)]
        self._closed = False

    async def acquire(self, *, fresh: bool) -> HandlerConnection:
        """Return a connection for one exchange; with `fresh` one that has not been used. Raises RefusedError."""
        for connection in reversed(self._kept):
            if fresh and connection.used:
                continue
            self._kept.remove(connection)
            if not (connection.used and connection.channel.has_input()):
                return connection
            connection.channel.close()
        return HandlerConnection(await self._dial())

    def release(self, connection: HandlerConnection, *, sound: bool) -> None:
        """Keep a connection after a `sound` exchange, otherwise close it."""
        if not sound:
            connection.channel.abort()
        elif self._closed or len(self._kept) >= KEPT or not connection.rewind():
            connection.channel.close()
        else:
            self._kept.append(connection)

    def close(self) -> None:
        """Close idle connections. Connections in use close when they are released."""
        self._closed = True
        for connection in self._kept:
            connection.channel.close()
        self._kept.clear()
