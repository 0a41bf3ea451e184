"""Names for dials to the app: the daemon is told, between bind and connect, on behalf of which client a dial is made.

A dial waits for the daemon's acknowledgement, or for `NAME_TIMEOUT`; without a name the app sees the proxy's address.
`Endpoint.names` lists what a client's connection has named; every name is taken back, at the latest when the client's
connection is over.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from sidestep.proxy import messages
from sidestep.proxy.conduit import Endpoint
from sidestep.proxy.line import Line
from sidestep.proxy.loop import Loop, Timer

NAME_TIMEOUT: Final = 1.0
"""Seconds to wait until the app can be told a client's address; then it sees ours."""


class ClientNaming:
    """The names that are being given."""

    def __init__(self, loop: Loop, line: Line) -> None:
        self._loop = loop
        self._line = line
        self._waiting: dict[int, tuple[Callable[[bool], None], Timer]] = {}

    def name(self, endpoint: Endpoint, peer: str, peer_port: int, ready: Callable[[bool], None]) -> Callable[[], None]:
        """Name the dial from (peer, peer_port), then call `ready(named)`; returns a function that cancels."""
        line = self._line
        seq = line.next_seq()
        timer = self._loop.later(NAME_TIMEOUT, lambda: self._named(seq, error="timeout"))
        self._waiting[seq] = (ready, timer)
        client = (endpoint.client, endpoint.client_port)
        if line.is_backlogged or not line.send(messages.NameClient(seq, endpoint.port, peer, peer_port, *client)):
            self._loop.later(0.0, lambda: self._named(seq, error="closed"))
        else:
            endpoint.names.append((peer, peer_port))

        def cancel() -> None:
            entry = self._waiting.pop(seq, None)
            if entry is not None:
                entry[1].cancel()

        return cancel

    def acknowledged(self, ack: messages.Ack) -> None:
        """The daemon has written a name, or could not."""
        if ack.seq in self._waiting:
            self._named(ack.seq, error=ack.error)

    def _named(self, seq: int, *, error: str) -> None:
        entry = self._waiting.pop(seq, None)
        if entry is not None:
            ready, timer = entry
            timer.cancel()
            ready(not error)

    def left(self, endpoint: Endpoint, app: socket.socket) -> None:
        """Take back the name of a connection to the app that is about to be closed, before its client's is."""
        try:
            name = app.getsockname()[:2]
        except OSError:
            return  # `gone` sees to it
        if name in endpoint.names:
            endpoint.names.remove(name)
            self._forget(endpoint, name)

    def gone(self, endpoint: Endpoint) -> None:
        """Take back the names of a client's connection that is over."""
        for name in endpoint.names:
            self._forget(endpoint, name)
        endpoint.names.clear()

    def _forget(self, endpoint: Endpoint, name: tuple[str, int]) -> None:
        self._line.send(messages.ForgetClient(self._line.next_seq(), endpoint.port, *name))
