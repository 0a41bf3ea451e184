import asyncio
import os
import socket
import ssl

import pytest

from sidestep.laptop.channels.tls_channel import TlsChannel
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError
from tests.harness.authority import Authority
from tests.unit.laptop.peers import server_context, serving
from tests.unit.tunnel.ends import asynchronous


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return server_context(Authority().issue("localhost"), tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def version(request, context):
    context.minimum_version = context.maximum_version = request.param


async def connect(port):
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    channel = SocketChannel(socket.create_connection(("127.0.0.1", port)))
    try:
        return await TlsChannel.connect(channel, client, "localhost")
    except BaseException:
        channel.abort()
        raise


async def drain(channel):
    parts = []
    while data := await channel.read():
        parts.append(data)
    return b"".join(parts)


def receive(connection):
    parts = []
    while data := connection.recv(65536):
        parts.append(data)
    return b"".join(parts)


@pytest.mark.usefixtures("version")
def test_bytes_both_ways(context):
    up, down = os.urandom(3_000_000), os.urandom(3_000_000)
    received = []

    def serve(connection):
        received.append(connection.recv(10))
        connection.sendall(down)
        while len(b"".join(received)) < len(up):
            received.append(connection.recv(65536))
        connection.unwrap()

    @asynchronous
    async def run():
        with serving(serve, context) as server:
            channel = await connect(server.port)
            _, got = await asyncio.gather(channel.write(up), drain(channel))
            channel.close()
            assert got == down
        assert b"".join(received) == up

    run()


@pytest.mark.usefixtures("version")
def test_half_close_lets_the_answer_come(context):
    """close_notify goes out while answers, also those already on their way, are still read."""
    answer = os.urandom(500_000)

    def serve(connection):
        connection.sendall(b"early ")
        request = receive(connection)
        # the socket module answers a close_notify by closing; the TLS layer below still sends
        connection.sendall(request + answer)

    @asynchronous
    async def run():
        with serving(serve, context) as server:
            channel = await connect(server.port)
            await channel.write(b"request ")
            await channel.write_eof()
            await channel.write_eof()
            assert await drain(channel) == b"early request " + answer
            channel.close()

    run()


@pytest.mark.usefixtures("version")
def test_a_close_without_close_notify_is_an_end(context):
    def serve(connection):
        connection.recv(1)
        connection.sendall(b"bye")

    @asynchronous
    async def run():
        with serving(serve, context) as server:
            channel = await connect(server.port)
            await channel.write(b"x")
            assert await drain(channel) == b"bye"
            channel.close()

    run()


def test_garbage_after_the_handshake_breaks_the_channel(context):
    def serve(connection):
        raw = socket.socket(fileno=os.dup(connection.fileno()))
        with raw:
            raw.sendall(b"this is no TLS record, and it is long enough for a header")
        connection.recv(1)

    @asynchronous
    async def run():
        with serving(serve, context) as server:
            channel = await connect(server.port)
            with pytest.raises(ChannelBrokenError):
                await drain(channel)
            channel.abort()

    run()


def test_a_reset_breaks_the_channel(context):
    def serve(connection):
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    @asynchronous
    async def run():
        with serving(serve, context) as server:
            channel = await connect(server.port)
            await channel.write(b"xy")
            with pytest.raises(ChannelBrokenError):
                await drain(channel)
            channel.abort()

    run()


def test_a_handler_that_hangs_up_in_the_handshake(context):
    def serve(connection):
        connection.recv(1)

    @asynchronous
    async def run():
        with serving(serve) as server, pytest.raises((ChannelBrokenError, ssl.SSLError)):
            await connect(server.port)

    run()
