"""The handler of a UDP intercept as a channel of capsules."""

import asyncio
import socket

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.laptop.channels.datagram_channel import DatagramChannel
from sidestep.model.errors import RefusedError
from sidestep.protocols import capsules
from sidestep.tunnel.errors import ChannelBrokenError


def run(test):
    async def bounded():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handler:
            handler.bind(("127.0.0.1", 0))
            handler.settimeout(10)
            channel = await DatagramChannel.connect("127.0.0.1", handler.getsockname()[1])
            try:
                async with time_limit(20):
                    await test(channel, handler)
            finally:
                channel.close()

    asyncio.run(bounded())


def test_datagrams_keep_their_boundaries_both_ways():
    async def test(channel, handler):
        wire = capsules.encode(b"one") + capsules.encode(b"") + capsules.encode(b"two")
        await channel.write(wire[:4])
        await channel.write(wire[4:])
        got = [handler.recvfrom(100) for _ in range(3)]
        assert [data for data, _ in got] == [b"one", b"", b"two"]
        for answer in (b"a", b"bc"):
            handler.sendto(answer, got[0][1])
            assert await channel.read() == capsules.encode(answer)

    run(test)


def test_what_the_network_does_not_take_is_dropped():
    async def test(channel, handler):
        await channel.write(capsules.encode(b"x" * 65_520) + capsules.encode(b"small"))
        assert handler.recv(100) == b"small"

    run(test)


def test_bytes_that_are_no_capsules_break_the_channel():
    async def test(channel, _handler):
        with pytest.raises(ChannelBrokenError):
            await channel.write(b"\x00\xbf\xff\xff\xff")

    run(test)


async def answered(channel, late):
    """What arrives once the refusals of earlier datagrams have been read: each costs one datagram."""
    for _ in range(100):
        await channel.write(capsules.encode(b"again"))
        try:
            return late.recvfrom(100)
        except TimeoutError:
            continue
    raise AssertionError("no datagram arrived")


def test_a_handler_that_is_not_there_yet_ends_nothing():
    async def test(channel, handler):
        address = handler.getsockname()
        handler.close()
        for _ in range(3):
            await channel.write(capsules.encode(b"hello"))
        reading = asyncio.ensure_future(channel.read())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.bind(address)
            late.settimeout(0.1)
            data, client = await answered(channel, late)
            late.sendto(data, client)
            assert await reading == capsules.encode(data)

    run(test)


def test_the_ends_of_a_channel():
    async def test(channel, _handler):
        await channel.write_eof()
        assert not channel.hung_up()
        channel.abort()
        channel.close()
        assert channel.hung_up()

    run(test)


def test_an_address_that_cannot_be_used():
    with pytest.raises(RefusedError, match="cannot be used"):
        asyncio.run(DatagramChannel.connect("\x00", 1))
