"""An HTTP/2 server between the tunnel's pump and a handler that speaks HTTP/1.1 only.

The pump uses it as a channel: it writes the bytes of the pod proxy (an HTTP/2 client) and reads those of the server.
Inside is the tunnel's HTTP/2 `Connection` with limits for this purpose, over an in-memory transport (`_OutputBuffer`);
each of its streams is a `TranslatedExchange`.

Memory: the windows bound received bodies (`LIMITS`), `send_buffer` bounds answers. A pump that does not read stops the
streams' writers, and `write` waits while the server's own frames (acknowledgements) accumulate.

HTTP/1.1 can carry neither gRPC nor extended CONNECT (RFC 8441): both are answered with an explanation. The server
announces extended CONNECT so that clients send it and receive that answer.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sidestep.laptop.translation.connection_pool import ConnectionPool
from sidestep.laptop.translation.exchange import TranslatedExchange
from sidestep.laptop.translation.fields import is_grpc
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.errors import ChannelBrokenError
from sidestep.tunnel.limits import KIB, MIB, TunnelLimits
from sidestep.tunnel.stream import Stream

_NEVER: Final = 1 << 40

LIMITS: Final = TunnelLimits(
    streams=100,
    stream_window=64 * KIB,
    stream_window_max=MIB,
    window_pool=8 * MIB,
    frame_size=16 * KIB,
    header_list=64 * KIB,
    send_buffer=256 * KIB,
    control_frames=_NEVER,
    keepalive=float(1 << 20),
    silent_intervals=_NEVER,
)
"""Limits of one client connection. `streams` also bounds the connections to the handler. The tunnel has a keepalive and
the pod proxy counts frames, so both are disabled here."""


class TranslatingChannel:
    """A `tunnel.channel.Channel`. `intercept` and `handler` are names used in error texts."""

    def __init__(self, connections: ConnectionPool, *, intercept: str, handler: str) -> None:
        self._connections = connections
        self._intercept = intercept
        self._handler = handler
        self._output = _OutputBuffer()
        self._server = Connection(serve=self._serve, limits=LIMITS)
        self._output.protocol = self._server
        self._serving = 0
        self._client_finished = False
        self._server.connection_made(self._output)

    async def read(self) -> bytes:
        """As Channel.read."""
        return await self._output.read_all()

    async def write(self, data: bytes) -> None:
        """As Channel.write."""
        if self._output.is_closing():
            raise ChannelBrokenError("the translation to HTTP/1.1 has ended")
        self._server.data_received(data)
        await self._output.wait_writable()

    async def write_eof(self) -> None:
        """As Channel.write_eof. Outstanding requests are answered, then the server ends."""
        self._client_finished = True
        self._end_if_done()

    def hung_up(self) -> bool:
        """As Channel.hung_up."""
        return self._output.is_closing()

    def close(self) -> None:
        """As Channel.close."""
        self._server.close()
        self._connections.close()

    def abort(self) -> None:
        """As Channel.abort."""
        self.close()

    async def _serve(self, stream: Stream) -> None:
        self._serving += 1
        try:
            await self._exchange(stream)
        finally:
            self._serving -= 1
            self._end_if_done()

    async def _exchange(self, stream: Stream) -> None:
        exchange = TranslatedExchange(stream, self._connections, intercept=self._intercept, handler=self._handler)
        headers = stream.headers
        if (":method", "CONNECT") in headers:
            await exchange.refuse(f"the handler at {self._handler} speaks HTTP/1.1 only: no CONNECT over HTTP/2")
        elif is_grpc(headers):
            await exchange.refuse(f"the handler at {self._handler} speaks HTTP/1.1 only, and gRPC needs HTTP/2")
        else:
            await exchange.run()

    def _end_if_done(self) -> None:
        if self._client_finished and not self._serving:
            self._server.close()


class _OutputBuffer(asyncio.Transport):
    """The server's transport: a buffer of the bytes it has written."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Connection | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._high = 0
        self._paused = False
        self._closing = False
        self._broken = False
        self._waiters: set[asyncio.Future[None]] = set()

    async def read_all(self) -> bytes:
        """Return all bytes written; b"" at the end. Raises ChannelBrokenError when the server aborted."""
        while not self._parts:
            if self._broken:
                raise ChannelBrokenError("the translation to HTTP/1.1 broke")
            if self._closing:
                return b""
            await self._change()
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._paused and self.protocol is not None:
            self._paused = False
            self.protocol.resume_writing()
        self._wake()
        return data

    async def wait_writable(self) -> None:
        """Wait while the buffer is full."""
        while self._size > self._high and not self._closing:
            await self._change()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """As asyncio.WriteTransport.write."""
        self._parts.append(bytes(data))
        self._size += len(data)
        if self._size > self._high and not self._paused and self.protocol is not None:
            self._paused = True
            self.protocol.pause_writing()
        self._wake()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As asyncio.WriteTransport.set_write_buffer_limits; `low` is 0."""
        del low
        self._high = high or 0

    def get_write_buffer_size(self) -> int:
        """As asyncio.WriteTransport.get_write_buffer_size."""
        return self._size

    def is_closing(self) -> bool:
        """As asyncio.BaseTransport.is_closing."""
        return self._closing

    def close(self) -> None:
        """As asyncio.BaseTransport.close. Buffered bytes can still be read."""
        if not self._closing:
            self._closing = True
            if self.protocol is not None:
                asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)
            self._wake()

    def abort(self) -> None:
        """As asyncio.WriteTransport.abort."""
        self._broken = True
        self._parts.clear()
        self._size = 0
        self.close()

    async def _change(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
