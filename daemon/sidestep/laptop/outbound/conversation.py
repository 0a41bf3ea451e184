"""What a client of the proxy says before its connection is made: bounded reads that leave over what comes after.

`EarlyChannel` gives the rest to the tunnel first, so a client may send before it has been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from typing import Final

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import PeerError
from sidestep.tunnel.channel import SocketChannel

MAX_HEAD: Final = 64 * 1024
"""Bytes of the head of an HTTP request."""
PARTING: Final = 2.0
"""Seconds for which a client that has had its answer is read from."""
_READ: Final = 64 * 1024
_EMPTY_LINE: Final = re.compile(rb"\n\r?\n")
_RESET: Final = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""A `struct linger`: on, for 0 s."""


class Conversation:
    """One client's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.rest = b""
        """What was read and not used."""
        self._broken = False

    async def exactly(self, size: int) -> bytes:
        """Return so many bytes. Raises PeerError at the end."""
        while len(self.rest) < size:
            await self._more()
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    async def head(self) -> bytes:
        """Return everything to the first empty line, and it. Raises PeerError above MAX_HEAD bytes.

        Lines may end with LF alone (RFC 9112 section 2.2), as they may for h11, which reads them.
        """
        searched = 0
        while (end := _EMPTY_LINE.search(self.rest, searched)) is None:
            if len(self.rest) > MAX_HEAD:
                raise PeerError(f"the head of a request has more than {MAX_HEAD} bytes")
            searched = max(0, len(self.rest) - 2)
            await self._more()
        taken, self.rest = self.rest[: end.end()], self.rest[end.end() :]
        return taken

    async def peek(self) -> int:
        """Return the first byte, and leave it there."""
        while not self.rest:
            await self._more()
        return self.rest[0]

    async def read(self) -> bytes:
        """Return what comes next; b"" at the end."""
        taken, self.rest = self.rest, b""
        return taken or await self._receive()

    async def say(self, data: bytes) -> None:
        """Send. Raises PeerError."""
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError as error:
            raise PeerError("the client has gone") from error

    def abort(self) -> None:
        """Have the client see a reset, and no end, when its socket is closed."""
        self._broken = True
        with contextlib.suppress(OSError):  # it has gone
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def part(self) -> None:
        """End this side, and read on until the client has ended its own: the close of a socket with unread bytes is a
        reset, by which a client loses an answer that it has not read (RFC 9112 section 9.6)."""
        if self._broken or self.sock.fileno() < 0:
            return
        with contextlib.suppress(PeerError, OSError):
            self.sock.shutdown(socket.SHUT_WR)
            async with time_limit(PARTING):
                while await self._receive():
                    pass

    async def _more(self) -> None:
        data = await self._receive()
        if not data:
            raise PeerError("the client has gone")
        self.rest += data

    async def _receive(self) -> bytes:
        try:
            await asyncio.sleep(0)  # sock_recv does not yield while bytes are available
            return await asyncio.get_running_loop().sock_recv(self.sock, _READ)
        except OSError as error:
            raise PeerError("the client has gone") from error


class EarlyChannel(SocketChannel):
    """A client's socket of which some bytes have been read already. Owns it."""

    def __init__(self, said: Conversation) -> None:
        super().__init__(said.sock)
        self._said = said

    async def read(self) -> bytes:
        """As Channel.read."""
        if self._said.rest:
            early, self._said.rest = self._said.rest, b""
            return early
        return await super().read()
