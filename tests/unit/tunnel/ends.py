"""Two ends of a tunnel in one event loop, and waiting for conditions in it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from sidestep.aio.time_limit import time_limit
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.limits import TunnelLimits
from sidestep.tunnel.opening import StreamOpening

LIMITS = TunnelLimits()
OPENING = StreamOpening(
    intercept="0b7c3a52-6a55-4d4f-9f6d-2f4b3c0f8a11",
    pod="shop/orders-1",
    port=8443,
    client="10.0.0.7",
    client_port=53012,
    protocol="http/1.1",
    tls=True,
    server_name="orders.shop",
)
POST = ((":method", "POST"), (":scheme", "https"), (":authority", "session"), (":path", "/"))


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in an event loop of its own, within 60 s."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        async def bounded() -> None:
            async with time_limit(60):
                await test(*arguments, **named)

        asyncio.run(bounded())

    return run


async def eventually(condition: Callable[[], Any], *, what: str, within: float = 10.0) -> None:
    """Wait until a condition is true, letting the loop run."""
    deadline = asyncio.get_running_loop().time() + within
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {within:g} s for {what}"
        await asyncio.sleep(0.005)


async def attach(sock: socket.socket, connection: Connection) -> None:
    sock.setblocking(False)
    await asyncio.get_running_loop().create_connection(lambda: connection, sock=sock)


@contextlib.asynccontextmanager
async def tunnel(
    serve: Callable[[Any], Coroutine[Any, Any, None]], *, limits: TunnelLimits = LIMITS, ours: TunnelLimits = LIMITS
) -> AsyncIterator[tuple[Connection, Connection]]:
    """(client, server) over a socketpair. `limits` are the server's, `ours` the client's."""
    left, right = socket.socketpair()
    client, server = Connection(limits=ours), Connection(serve=serve, limits=limits)
    await attach(left, client)
    await attach(right, server)
    try:
        yield client, server
    finally:
        client.close()
        server.close()
        await client.wait_closed()
        await server.wait_closed()


async def echo(stream: Any) -> None:
    """Serve a stream by sending back what comes."""
    stream.respond(200)
    while data := await stream.read():
        await stream.write(data)
    await stream.write_eof()
