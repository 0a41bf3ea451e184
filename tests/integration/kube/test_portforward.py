"""A port-forward between a fast and a slow end: what waits is bounded, and everything arrives."""

import asyncio
import contextlib
import gc
import ssl
import tracemalloc

import pytest

from sidestep.aio.client_tls import default_client_context
from sidestep.aio.time_limit import time_limit
from sidestep.kube.access import ClusterAccess
from sidestep.kube.api import Api
from sidestep.kube.portforward import PortForward
from tests.harness.authority import Authority
from tests.unit.kube.test_portforward import PORTS, served

TOTAL = 200 * 1024 * 1024
PART = 32 * 1024
HELD = 12 * 1024 * 1024
"""Bytes that kernel buffers may hold beside ours: those of two TCP sockets, and of a socketpair."""
GROWN = 8 * 1024 * 1024
"""Bytes by which the memory of this process may grow meanwhile; that of the peer is in it."""
FRAME = served(2, b"\0" + b"x" * PART)


@pytest.fixture(scope="module", params=[False, True], ids=["clear", "TLS"])
def tls(request, tmp_path_factory):
    """(server's context, client's context), or None for both."""
    if not request.param:
        return None, None
    folder = Authority().issue("api", ips=["127.0.0.1"]).write(tmp_path_factory.mktemp("tls"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return server, default_client_context(cafile=folder / "ca.crt")


@contextlib.asynccontextmanager
async def forward(tls, behaviour):
    """A port-forward to a server that behaves so once it has switched; the peer is in this process."""

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.write(switched(head) + PORTS)
        try:
            await behaviour(reader, writer)
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls[0])
    client = Api(ClusterAccess("127.0.0.1", server.sockets[0].getsockname()[1], tls[1]))
    opened = await PortForward.open(client, namespace="a", pod="b", port=80)
    try:
        yield opened
    finally:
        await opened.aclose()
        opened.socket.close()
        await client.aclose()
        server.close()
        await asyncio.sleep(0.05)


def switched(head):
    import base64
    import hashlib

    key = next(line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key")).split(": ")[1]
    accept = base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    return (
        f"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    ).encode()


async def stalled(count):
    """Wait until a number has not changed for half a second."""
    loop = asyncio.get_running_loop()
    last, since = count(), loop.time()
    while loop.time() - since < 0.5:
        await asyncio.sleep(0.05)
        if count() != last:
            last, since = count(), loop.time()
    return last


def bounded(test):
    async def body():
        gc.collect()
        tracemalloc.start()
        try:
            async with time_limit(100):
                await test()
            assert tracemalloc.get_traced_memory()[1] < GROWN
        finally:
            tracemalloc.stop()

    asyncio.run(body())


def test_a_developer_who_does_not_read_holds_up_the_pod(tls):
    written = [0]

    async def pod(_reader, writer):
        while written[0] < TOTAL:
            writer.write(FRAME)
            written[0] += PART
            await writer.drain()

    async def test():
        async with forward(tls, pod) as opened:
            assert await stalled(lambda: written[0]) < HELD
            loop, got = asyncio.get_running_loop(), 0
            while got < TOTAL and (data := await loop.sock_recv(opened.socket, 64 * 1024)):
                assert not data.strip(b"x")
                got += len(data)
                assert written[0] - got < HELD
            assert got == TOTAL

    bounded(test)


def test_a_pod_that_does_not_read_holds_up_the_developer(tls):
    let, read = asyncio.Event(), [0]

    async def pod(reader, _writer):
        await let.wait()
        while data := await reader.read(64 * 1024):
            read[0] += len(data)

    async def test():
        async with forward(tls, pod) as opened:
            loop, sent = asyncio.get_running_loop(), [0]

            async def send():
                part = b"y" * PART
                while sent[0] < TOTAL:
                    await loop.sock_sendall(opened.socket, part)
                    sent[0] += PART

            sending = asyncio.create_task(send())
            assert await stalled(lambda: sent[0]) < HELD
            let.set()
            await sending
            while read[0] < TOTAL:  # noqa: ASYNC110 - framed, the peer has read more in the end
                await asyncio.sleep(0.01)

    bounded(test)
