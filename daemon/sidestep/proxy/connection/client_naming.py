"""Names connections to the app after their clients, so that the app sees the client's address.

Between bind and connect the daemon is told (`NameClient`) for which client a dial is made. The dial waits for the
acknowledgement, at most NAME_TIMEOUT; without one the app sees the proxy's address. While the daemon is silent
(`daemon_breaker`) nothing is named, and no dial waits.

Invariant: `Endpoints.names` lists the names that a client's connection has. Each is taken back (`ForgetClient`) before
its socket is closed, at the latest when the client's connection is over.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.pending_calls import PendingCalls
from sidestep.proxy.io.loop import Loop

NAME_TIMEOUT: Final = 1.0
"""Seconds to wait for the name of a dial; then it goes on without."""


class ClientNaming:
    """The dials that wait for their names."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._link = link
        self._calls: PendingCalls[Callable[[bool], None]] = PendingCalls(
            loop, link, patience=NAME_TIMEOUT, unanswered=lambda seq: self._named(seq, given=False)
        )

    @property
    def is_possible(self) -> bool:
        """Whether the daemon can be asked for a name now."""
        return not self._link.breaker.is_silent

    def name(
        self, endpoints: Endpoints, peer: str, peer_port: int, ready: Callable[[bool], None]
    ) -> Callable[[], None]:
        """Name the dial from (peer, peer_port), then call `ready(named)`; returns a function that cancels."""
        seq = self._link.next_seq()
        client = (endpoints.client, endpoints.client_port)
        if self._calls.call(seq, messages.NameClient(seq, endpoints.port, peer, peer_port, *client), ready):
            endpoints.names.append((peer, peer_port))
        return partial(self._calls.cancel, seq)

    def acknowledged(self, ack: messages.Ack) -> None:
        """The daemon has named a dial, or (with an error) could not."""
        self._named(ack.seq, given=not ack.error)

    def _named(self, seq: int, *, given: bool) -> None:
        ready = self._calls.finish(seq)
        if ready is not None:
            ready(given)

    def release_name(self, endpoints: Endpoints, app: socket.socket) -> None:
        """Take back the name of a connection to the app that is about to be closed, before its client's is."""
        try:
            name = app.getsockname()[:2]
        except OSError:
            return  # `release_names` takes it back
        if name in endpoints.names:
            endpoints.names.remove(name)
            self._forget(endpoints, name)

    def release_names(self, endpoints: Endpoints) -> None:
        """Take back the names of a client's connection that is over."""
        for name in endpoints.names:
            self._forget(endpoints, name)
        endpoints.names.clear()

    def _forget(self, endpoints: Endpoints, name: tuple[str, int]) -> None:
        self._link.send(messages.ForgetClient(self._link.next_seq(), endpoints.port, *name))
