"""Accepting on a steered port's listener.

The listener belongs to the daemon, which keeps a duplicate: closing ours does not close the port, and the accept queue
survives us. `retire` is the gentle end: accept for at least one more second and until the queue is empty, then close
(closing at once reset 34 of 40 concurrent clients). Accepted connections that were not made to the port are dropped:
the listener is bound to loopback, where anything inside the pod could reach it directly.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final

from sidestep.proxy.conduit import Endpoint
from sidestep.proxy.dial import plain_address
from sidestep.proxy.loop import READ, Loop

BURST: Final = 64
"""Connections accepted per event before other descriptors get a turn."""
GRACE: Final = 1.0
"""Seconds a retired listener is accepted on at least."""
PAUSE: Final = 0.1
"""Seconds to wait when descriptors or memory ran out."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """One listener. `accepted(sock, endpoint)` is called for each connection; `has_room()` says whether to go on."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        port: int,
        *,
        accepted: Callable[[socket.socket, Endpoint], None],
        has_room: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._port = port
        self._accepted = accepted
        self._has_room = has_room
        self._paused = False
        self._closed = False
        self._done: Callable[[], None] | None = None
        listener.setblocking(False)
        loop.add(listener.fileno(), self._ready, READ)

    def _ready(self, mask: int) -> None:
        del mask
        self.accept()

    def accept(self) -> bool:
        """Accept what is there, within BURST; tell whether the queue was found empty."""
        for _ in range(BURST):
            if self._closed:
                return True
            if not self._has_room():
                self._pause()
                return False
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause()
                    return False
                continue  # the connection was reset before it was accepted (accept(2))
            self._take(sock, address)
        return False

    def _take(self, sock: socket.socket, address: tuple[str, int]) -> None:
        try:
            host, port = sock.getsockname()[:2]
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError:
            sock.close()
            return
        if port != self._port:
            sock.close()
            return
        self._accepted(sock, Endpoint(plain_address(address[0]), address[1], plain_address(host), port))

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._loop.modify(self._listener.fileno(), 0)
            self._loop.later(PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = False
        if not self._closed:
            self._loop.modify(self._listener.fileno(), READ)

    def retire(self, done: Callable[[], None]) -> None:
        """Accept for a while yet, then close and call `done`. Nothing steers new connections here any more."""
        if self._done is None:
            self._done = done
            self._loop.later(GRACE, self._retire)

    def _retire(self) -> None:
        if self._closed:
            return
        if self.accept():
            self.close()
            if self._done is not None:
                self._done()
        else:
            self._loop.later(PAUSE, self._retire)

    def close(self) -> None:
        """Close our duplicate of the listener."""
        if not self._closed:
            self._closed = True
            self._loop.remove(self._listener.fileno())
            self._listener.close()

    def abandon(self) -> None:
        """A bug was met while accepting: go on with the next connection."""
