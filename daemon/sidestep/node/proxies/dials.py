"""Connections that a pod's proxy is asked to make for sessions with access to the pod.

    asked --Dialed--> made: the caller has the socket
      |-----Dialed with a reason--> RefusedError
      |-----the process ends------> RefusedError
      `-----the caller gives up---> the sockets are closed, which the proxy sees

What a proxy says is untrusted: an answer counts if it is about a connection that this very process was asked for, and
the first one only. It can lie about these, which are all of its own pod, and begin none.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

import msgspec

from sidestep.model.errors import RefusedError
from sidestep.model.text import harmless
from sidestep.proxy.control.messages import MAX_DIAL_ERROR, Dial, Message


class Asked(Protocol):
    """The process that is asked."""

    async def tell(self, message: Message, fd: int | None = None, *, doing: str) -> None:
        """Send a message and wait until it has been carried out. Raises SidestepError."""


class Dialled(msgspec.Struct, frozen=True):
    """A connection that was made: the daemon's end, and where it leads, as the proxy says."""

    sock: socket.socket
    address: str


class Dials:
    """Of one pod, across restarts of its proxy."""

    def __init__(self) -> None:
        self._last = 0
        self._waiting: dict[int, tuple[Asked, asyncio.Future[str]]] = {}

    async def make(self, process: Asked, dial: Dial) -> Dialled:
        """Have a process make a connection; returns the daemon's end. Raises RefusedError, SidestepError."""
        self._last += 1
        stream = self._last
        answered: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[stream] = process, answered
        try:
            try:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            except OSError as error:
                raise RefusedError(f"the node daemon cannot hold another connection: {error.strerror}") from error
            try:
                with theirs:
                    message = msgspec.structs.replace(dial, stream=stream)
                    await process.tell(message, theirs.fileno(), doing=f"connect to {harmless(dial.host)}")
                address = await answered
            except BaseException:
                ours.close()
                raise
        finally:
            del self._waiting[stream]
        return Dialled(ours, address)

    def answered(self, process: Asked, stream: int, error: str, address: str = "") -> None:
        """Take a `Dialed`."""
        asked, answered = self._waiting.get(stream, (None, None))
        if answered is None or asked is not process or answered.done():
            return
        if error:
            answered.set_exception(RefusedError(harmless(error, MAX_DIAL_ERROR)))
        else:
            answered.set_result(harmless(address))

    def process_ended(self, process: Asked) -> None:
        """A process is gone, and its connections with it."""
        for asked, answered in self._waiting.values():
            if asked is process and not answered.done():
                answered.set_exception(RefusedError("the pod's proxy has ended meanwhile"))
                answered.exception()  # retrieved: its caller may have given up
