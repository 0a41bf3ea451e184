"""The handler of a UDP intercept: one connected UDP socket per client flow, used by the pump as a channel of capsules.

Datagrams keep their boundaries. Datagrams that the handler's socket does not accept are dropped, as by a network. A
missing handler (ICMP port unreachable, reported as a refused read or write) does not end the channel, because it may
start later. The channel never ends by itself; the end of the stream closes it.
"""

from __future__ import annotations

import asyncio
import os
import socket

from sidestep.model.errors import PeerError, RefusedError
from sidestep.protocols import capsules
from sidestep.tunnel.errors import ChannelBrokenError


class DatagramChannel:
    """A connected UDP socket, which the channel owns. Implements `tunnel.channel.Channel`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = capsules.Decoder()
        self._closed = False

    @classmethod
    async def connect(cls, address: str, port: int) -> DatagramChannel:
        """Create a socket connected to the handler. Raises RefusedError when the address is unusable."""
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
            reason = (error.strerror or str(error)).lower()  # a resolver's errors have error numbers of their own
            raise RefusedError(f"the handler's address {address} cannot be used: {reason}") from error
        return cls(sock)

    async def read(self) -> bytes:
        """Return the handler's next datagram as a capsule. Raises ChannelBrokenError."""
        while True:
            try:
                return capsules.encode(await self._loop.sock_recv(self._sock, capsules.MAX_PAYLOAD))
            except ConnectionRefusedError:
                continue
            except OSError as error:
                raise ChannelBrokenError(f"the handler's socket: {os.strerror(error.errno or 0)}") from error

    async def write(self, data: bytes) -> None:
        """Send the datagrams contained in these bytes. Raises ChannelBrokenError."""
        try:
            payloads = self._decoder.feed(data)
        except PeerError as error:
            raise ChannelBrokenError(str(error)) from error
        for payload in payloads:
            try:
                self._sock.send(payload)
            except OSError:
                pass  # dropped: no room, too long for the network, or no handler yet

    async def write_eof(self) -> None:
        """Does nothing: a flow of datagrams has no end."""

    def hung_up(self) -> bool:
        """Return False: a datagram socket has no peer that closes."""
        return self._closed

    def close(self) -> None:
        """Close the socket."""
        if not self._closed:
            self._closed = True
            self._sock.close()

    def abort(self) -> None:
        """Close the socket; there is no connection to reset."""
        self.close()
