"""The handler of a UDP intercept: one connected UDP socket per client flow, seen by the pump as a channel of capsules.

Datagrams keep their boundaries; what the handler's socket does not take is dropped, as a network would. A handler that
is not there (ICMP port unreachable, seen as a refused read or write) ends nothing: it may come yet. The channel never
finishes by itself; the stream's end closes it.
"""

from __future__ import annotations

import asyncio
import os
import socket

from sidestep.model.errors import PeerError, RefusedError
from sidestep.protocols import capsules
from sidestep.tunnel.errors import ChannelBrokenError


class DatagramChannel:
    """A connected UDP socket; takes ownership of it. Implements `tunnel.channel.Channel`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = capsules.Decoder()
        self._closed = False

    @classmethod
    async def connect(cls, address: str, port: int) -> DatagramChannel:
        """A socket towards the handler. Raises RefusedError when the address cannot be used."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(address, port, type=socket.SOCK_DGRAM)
            family, kind, protocol, _, target = found[0]
            sock = socket.socket(family, kind, protocol)
            try:
                sock.connect(target)
            except OSError:
                sock.close()
                raise
        except OSError as error:
            reason = (error.strerror or str(error)).lower()  # a resolver's errors have numbers of their own
            raise RefusedError(f"the handler's address {address} cannot be used: {reason}") from error
        return cls(sock)

    async def read(self) -> bytes:
        """The handler's next datagram as a capsule."""
        while True:
            try:
                return capsules.encode(await self._loop.sock_recv(self._sock, capsules.MAX_PAYLOAD))
            except ConnectionRefusedError:
                continue
            except OSError as error:
                raise ChannelBrokenError(f"the handler's socket: {os.strerror(error.errno or 0)}") from error

    async def write(self, data: bytes) -> None:
        """Send the datagrams of these bytes."""
        try:
            payloads = self._decoder.feed(data)
        except PeerError as error:
            raise ChannelBrokenError(str(error)) from error
        for payload in payloads:
            try:
                self._sock.send(payload)
            except OSError:
                pass  # dropped: no room, too long for the handler's network, or nobody there yet

    async def write_eof(self) -> None:
        """Datagrams have no end."""

    def hung_up(self) -> bool:
        """A datagram socket has no other end that closes."""
        return self._closed

    def close(self) -> None:
        """Close."""
        if not self._closed:
            self._closed = True
            self._sock.close()

    def abort(self) -> None:
        """Close; there is nothing to reset."""
        self.close()
