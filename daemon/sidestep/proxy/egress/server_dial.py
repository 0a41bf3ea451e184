"""One connection attempt to the server that the pod wanted, from inside the pod's network namespace.

The source address is the one that the pod's routes give, as the pod's own process would have had it. The programs that
steer the pod's connections do not run for this process, because it is in a cgroup of Sidestep's.

The kernel decides how long an attempt lasts, as it does for the pod (tcp(7), tcp_syn_retries). The client may give up
before: `cancel`.
"""

from __future__ import annotations

import errno
import socket

from sidestep.proxy.connection.dial import Done
from sidestep.proxy.io.loop import WRITE, Loop


class ServerDial:
    """One attempt. Calls `done(sock, None)` or `done(None, error)` once, on a later turn, unless cancelled before."""

    __slots__ = ("_done", "_loop", "_sock")

    def __init__(self, loop: Loop, host: str, port: int, done: Done) -> None:
        self._loop = loop
        self._done: Done | None = done
        self._sock: socket.socket | None = None
        try:
            self._begin(host, port)
        except OSError as error:
            self._fail(error)

    def _begin(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        result = sock.connect_ex((host, port))
        if result not in (0, errno.EINPROGRESS):
            raise OSError(result, "connect")
        self._loop.add(sock.fileno(), self._ready, WRITE)

    def _ready(self, mask: int) -> None:
        del mask
        sock = self._sock
        if sock is None:
            return
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._sock = None
        self._loop.remove(sock.fileno())
        if error:
            sock.close()
            self._tell(None, OSError(error, "connect"))
        else:
            self._tell(sock, None)

    def _fail(self, error: OSError) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        self._loop.later(0.0, lambda: self._tell(None, error))

    def _tell(self, sock: socket.socket | None, error: OSError | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(sock, error)

    def cancel(self) -> None:
        """Give up. `done` is not called afterwards."""
        self._done = None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove(sock.fileno())
            sock.close()
