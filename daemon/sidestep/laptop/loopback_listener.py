"""Listeners on 127.0.0.1 whose port may be given.

On Linux a port can be listened on again at once after its last server has closed connections first (TIME_WAIT, RFC
9293, section 3.3.2): SO_REUSEADDR. On Windows that works without it, where SO_REUSEADDR would let another process take
a port that is listened on; SO_EXCLUSIVEADDRUSE forbids this. On macOS it would let us take the port of a program that
listens on all addresses, so one waits there.
"""

from __future__ import annotations

import socket
import sys

HOST = "127.0.0.1"


def set_binding(sock: socket.socket) -> None:
    """Have a socket bind an address that nobody listens on, and none that somebody does, as far as the system can."""
    if sys.platform == "linux":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)


def listen_on_loopback(port: int, *, backlog: int) -> socket.socket:
    """Return a listening socket; port 0: any that is free. Raises OSError, when the port is taken for one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        set_binding(listener)
        listener.bind((HOST, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
