import asyncio
import os
import socket

import hyperframe.frame
import pytest
from msgspec.structs import replace

from sidestep.model.errors import BugError, PeerError
from sidestep.tunnel.connection import Connection
from sidestep.tunnel.errors import StreamResetError, TunnelClosedError
from sidestep.tunnel.stream import CANCEL, NO_ERROR
from tests.unit.tunnel.ends import LIMITS, POST, asynchronous, attach, echo, eventually, tunnel

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


async def drain(stream):
    parts = []
    while data := await stream.read():
        parts.append(data)
    return b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3_000_000])
@asynchronous
async def test_bytes_come_back_exactly(size):
    payload = os.urandom(size)
    async with tunnel(echo) as (client, _server):
        stream = client.open(POST)

        async def send():
            await stream.write(payload)
            await stream.write_eof()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            received = group.create_task(drain(stream))
        assert received.result() == payload
        assert dict(await stream.response()) == {":status": "200"}
        await eventually(lambda: client.streams == 0, what="the stream to be forgotten")


@asynchronous
async def test_no_text_is_made_of_what_is_received(monkeypatch):
    """h2 would have one of each frame, for a log that nobody keeps."""
    made = []
    monkeypatch.setattr(hyperframe.frame.DataFrame, "serialize_body", lambda frame: made.append(frame) or b"")
    assert "stream_id=1" in repr(hyperframe.frame.DataFrame(1, b"secret"))
    assert not made


@asynchronous
async def test_many_streams_at_once():
    async with tunnel(echo) as (client, server):

        async def one(number):
            stream = client.open(POST)
            payload = str(number).encode() * 1000
            await stream.write(payload)
            await stream.write_eof()
            assert await drain(stream) == payload

        await asyncio.gather(*(one(number) for number in range(200)))
        await eventually(lambda: (client.streams, server.streams) == (0, 0), what="all streams to be forgotten")


@asynchronous
async def test_each_direction_ends_by_itself():
    seen = []

    async def serve(stream):
        stream.respond(200)
        await stream.write(b"first")
        await stream.write_eof()
        seen.append(await drain(stream))

    async with tunnel(serve) as (client, _server):
        stream = client.open(POST)
        assert await drain(stream) == b"first"
        assert not stream.over
        await stream.write(b"later")
        await stream.write_eof()
        await eventually(lambda: seen == [b"later"], what="the other direction")


@asynchronous
async def test_a_reset_ends_both_directions_for_the_peer():
    broken = []

    async def serve(stream):
        broken.append((await stream.until_broken()).code)

    async with tunnel(serve) as (client, _server):
        stream = client.open(POST)
        await asyncio.sleep(0)
        stream.reset(CANCEL)
        await eventually(lambda: broken == [CANCEL], what="the reset")
        with pytest.raises(StreamResetError):
            await stream.read()
        with pytest.raises(StreamResetError):
            await stream.write(b"x")
        other = client.open(POST)
        assert not other.over


@pytest.mark.parametrize("code", [CANCEL, NO_ERROR])
@asynchronous
async def test_what_arrived_before_a_reset_is_still_read(code):
    async def serve(stream):
        stream.respond(200)
        await stream.write(b"413 too large")
        if code == NO_ERROR:
            await stream.write_eof()
        stream.reset(code)

    async with tunnel(serve) as (client, _server):
        stream = client.open(POST)
        assert (await stream.until_broken()).code == code
        assert await stream.read() == b"413 too large"
        if code == NO_ERROR:
            assert await stream.read() == b""
        else:
            with pytest.raises(StreamResetError):
                await stream.read()


@asynchronous
async def test_a_stalled_stream_stalls_nobody_else_and_is_bounded():
    """A reader that never reads holds its window; others move many times that much meanwhile."""
    stalled = asyncio.Event()
    limits = replace(LIMITS, connection_window=2**20)

    async def serve(stream):
        if dict(stream.headers)[":path"] == "/stalled":
            stream.respond(200)
            await stalled.wait()
        else:
            await echo(stream)

    async with tunnel(serve, limits=limits) as (client, _server):
        stuck = client.open((*POST[:3], (":path", "/stalled")))
        sent = 0

        async def push():
            nonlocal sent
            while True:
                await stuck.write(b"x" * 16_384)
                sent += 16_384

        pushing = asyncio.create_task(push())
        await eventually(lambda: sent >= LIMITS.stream_window - 16_384, what="the window to be filled")
        for _ in range(8):
            stream = client.open(POST)
            payload = os.urandom(1_000_000)
            sending = asyncio.create_task(stream.write(payload))
            received = bytearray()
            while len(received) < len(payload):
                received += await stream.read()
            assert received == payload
            await sending
            await stream.write_eof()
        assert sent <= LIMITS.stream_window
        pushing.cancel()
        stalled.set()


@asynchronous
async def test_one_stream_more_than_there_may_be_is_refused_at_once():
    async def serve(stream):
        await stream.until_broken()

    async with tunnel(serve, limits=replace(LIMITS, streams=3)) as (client, server):
        await eventually(lambda: client._h2.remote_settings.max_concurrent_streams == 3, what="the peer's settings")
        streams = [client.open(POST) for _ in range(3)]
        with pytest.raises(PeerError, match="3 connections"):
            client.open(POST)
        streams[0].reset()
        await eventually(lambda: server.streams == 2, what="room")
        client.open(POST)


@asynchronous
async def test_the_end_of_the_tunnel_fails_every_stream():
    async with tunnel(echo) as (client, server):
        stream = client.open(POST)
        reading = asyncio.create_task(stream.read())
        await eventually(lambda: server.streams == 1, what="the stream")
        server.close()
        with pytest.raises(TunnelClosedError):
            await reading
        assert await client.wait_closed() is None
        with pytest.raises(TunnelClosedError):
            client.open(POST)
        with pytest.raises(TunnelClosedError):
            await stream.write(b"x")


