import asyncio
import contextlib
import errno
import os
import select
import socket
import struct

import pytest

from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.errors import StreamResetError
from sidestep.tunnel.pump import pump
from sidestep.tunnel.stream import CANCEL, NO_ERROR
from tests.unit.tunnel.ends import POST, asynchronous, eventually, tunnel


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


def pairs():
    return pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair], ids=["unix", "tcp"])


def readable(sock):
    return bool(select.select([sock], [], [], 0)[0])


class Far:
    """The far end of a pumped channel, non-blocking."""

    def __init__(self, sock):
        self.sock = sock
        sock.setblocking(False)
        self.loop = asyncio.get_running_loop()

    async def recv(self, size=65536):
        return await self.loop.sock_recv(self.sock, size)

    async def send(self, data):
        await self.loop.sock_sendall(self.sock, data)

    async def drain(self):
        parts = []
        while data := await self.recv():
            parts.append(data)
        return b"".join(parts)


class PumpedPair:
    """A tunnel whose server end is pumped to one end of a socket pair; `stream` and `far` are the two free ends."""

    def __init__(self, pair):
        near, far = pair()
        self._near = near
        self.far = Far(far)
        self.finished = asyncio.Event()
        self._context = tunnel(self._serve)

    async def _serve(self, stream):
        stream.respond(200)
        await pump(stream, SocketChannel(self._near))
        self.finished.set()

    async def __aenter__(self):
        self.client, _server = await self._context.__aenter__()
        self.stream = self.client.open(POST)
        return self

    async def __aexit__(self, *error):
        self.far.sock.close()
        await self._context.__aexit__(*error)


@pairs()
@asynchronous
async def test_bytes_both_ways(pair):
    up, down = os.urandom(2_000_000), os.urandom(2_000_000)
    async with PumpedPair(pair) as ends:

        async def write_up():
            await ends.stream.write(up)
            await ends.stream.write_eof()

        async def write_down():
            await ends.far.send(down)
            ends.far.sock.shutdown(socket.SHUT_WR)

        async def read_down():
            parts = []
            while data := await ends.stream.read():
                parts.append(data)
            return b"".join(parts)

        results = await asyncio.gather(write_up(), write_down(), ends.far.drain(), read_down())
        assert results[2] == up
        assert results[3] == down
        await asyncio.wait_for(ends.finished.wait(), 5)


@pairs()
@asynchronous
async def test_the_stream_finishes_first(pair):
    async with PumpedPair(pair) as ends:
        await ends.stream.write(b"request")
        await ends.stream.write_eof()
        assert await ends.far.drain() == b"request"
        await ends.far.send(b"answer")
        ends.far.sock.close()
        assert await ends.stream.read() == b"answer"
        assert await ends.stream.read() == b""
        await asyncio.wait_for(ends.finished.wait(), 5)


@pairs()
@asynchronous
async def test_the_channel_finishes_first(pair):
    async with PumpedPair(pair) as ends:
        await ends.far.send(b"hello")
        ends.far.sock.shutdown(socket.SHUT_WR)
        assert await ends.stream.read() == b"hello"
        assert await ends.stream.read() == b""
        await ends.stream.write(b"later")
        await ends.stream.write_eof()
        assert await ends.far.drain() == b"later"
        await asyncio.wait_for(ends.finished.wait(), 5)


@asynchronous
async def test_a_reset_stream_is_a_tcp_reset():
    async with PumpedPair(tcp_pair) as ends:
        await ends.stream.write(b"x")
        assert await ends.far.recv(1) == b"x"
        ends.stream.reset(CANCEL)
        with pytest.raises(ConnectionResetError):
            await ends.far.recv()


@asynchronous
async def test_a_reset_stream_closes_both_directions_of_a_unix_socket():
    async with PumpedPair(socket.socketpair) as ends:
        await ends.stream.write(b"x")
        assert await ends.far.recv(1) == b"x"
        ends.stream.reset(CANCEL)
        assert await ends.far.recv() == b""
        with pytest.raises(BrokenPipeError):
            await ends.far.send(b"x")


@asynchronous
async def test_a_tcp_reset_is_a_reset_stream():
    async with PumpedPair(tcp_pair) as ends:
        await ends.stream.write(b"x")
        assert await ends.far.recv(1) == b"x"
        ends.far.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.far.sock.close()
        with pytest.raises(StreamResetError) as caught:
            await ends.stream.read()
        assert caught.value.code == CANCEL


@asynchronous
async def test_an_answer_before_a_tcp_reset_arrives():
    """A handler answers early and closes with the request's body unread: the kernel resets, after the answer."""
    async with PumpedPair(tcp_pair) as ends:
        await ends.stream.write(b"a body that nobody reads")
        await eventually(lambda: readable(ends.far.sock), what="the body")
        await ends.far.send(b"413")
        ends.far.sock.close()
        assert await ends.stream.read() == b"413"


@pairs()
@asynchronous
async def test_an_answer_before_the_end_of_an_upload_arrives(pair):
    """The same while the request is still being written, so that writing fails before the answer is read."""
    async with PumpedPair(pair) as ends:

        async def upload():
            while True:
                await ends.stream.write(b"x" * 65536)

        uploading = asyncio.create_task(upload())
        await eventually(lambda: readable(ends.far.sock), what="the body")
        await ends.far.send(b"413" * 1000)
        ends.far.sock.close()
        received = b""
        with contextlib.suppress(StreamResetError):
            while data := await ends.stream.read():
                received += data
        assert received == b"413" * 1000
        await asyncio.wait_for(ends.finished.wait(), 5)
        await asyncio.gather(uploading, return_exceptions=True)


@asynchronous
async def test_closing_a_unix_socket_whole_is_an_orderly_end():
    async with PumpedPair(socket.socketpair) as ends:
        await ends.far.send(b"last words")
        ends.far.sock.close()
        assert await ends.stream.read() == b"last words"
        assert await ends.stream.read() == b""
        assert (await ends.stream.until_broken()).code == NO_ERROR
        await asyncio.wait_for(ends.finished.wait(), 5)


@asynchronous
async def test_an_orderly_end_after_the_other_direction_finished_is_seen():
    """The client has half-closed and then goes away: whoever still computes an answer is told."""
    async with PumpedPair(socket.socketpair) as ends:
        await ends.stream.write_eof()
        assert await ends.far.recv() == b""
        ends.stream.reset(NO_ERROR)
        await asyncio.wait_for(ends.finished.wait(), 5)
        with pytest.raises(BrokenPipeError):
            await ends.far.send(b"x")


@asynchronous
async def test_a_channel_that_is_not_read_blocks_the_writer():
    async with PumpedPair(socket.socketpair) as ends:
        sent = 0

        async def push():
            nonlocal sent
            while True:
                await ends.stream.write(b"x" * 65536)
                sent += 65536

        pushing = asyncio.create_task(push())
        previous = -1
        while sent != previous:
            previous = sent
            await asyncio.sleep(0.2)
        assert sent < 4 * 2**20
        received = 0
        while received < 8 * 2**20:
            received += len(await ends.far.recv())
        assert sent > previous
        pushing.cancel()


@asynchronous
async def test_the_end_of_the_tunnel_delivers_and_then_closes():
    async with PumpedPair(socket.socketpair) as ends:
        await ends.stream.write(b"on its way")
        assert await ends.far.recv() == b"on its way"
        ends.client.close()
        assert await ends.far.recv() == b""
        with pytest.raises(OSError, match=os.strerror(errno.EPIPE)):
            await ends.far.send(b"x")
