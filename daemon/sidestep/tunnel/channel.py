"""The other end of a stream: a socket, as the pump wants to see it.

`SocketChannel` works on a plain non-blocking socket through the loop's `sock_*` calls, because the pump needs what
asyncio's stream classes hide: half-close on every kind of socket, RST on purpose, and whether a peer that finished has
closed both directions (`hung_up`).
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from typing import Protocol

from sidestep.tunnel.errors import ChannelBrokenError

READ_SIZE = 256 * 1024
"""Bytes asked for in one read; a frame of the tunnel."""


class Channel(Protocol):
    """Bytes both ways with half-close and abort. One reader and one writer at a time.

    Cancel and await whoever reads or writes before `close` or `abort`.
    """

    async def read(self) -> bytes:
        """Return the next bytes, b"" once the peer finished. Raises ChannelBrokenError."""

    async def write(self, data: bytes) -> None:
        """Write all of it. Raises ChannelBrokenError."""

    async def write_eof(self) -> None:
        """Finish this direction; reading goes on. Raises ChannelBrokenError."""

    def hung_up(self) -> bool:
        """Whether the peer has closed both directions, so that nobody will read what is written."""

    def close(self) -> None:
        """Close in an orderly way."""

    def abort(self) -> None:
        """Close so that the peer sees a broken connection, not a finished one."""


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
            raise ChannelBrokenError(_reason(error)) from error

    async def write(self, data: bytes) -> None:
        """As Channel.write."""
        try:
            await self._loop.sock_sendall(self._sock, data)
        except OSError as error:
            raise ChannelBrokenError(_reason(error)) from error

    async def write_eof(self) -> None:
        """As Channel.write_eof."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ChannelBrokenError(_reason(error)) from error

    def hung_up(self) -> bool:
        """As Channel.hung_up: POLLHUP, which AF_UNIX raises at once and TCP when both directions have ended."""
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(mask & select.POLLHUP for _fd, mask in poll.poll(0))

    def has_input(self) -> bool:
        """Whether there is anything to read: bytes, an end, an error."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """As Channel.close."""
        self._sock.close()

    def abort(self) -> None:
        """As Channel.abort: RST over TCP (SO_LINGER of 0 s, socket(7)).

        AF_UNIX knows no RST: closing both directions at once is the sign, POLLHUP where a finished peer gives none.
        """
        if self._sock.fileno() >= 0 and self._sock.family != socket.AF_UNIX:
            try:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass  # the connection is gone already
        self._sock.close()


def _reason(error: OSError) -> str:
    return os.strerror(error.errno or 0).lower()
