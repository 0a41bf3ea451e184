"""A channel: the socket at the end of a stream, with the operations that the pump needs.

`SocketChannel` uses a plain non-blocking socket and the loop's `sock_*` calls, because asyncio's stream classes hide
three things that the pump needs: half-close on every kind of socket, deliberate RST, and whether a peer that finished
sending has closed both directions (`hung_up`).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from typing import Protocol

from sidestep.aio.os_reason import os_reason
from sidestep.tunnel.errors import ChannelBrokenError

READ_SIZE = 256 * 1024
"""Bytes requested by one read: the size of a tunnel frame."""
_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""A `struct linger`: on, for 0 s. Its fields are short on Windows."""


class Channel(Protocol):
    """Bytes in both directions with half-close and abort. One reader and one writer at a time.

    Cancel and await the reader and the writer before `close` or `abort`.
    """

    async def read(self) -> bytes:
        """Return the next bytes; b"" once the peer has finished. Raises ChannelBrokenError."""

    async def write(self, data: bytes) -> None:
        """Write all bytes. Raises ChannelBrokenError."""

    async def write_eof(self) -> None:
        """Finish this direction; reading continues. Raises ChannelBrokenError."""

    def hung_up(self) -> bool:
        """Whether the peer has closed both directions, so that written bytes are lost."""

    def close(self) -> None:
        """Close so that the peer sees an orderly end."""

    def abort(self) -> None:
        """Close so that the peer sees a broken connection."""


class SocketChannel:
    """A connected stream socket (TCP or AF_UNIX); takes ownership of it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """As Channel.read."""
        try:
            return await self._loop.sock_recv(self._sock, READ_SIZE)
        except OSError as error:
            raise ChannelBrokenError(os_reason(error)) from error

    async def write(self, data: bytes) -> None:
        """As Channel.write."""
        try:
            await self._loop.sock_sendall(self._sock, data)
        except OSError as error:
            raise ChannelBrokenError(os_reason(error)) from error

    async def write_eof(self) -> None:
        """As Channel.write_eof."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ChannelBrokenError(os_reason(error)) from error

    def hung_up(self) -> bool:
        """As Channel.hung_up, by POLLHUP: AF_UNIX reports it at once, TCP when both directions have ended.

        Without poll(2), as on Windows, False: what is written to such a peer is then lost without notice.
        """
        if not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(mask & select.POLLHUP for _fd, mask in poll.poll(0))

    def has_input(self) -> bool:
        """Whether a read would return: bytes, an end or an error."""
        if not hasattr(select, "poll"):
            return bool(select.select([self._sock], [], [], 0)[0])
        poll = select.poll()  # has no limit for the number of a descriptor
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """As Channel.close."""
        self._sock.close()

    def abort(self) -> None:
        """As Channel.abort: sends RST over TCP (SO_LINGER of 0 s, socket(7)).

        AF_UNIX has no RST. There, closing both directions at once marks a broken connection: the peer gets POLLHUP,
        which an orderly end does not cause.
        """
        if self._sock.fileno() >= 0 and self._sock.family in {socket.AF_INET, socket.AF_INET6}:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            except OSError:
                pass  # the connection is already gone
        self._sock.close()
