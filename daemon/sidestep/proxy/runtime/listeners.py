"""The listeners of a pod proxy: one acceptor for each steered TCP port, and those that are being retired.

    Listen     the daemon hands a listener over; one that the port had before is retired
    Unlisten   the port is no longer steered: its listener is retired (`Acceptor.retire`)
    Drain      of the whole pod proxy: as Unlisten. Of a process that leaves others: closed, for the port stays steered

Invariants: a port has at most one acceptor that is not retired; the daemon is told while that one cannot accept.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from sidestep.proxy.connection.acceptor import Acceptor
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.control.readiness import EXHAUSTED, Readiness
from sidestep.proxy.io.loop import Loop
from sidestep.snapshots.hindrance import Hindrance

CANNOT_ACCEPT: Final = "cannot-accept"


class Listeners:
    """All listeners. `has_room()` tells whether to accept; `retired()` is called when a retired one is closed;
    `is_shared()` tells whether other processes accept from the same queues."""

    def __init__(
        self,
        loop: Loop,
        readiness: Readiness,
        *,
        has_room: Callable[[], bool],
        retired: Callable[[], None],
        is_shared: Callable[[], bool] = bool,
    ) -> None:
        self._loop = loop
        self._readiness = readiness
        self._has_room = has_room
        self._retired = retired
        self._is_shared = is_shared
        self._acceptors: dict[int, Acceptor] = {}
        self._retiring: set[Acceptor] = set()

    @property
    def are_retiring(self) -> bool:
        """Whether a retired listener is not closed yet."""
        return bool(self._retiring)

    def listen(self, port: int, listener: socket.socket, accepted: Callable[[socket.socket, Endpoints], None]) -> None:
        """Accept on a listener, in the place of the one that the port had."""
        old = self._acceptors.pop(port, None)
        if old is not None:
            self._retire(old)

        def outcome(error: int) -> None:
            if self._acceptors.get(port) is acceptor:
                self._tell(port, error)

        acceptor = self._acceptors[port] = Acceptor(
            self._loop,
            listener,
            port,
            accepted=accepted,
            has_room=self._has_room,
            outcome=outcome,
            is_shared=self._is_shared,
        )

    def accept(self) -> None:
        """Accept what has woken a process that ended before it accepted."""
        for acceptor in [*self._acceptors.values()]:
            acceptor.accept()

    def unlisten(self, port: int) -> None:
        """Retire the listener of a port, if it has one."""
        acceptor = self._acceptors.pop(port, None)
        if acceptor is not None:
            self._retire(acceptor)
            self._tell(port, 0)

    def unlisten_all(self) -> None:
        """Retire every listener."""
        for port in list(self._acceptors):
            self.unlisten(port)

    def leave(self) -> None:
        """Close every listener at once: other processes of the pod accept what is in its queue."""
        for port in list(self._acceptors):
            self._acceptors.pop(port).close()
            self._tell(port, 0)

    def close_retired(self) -> None:
        """Close the listeners that are being retired without waiting for their queues to be empty."""
        for acceptor in list(self._retiring):
            acceptor.close()

    def _retire(self, acceptor: Acceptor) -> None:
        self._retiring.add(acceptor)

        def done() -> None:
            self._retiring.discard(acceptor)
            self._retired()

        acceptor.retire(done)

    def _tell(self, port: int, error: int) -> None:
        """Accepting on a port works (0), or does not (an errno)."""
        if error in EXHAUSTED:
            self._readiness.exhausted(error)
        elif error:
            self._readiness.hinder(Hindrance(CANNOT_ACCEPT, port, error=error))
        else:
            self._readiness.clear(Hindrance(CANNOT_ACCEPT, port))
