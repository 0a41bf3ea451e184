"""The daemon's end of a snapshot of files: the socket that its frames come from, and the child that sends them.

The child ends with its snapshot. When the socket is closed before that, the child is killed: it may hang in a file
system of the container, and would not notice.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket


class Snapshot(socket.socket):
    """A connected stream socket (AF_UNIX); takes ownership of both descriptors."""

    def __init__(self, fd: int, child: int) -> None:
        """`child` is the pidfd of the one that sends."""
        super().__init__(fileno=fd)
        self._child = child

    def close(self) -> None:
        """Close the socket, and end the child."""
        if self._child >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._child, signal.SIGKILL)
        super().close()

    def over(self) -> bool:
        """Whether the child has ended (pidfd_open(2))."""
        if self._child >= 0:
            poll = select.poll()
            poll.register(self._child, select.POLLIN)
            if not poll.poll(0):
                return False
            self.forget()
        return True

    def forget(self) -> None:
        """Close the descriptor of the child."""
        if self._child >= 0:
            os.close(self._child)
            self._child = -1
