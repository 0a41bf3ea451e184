"""Connections to a handler that speaks HTTP/1.1: when one is kept, and when it is used again."""

import asyncio
import socket

import h11
import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.laptop.translation.connection_pool import KEPT, ConnectionPool
from sidestep.tunnel.channel import SocketChannel

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Handler:
    """The far ends of the connections that a pool has dialled."""

    def __init__(self):
        self.ends = []
        self.pool = ConnectionPool(self.dial)

    async def dial(self):
        near, far = socket.socketpair()
        far.setblocking(False)
        self.ends.append(far)
        return SocketChannel(near)

    async def exchange(self, connection, *, answer=ANSWER):
        await connection.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
        await connection.send(h11.EndOfMessage())
        end = next(each for each in self.ends if _readable(each))
        end.recv(1000)
        end.send(answer)
        while not isinstance(await connection.receive(), h11.EndOfMessage):
            pass
        return end

    def close(self):
        self.pool.close()
        for end in self.ends:
            end.close()


def _readable(end):
    try:
        return bool(end.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def run(test):
    async def bounded():
        handler = Handler()
        try:
            async with time_limit(20):
                await test(handler)
        finally:
            handler.close()

    asyncio.run(bounded())


def test_a_connection_serves_one_request_after_another():
    async def test(handler):
        first = await handler.pool.acquire(fresh=False)
        await handler.exchange(first)
        handler.pool.release(first, sound=True)
        assert await handler.pool.acquire(fresh=False) is first
        assert len(handler.ends) == 1
        first.channel.close()

    run(test)


def test_a_request_that_must_not_be_sent_twice_gets_a_fresh_one():
    async def test(handler):
        first = await handler.pool.acquire(fresh=False)
        await handler.exchange(first)
        handler.pool.release(first, sound=True)
        second = await handler.pool.acquire(fresh=True)
        assert second is not first
        second.channel.close()

    run(test)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "unasked bytes"])
def test_a_kept_connection_with_anything_to_read_is_not_used(closed):
    async def test(handler):
        first = await handler.pool.acquire(fresh=False)
        end = await handler.exchange(first)
        handler.pool.release(first, sound=True)
        if closed:
            end.close()
        else:
            end.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        second = await handler.pool.acquire(fresh=False)
        assert second is not first
        second.channel.close()

    run(test)


@pytest.mark.parametrize(
    "answer",
    [ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), ANSWER + b"more"],
    ids=["close", "trailing bytes"],
)
def test_a_connection_that_cannot_go_on_is_closed(answer):
    async def test(handler):
        first = await handler.pool.acquire(fresh=False)
        end = await handler.exchange(first, answer=answer)
        handler.pool.release(first, sound=True)
        assert end.recv(1) == b""

    run(test)


def test_after_an_unsound_exchange_the_handler_sees_a_break():
    async def test(handler):
        first = await handler.pool.acquire(fresh=False)
        handler.pool.release(first, sound=False)
        assert handler.ends[0].recv(1) == b""

    run(test)


def test_a_few_are_kept_and_none_after_the_end():
    async def test(handler):
        taken = [await handler.pool.acquire(fresh=True) for _ in range(KEPT + 2)]
        for each in taken:
            await handler.exchange(each)
            handler.pool.release(each, sound=True)
        assert [_ended(end) for end in handler.ends] == [False] * KEPT + [True] * 2
        last = await handler.pool.acquire(fresh=False)
        handler.pool.close()
        assert sum(_ended(end) for end in handler.ends) == KEPT + 1
        await handler.exchange(last)
        handler.pool.release(last, sound=True)
        assert all(_ended(end) for end in handler.ends)

    run(test)


def _ended(end):
    try:
        return end.recv(1) == b""
    except BlockingIOError:
        return False