@asynchronous
async def test_a_peer_that_falls_silent_breaks_the_tunnel():
    quick = replace(LIMITS, keepalive=0.02)
    left, right = socket.socketpair()
    with right:
        client = Connection(limits=quick)
        await attach(left, client)
        error = await client.wait_closed()
        assert isinstance(error, TunnelClosedError)
        assert "silent" in str(error)


@asynchronous
async def test_an_idle_tunnel_stays():
    quick = replace(LIMITS, keepalive=0.02)
    async with tunnel(echo, limits=quick, ours=quick) as (client, _server):
        await asyncio.sleep(20 * quick.keepalive)
        assert not client.closed.done()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + b"\4\0\1\0\0\0\0\0\1" + bytes(2**18 + 1),  # a frame that is too large
        PREFACE + SETTINGS + b"\0\0\1\0\0\0\0\0\1x",  # DATA on a stream never opened
        PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",  # WINDOW_UPDATE by 0
        PREFACE + SETTINGS + b"\0\0\3\1\4\0\0\0\1\xff\xff\xff",  # HPACK that is none
        PREFACE + SETTINGS + b"\0\0\5\5\4\0\0\0\1\0\0\0\2\x82",  # PUSH_PROMISE of a client
        PREFACE + SETTINGS + b"\0\0\0\1\0\0\0\0\1" + b"\0\0\0\x09\0\0\0\0\1" * 100,  # CONTINUATION without end
    ],
)
@asynchronous
async def test_garbage_ends_the_tunnel_and_nothing_else(garbage):
    left, right = socket.socketpair()
    with right:
        server = Connection(serve=echo)
        await attach(left, server)
        right.setblocking(False)
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(right, garbage))
        error = await server.wait_closed()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert isinstance(error, PeerError)


@asynchronous
async def test_a_request_to_a_client_ends_the_tunnel():
    left, right = socket.socketpair()
    with right:
        client = Connection()
        await attach(left, client)
        right.setblocking(False)
        head = b"\x82\x86\x84\x41\x01a"
        await asyncio.get_running_loop().sock_sendall(right, SETTINGS + b"\0\0\6\1\5\0\0\0\2" + head)
        assert isinstance(await client.wait_closed(), PeerError)


@asynchronous
async def test_a_flood_of_pings_ends_the_tunnel():
    left, right = socket.socketpair()
    right.setblocking(False)
    loop = asyncio.get_running_loop()
    with right:
        server = Connection(serve=echo, limits=replace(LIMITS, control_frames=500, keepalive=5))
        await attach(left, server)
        ping = b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8
        await loop.sock_sendall(right, PREFACE + SETTINGS + ping * 600)
        error = await server.wait_closed()
        assert isinstance(error, PeerError)
        assert "flood" in str(error)


@asynchronous
async def test_a_peer_that_does_not_read_its_answers_is_cut():
    left, right = socket.socketpair()
    right.setblocking(False)
    loop = asyncio.get_running_loop()
    with right:
        limits = replace(LIMITS, send_buffer_hard=100_000, control_frames=10**9)
        server = Connection(serve=echo, limits=limits)
        await attach(left, server)
        ping = b"\0\0\x08\6\0\0\0\0\0" + b"x" * 8
        sending = asyncio.create_task(loop.sock_sendall(right, PREFACE + SETTINGS + ping * 100_000))
        error = await server.wait_closed()
        assert isinstance(error, PeerError)
        assert "does not read" in str(error)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


@asynchronous
async def test_a_huge_header_table_of_the_peer_is_not_used():
    async with tunnel(echo) as (client, server):
        server._h2.update_settings({1: 2**32 - 1})
        server._flush()
        await eventually(lambda: client._h2.remote_settings.header_table_size == 2**32 - 1, what="the settings")
        assert client._h2.encoder.header_table_size == LIMITS.header_table
        stream = client.open(POST)
        await stream.write(b"x")
        assert await stream.read() == b"x"


@asynchronous
async def test_writing_after_the_end_is_a_bug():
    async with tunnel(echo) as (client, _server):
        stream = client.open(POST)
        await stream.write_eof()
        with pytest.raises(BugError):
            await stream.write(b"x")


@asynchronous
async def test_a_bug_in_serving_ends_the_tunnel_and_is_named():
    async def serve(_stream):
        raise ZeroDivisionError("oops")

    async with tunnel(serve) as (client, server):
        client.open(POST)
        error = await server.wait_closed()
        assert isinstance(error, BugError)
        assert isinstance(error.__cause__, ZeroDivisionError)
        assert await client.wait_closed() is not None


@asynchronous
async def test_a_refusal_in_serving_resets_that_stream_only():
    async def serve(stream):
        if dict(stream.headers)[":path"] == "/bad":
            raise PeerError("no")
        await echo(stream)

    async with tunnel(serve) as (client, _server):
        bad = client.open((*POST[:3], (":path", "/bad")))
        assert (await bad.until_broken()).code == 2
        good = client.open(POST)
        await good.write(b"x")
        assert await good.read() == b"x"


@asynchronous
async def test_padding_is_credited():
    """A peer that pads is charged for it; the window comes back although nobody reads padding."""
    received = []

    async def serve(stream):
        stream.respond(200)
        while data := await stream.read():
            received.append(data)

    async with tunnel(serve) as (client, _server):
        stream = client.open(POST)
        for _ in range(2000):
            await eventually(lambda: client.send_window(stream.id) >= 300, what="window")
            client._h2.send_data(stream.id, b"x", pad_length=255)
            client._flush()
        await stream.write_eof()
        await eventually(lambda: len(b"".join(received)) == 2000, what="all of it")
