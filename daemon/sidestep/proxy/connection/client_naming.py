"""Names for dials to the app: the daemon is told, between bind and connect, on behalf of which client a dial is made.

A dial waits for the daemon's acknowledgement, or for `NAME_TIMEOUT`; without a name the app sees the proxy's address.
While the daemon is silent (`daemon_breaker`) nothing is named and no dial waits.
`Endpoint.names` lists what a client's connection has named; every name is taken back, at the latest when the client's
connection is over.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from sidestep.proxy.connection.conductor import Endpoint
from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_link import Line
from sidestep.proxy.control.pending_calls import Questions
from sidestep.proxy.io.loop import Loop

NAME_TIMEOUT: Final = 1.0
"""Seconds to wait until the app can be told a client's address; then it sees ours."""


class ClientNaming:
    """The names that are being given."""

    def __init__(self, loop: Loop, line: Line) -> None:
        self._line = line
        self._questions: Questions[Callable[[bool], None]] = Questions(
            loop, line, patience=NAME_TIMEOUT, unanswered=lambda seq: self._named(seq, given=False)
        )

    @property
    def is_possible(self) -> bool:
        """Whether asking for a name makes sense now."""
        return not self._line.breaker.is_silent

    def name(self, endpoint: Endpoint, peer: str, peer_port: int, ready: Callable[[bool], None]) -> Callable[[], None]:
        """Name the dial from (peer, peer_port), then call `ready(named)`; returns a function that cancels."""
        seq = self._line.next_seq()
        client = (endpoint.client, endpoint.client_port)
        if self._questions.ask(seq, messages.NameClient(seq, endpoint.port, peer, peer_port, *client), ready):
            endpoint.names.append((peer, peer_port))
        return partial(self._questions.drop, seq)

    def acknowledged(self, ack: messages.Ack) -> None:
        """The daemon has written a name, or could not."""
        self._named(ack.seq, given=not ack.error)

    def _named(self, seq: int, *, given: bool) -> None:
        ready = self._questions.take(seq)
        if ready is not None:
            ready(given)

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
