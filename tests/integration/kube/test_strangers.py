"""Connections to the tunnel's port that prove nothing do not keep out those that can."""

import asyncio
import contextlib
import ssl

from sidestep.aio.time_limit import time_limit
from sidestep.node.cluster import tunnel_server
from tests.integration.kube.cluster import Laptop, daemon, run, until


def anybody():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def crowd(port, count, *, tls):
    """Strangers that connect and wait, with or without a handshake."""
    found = []
    for _ in range(count):
        opening = asyncio.open_connection("127.0.0.1", port, ssl=anybody() if tls else None)
        with contextlib.suppress(TimeoutError, OSError):
            found.append(await asyncio.wait_for(opening, 0.5))
    return found


def beside(*, tls):
    async def test(api):
        async with daemon(api) as node:
            await until(lambda: node.cluster._tunnels.port, what="the port")
            port = node.cluster._tunnels.port
            strangers = await crowd(port, tunnel_server.MAX_UNPROVED, tls=tls)
            strangers += await crowd(port, 20, tls=False)
            laptop = Laptop(api)
            await until(lambda: laptop.ear.active == 1, what="active beside strangers")
            assert len(node.cluster._tunnels._unproved) <= tunnel_server.MAX_UNPROVED
            with contextlib.suppress(ConnectionResetError):
                async with time_limit(10):
                    while await strangers[0][0].read(65536):
                        pass  # the oldest had to go
            assert laptop.ear.active == 1
            for _, writer in strangers:
                writer.transport.abort()
            await laptop.end()

    run(test)


def test_strangers_that_never_begin_tls():
    beside(tls=False)


def test_strangers_that_never_answer_the_hello():
    beside(tls=True)
