"""What all tunnels of a node may hold unread, and what a peer may do before it has proved anything."""

import asyncio
import contextlib
import socket
import struct
import sys

import pytest

from sidestep.tunnel.connection import Connection
from sidestep.tunnel.errors import StreamResetError
from sidestep.tunnel.limits import TunnelLimits
from sidestep.tunnel.stream import ENHANCE_YOUR_CALM
from sidestep.tunnel.unread_budget import UnreadBudget
from tests.unit.tunnel.ends import LIMITS, POST, asynchronous, attach, eventually

KIB = 1024
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
PING = b"\0\0\x08\6\0\0\0\0\0" + bytes(8)


async def pour(stream):
    """Serve a stream with as much as its first header says, in kilobytes."""
    stream.respond(200)
    size = int(dict(stream.headers)["kib"])
    await stream.write(b"x" * KIB * size)
    await stream.write_eof()


@contextlib.asynccontextmanager
async def tunnels(count, budget, *, serve=pour):
    """The daemon's ends."""
    made = []
    for _ in range(count):
        left, right = socket.socketpair()
        ours, theirs = Connection(limits=LIMITS, budget=budget), Connection(serve=serve, limits=LIMITS)
        await attach(left, ours)
        await attach(right, theirs)
        made.append((ours, theirs))
    try:
        yield [ours for ours, _ in made]
    finally:
        for pair in made:
            for end in pair:
                end.close()
                await end.wait_closed()


def ask(connection, kib):
    return connection.open((*POST, ("kib", str(kib))))


@asynchronous
async def test_beyond_the_budget_the_fullest_stream_of_the_fullest_tunnel_is_reset_and_no_other():
    budget = UnreadBudget(200 * KIB)
    async with tunnels(2, budget) as (modest, greedy):
        small = [ask(modest, 8) for _ in range(4)]
        some = ask(greedy, 30)
        await eventually(lambda: budget.total == 62 * KIB, what="what is modest")
        large = [ask(greedy, 1000) for _ in range(3)]
        await eventually(lambda: budget.shed_count > 0, what="the budget to be used up")
        assert budget.total <= 200 * KIB
        for stream, size in [*((each, 8) for each in small), (some, 30)]:
            got = b""
            while data := await stream.read():
                got += data
            assert len(got) == size * KIB
        failed = 0
        for stream in large:
            size = 0
            try:
                while data := await stream.read():
                    size += len(data)
            except StreamResetError as error:
                failed += error.code == ENHANCE_YOUR_CALM
            else:
                assert size == 1000 * KIB
        assert failed == 1
        assert budget.total == 0


@asynchronous
async def test_what_is_read_costs_nothing_and_what_is_given_up_is_given_back():
    budget = UnreadBudget(4000 * KIB)
    async with tunnels(1, budget) as [connection]:
        for _ in range(3):
            stream = ask(connection, 2000)
            got = 0
            while data := await stream.read():
                got += len(data)
            assert got == 2000 * KIB
        assert (budget.total, budget.shed_count) == (0, 0)
        stalled = ask(connection, 50)
        await eventually(lambda: budget.total == 50 * KIB, what="50 KiB")
        stalled.reset()
        assert budget.total == 0
        ended = ask(connection, 40)
        await eventually(lambda: budget.total == 40 * KIB, what="40 KiB")
        ended.discard()
        assert budget.total == 0


@asynchronous
async def test_a_finished_stream_that_is_reset_does_not_end_as_if_it_were_whole():
    budget = UnreadBudget(60 * KIB)
    async with tunnels(1, budget) as [connection]:
        first = ask(connection, 40)
        await first.write_eof()
        await eventually(lambda: first.over and budget.total == 40 * KIB, what="a whole answer, unread")
        second = ask(connection, 30)
        await eventually(lambda: budget.shed_count == 1, what="too much")
        with pytest.raises(StreamResetError):
            while await first.read():
                pass
        assert len(await second.read()) > 0


async def drop_by_drop(stream):
    stream.respond(200)
    for _ in range(3_000):
        await stream.write(b"x")
    await stream.write_eof()


@asynchronous
async def test_bytes_in_small_frames_take_no_more_memory_than_in_large_ones():
    budget = UnreadBudget()
    async with tunnels(1, budget, serve=drop_by_drop) as [connection]:
        stream = connection.open(POST)
        await eventually(lambda: budget.total == 3_000, what="3,000 frames", within=40)
        assert sum(map(sys.getsizeof, stream._inbox)) < 2 * 3_000
        got = b""
        while data := await stream.read():
            got += data
        assert got == b"x" * 3_000


# --- before any proof -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def unproved(**changes):
    """The daemon's end, and a raw socket at the other."""
    left, right = socket.socketpair()
    connection = Connection(limits=TunnelLimits(**changes), proved=False)
    await attach(left, connection)
    right.setblocking(False)
    try:
        yield connection, right
    finally:
        connection.close()
        await connection.wait_closed()
        right.close()


async def hear(sock):
    """Everything until the end."""
    loop, heard = asyncio.get_running_loop(), b""
    with contextlib.suppress(ConnectionResetError):
        while data := await loop.sock_recv(sock, 65536):
            heard += data
    return heard


@pytest.mark.parametrize(
    "flood",
    [PING * 100, SETTINGS * 100, b"\0\0\x04\x08\0\0\0\0\0\0\0\0\1" * 100],
    ids=["PING", "SETTINGS", "WINDOW_UPDATE"],
)
@asynchronous
async def test_a_stranger_has_few_frames(flood):
    async with unproved() as (connection, sock):
        await asyncio.get_running_loop().sock_sendall(sock, SETTINGS + flood)
        await eventually(connection.closed.done, what="the end")
        assert "floods" in str(connection.closed.result())


@asynchronous
async def test_a_stranger_has_few_bytes():
    """In one frame that never ends, or in many: nothing is kept of more than 128 KiB."""
    async with unproved() as (connection, sock):
        frame = struct.pack("!I", 200 * KIB)[1:] + b"\1\0\0\0\0\1"
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            await asyncio.get_running_loop().sock_sendall(sock, SETTINGS + frame + bytes(190 * KIB))
        await eventually(connection.closed.done, what="the end")
        assert "proves nothing" in str(connection.closed.result())


@asynchronous
async def test_a_stranger_is_sent_no_ping_until_it_has_proved_who_it_is():
    async with unproved(keepalive=0.02, silent_intervals=3) as (connection, sock):
        await asyncio.get_running_loop().sock_sendall(sock, SETTINGS)
        await asyncio.sleep(0.3)
        assert not connection.closed.done()
        connection.mark_proved()
        await eventually(connection.closed.done, what="the silent end to be noticed")
        heard = await hear(sock)
        pings = heard.count(b"\0\0\x08\6\0\0\0\0\0sidestep")
        assert 1 <= pings <= 4
