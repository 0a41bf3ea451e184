"""Accepts connections on the listener of a steered port.

The daemon owns the listener and keeps a duplicate: closing ours does not close the port, and the accept queue outlives
this process. `retire` accepts for at least GRACE seconds more and until the queue is empty, and then closes: closing at
once reset 34 of 40 concurrent clients. A connection that was made to another port is closed: the listener is bound to
loopback, where anything inside the pod can reach it directly. Where connections to any port are accepted, their taker
checks that.

Several processes of a pod proxy may share one listener. A new connection then wakes one of them that waits
(EPOLLEXCLUSIVE): the first in the kernel's list, which would be the same one as long as it is idle. So whoever was
woken goes to the end of the list, and takes few connections at once (SHARED_BURST): others are there. A
connection whose process was woken, and ended before it accepted, wakes nobody else: `accept` is to be called regularly.

Errors of accept(2) are of three kinds. Those in ONE_CONNECTION concern a connection that broke before it was accepted,
and the next one is accepted. EMFILE and its like say that there is no descriptor. Any other says that the listener
fails each time (EINVAL: it was shut down). For the last two kinds, and when a whole burst meets broken connections
only, the owner is told and the next try follows after a pause that doubles up to LAST_PAUSE: a listener that cannot be
accepted from costs nothing.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final

from sidestep.proxy.connection.dial import plain_address
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.io.loop import EXCLUSIVE, READ, Loop

BURST: Final = 64
"""Connections accepted per event before other descriptors get a turn."""
SHARED_BURST: Final = 1
"""The same where others accept from the same queue: a handshake takes longer than they need to wake."""
GRACE: Final = 1.0
"""Seconds a retired listener is accepted on at least."""
PAUSE: Final = 0.1
LAST_PAUSE: Final = 2.0
"""Seconds to wait when there is no room (always the first) or accepting failed (doubling up to the last)."""

ONE_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)
"""Errors of the connection that would have been accepted. EOPNOTSUPP, which accept(2) lists with them, is what a socket
that does not listen answers."""


class Acceptor:
    """One listener, for connections that were made to `port`; None: to any.

    `accepted(sock, endpoints)` is called for each connection, with a non-blocking socket. While `has_room()` is False
    nothing is accepted. `outcome(error)` is called with an errno when accepting fails for another reason than one
    connection, and with 0 when it works again. `is_shared()` tells whether other processes accept from the same queue.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        port: int | None,
        *,
        accepted: Callable[[socket.socket, Endpoints], None],
        has_room: Callable[[], bool],
        outcome: Callable[[int], None],
        is_shared: Callable[[], bool] = bool,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._port = port
        self._accepted = accepted
        self._has_room = has_room
        self._outcome = outcome
        self._is_shared = is_shared
        self._failures = 0
        self._paused = False
        self._closed = False
        self._until = 0.0
        self._done: Callable[[], None] | None = None
        listener.setblocking(False)
        # Accepted sockets inherit both (tcp(7), socket(7)): two system calls fewer for each.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._watch()

    def _watch(self) -> None:
        self._loop.add(self._listener.fileno(), self._ready, READ | EXCLUSIVE)

    def _ready(self, mask: int) -> None:
        del mask
        is_shared = self._is_shared()
        self.accept(SHARED_BURST if is_shared else None)
        if is_shared and not self._paused and not self._closed:
            self._loop.remove(self._listener.fileno())
            self._watch()

    def accept(self, most: int | None = None) -> bool:
        """Accept up to `most` connections (None: BURST); return whether the queue is empty."""
        if self._paused and self._done is None:
            return False
        error = 0
        for _ in range(BURST if most is None else most):
            if self._closed:
                return True
            if not self._has_room():
                self._pause(PAUSE)
                return False
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                self._succeeded()
                return True
            except OSError as failure:
                error = failure.errno or errno.EIO
                if error not in ONE_CONNECTION:
                    break
                continue
            error = 0
            self._succeeded()
            self._admit(sock, address)
        if error:
            self._failed(error)
        return False

    def _succeeded(self) -> None:
        if self._failures:
            self._failures = 0
            self._outcome(0)

    def _failed(self, error: int) -> None:
        self._failures += 1
        self._pause(min(PAUSE * 2.0 ** min(self._failures - 1, 10), LAST_PAUSE))
        self._outcome(error)

    def _admit(self, sock: socket.socket, address: tuple[str, int]) -> None:
        try:
            host, port = sock.getsockname()[:2]
            sock.setblocking(False)
        except OSError:
            sock.close()
            return
        if self._port is not None and port != self._port:
            sock.close()
            return
        self._accepted(sock, Endpoints(plain_address(address[0]), address[1], plain_address(host), port))

    def _pause(self, seconds: float) -> None:
        if not self._paused:
            self._paused = True
            # Not with an empty mask: epoll reports a hang-up, as of a dead listener, all the same.
            self._loop.remove(self._listener.fileno())
            self._loop.later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = False
        if not self._closed:
            self._watch()
            if self._failures:
                self.accept()

    def retire(self, done: Callable[[], None]) -> None:
        """Accept for a while, then close and call `done`. The port is not steered to this listener any more.

        It also closes when accepting fails, or there is no room for another GRACE: the kernel then resets who is in the
        queue when the last duplicate is closed, so that no client waits in vain.
        """
        if self._done is None:
            self._done = done
            self._until = self._loop.now + 2 * GRACE
            self._loop.later(GRACE, self._retire)

    def _retire(self) -> None:
        if self._closed:
            return
        stuck = self._loop.now > self._until and not self._has_room()
        if self.accept() or self._failures or stuck:
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
        """Do nothing: an error of ours in `accepted` concerns one connection, and the next one is accepted."""
