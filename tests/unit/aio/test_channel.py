"""The daemon's end of a control channel, against a peer that may be slow, silent, hostile or gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import pytest

from sidestep.aio.channel import AsyncChannel, DeadlineError
from sidestep.aio.packets import ChannelClosed, ChannelOverflow
from sidestep.aio.share import Share, ShareLimits
from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import PeerError, RefusedError, SidestepError
from sidestep.proxy.control import messages
from sidestep.proxy.control.channel import Codec, ControlChannel


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@dataclass
class Ends:
    channel: AsyncChannel[Any, Any]
    peer: ControlChannel[Any]
    received: list[Any] = field(default_factory=list)
    closed: list[SidestepError] = field(default_factory=list)
    refuse: SidestepError | None = None

    async def at_peer(self) -> Any:
        async with time_limit(5):
            while True:
                if (got := self.peer.receive()) is not None:
                    return got
                await asyncio.sleep(0.001)

    async def until_closed(self) -> SidestepError:
        async with time_limit(5):
            while True:
                if self.closed:
                    return self.closed[0]
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def ends(receives: Any = messages.FromProxy, *, share: ShareLimits | None = None) -> AsyncIterator[Ends]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made: Ends
    closed: list[SidestepError] = []

    def on_message(message: Any, fd: int | None) -> None:
        made.received.append(message)
        if fd is not None:
            os.close(fd)
        if made.refuse is not None:
            raise made.refuse

    channel: AsyncChannel[Any, Any] = AsyncChannel(
        ours,
        codec=Codec(receives),
        on_message=on_message,
        on_closed=closed.append,
        share=None if share is None else Share(share, now=asyncio.get_running_loop().time()),
    )
    made = Ends(channel, ControlChannel(theirs), closed=closed)
    try:
        yield made
    finally:
        made.channel.close()
        made.peer.close()


@asynchronous
async def test_requests_are_numbered_and_answered_in_any_order():
    async with ends() as it, asyncio.TaskGroup() as group:
        first = group.create_task(it.channel.request(messages.Drain(0, 1.0), deadline=5))
        second = group.create_task(it.channel.request(messages.Drain(0, 2.0), deadline=5))
        one, two = (await it.at_peer())[0], (await it.at_peer())[0]
        assert (one.seq, two.seq) == (1, 2)
        it.peer.acknowledge(two, "two")
        it.peer.acknowledge(one)
        assert (await first).error == ""
        assert (await second).error == "two"
        assert it.received == []


@asynchronous
async def test_a_deadline_passes_and_the_late_answer_is_ignored():
    async with ends() as it:
        with pytest.raises(DeadlineError, match=r"Drain: no answer within 0.02 s"):
            await it.channel.request(messages.Drain(0, 1.0), deadline=0.02)
        late, _ = await it.at_peer()
        it.peer.acknowledge(late)
        task = asyncio.ensure_future(it.channel.request(messages.Drain(0, 1.0), deadline=5))
        it.peer.acknowledge((await it.at_peer())[0])
        await task
        assert not it.channel.closed


@asynchronous
async def test_a_late_descriptor_is_closed():
    async with ends(messages.Spawned | messages.Ack) as it:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(DeadlineError):
            await it.channel.request(messages.Drain(0, 1.0), deadline=0.02)
        late, _ = await it.at_peer()
        it.peer.send(messages.Spawned(late.seq, 1), 0)
        task = asyncio.ensure_future(it.channel.exchange(messages.Drain(0, 1.0), deadline=5))
        it.peer.send(messages.Spawned((await it.at_peer())[0].seq, 2), 0)
        answer, fd = await task
        assert answer.pid == 2
        assert len(os.listdir("/proc/self/fd")) == before + 1
        os.close(fd)


@asynchronous
async def test_what_the_peer_sends_is_acknowledged_after_the_callback():
    async with ends() as it:
        it.peer.send(messages.NoApp(1, 80, 2))
        assert await it.at_peer() == (messages.Ack(1, ""), None)
        it.refuse = RefusedError("not now")
        it.peer.send(messages.NoApp(2, 80, 2))
        assert await it.at_peer() == (messages.Ack(2, "not now"), None)
        it.refuse = None
        it.peer.send(messages.Heartbeat(3, 0, {}, {}))
        it.peer.send(messages.NoApp(4, 80, 2))
        assert await it.at_peer() == (messages.Ack(4, ""), None)
        assert [message.seq for message in it.received] == [1, 2, 3, 4]


@asynchronous
async def test_the_end_fails_what_waits_and_is_told_once():
    async with ends() as it:
        task = asyncio.ensure_future(it.channel.request(messages.Drain(0, 1.0), deadline=5))
        await it.at_peer()
        it.peer.close()
        with pytest.raises(ChannelClosed):
            await task
        with pytest.raises(ChannelClosed):
            await it.channel.request(messages.Drain(0, 1.0), deadline=5)
        it.channel.close()
        assert len(it.closed) == 1


@pytest.mark.parametrize("data", [b"garbage", b"", b"x" * 100_000])
@asynchronous
async def test_nonsense_closes_the_channel(data):
    async with ends() as it:
        it.peer._sock.send(data)
        cause = await it.until_closed()
        assert isinstance(cause, PeerError if data else ChannelClosed)


@asynchronous
async def test_a_peer_error_of_the_callback_closes_the_channel():
    async with ends() as it:
        it.refuse = PeerError("that was rude")
        it.peer.send(messages.NoApp(1, 80, 2))
        assert str(await it.until_closed()) == "that was rude"


@asynchronous
async def test_a_bug_in_the_callback_closes_the_channel_and_is_loud():
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    async with ends() as it:
        it.received = None  # type: ignore[assignment]
        it.peer.send(messages.NoApp(1, 80, 2))
        await it.until_closed()
        assert isinstance(reported[0]["exception"], AttributeError)


@asynchronous
async def test_a_peer_that_does_not_read_its_acknowledgements_is_not_read_either():
    async with ends() as it:
        sent = 0
        quiet = 0
        while quiet < 50:
            if it.peer.pending:
                it.peer.flush()
                quiet += 1
                await asyncio.sleep(0.001)
            else:
                it.peer.send(messages.NoApp(sent + 1, 80, 2))
                sent += 1
                quiet = 0
                await asyncio.sleep(0)
        taken = len(it.received)
        assert taken < sent
        assert it.channel._outbox.pending <= 32
        for expected in range(1, sent + 1):
            message, _ = await it.at_peer()
            it.peer.flush()
            assert message.seq == expected
        assert len(it.received) == sent
        assert not it.channel.closed


@asynchronous
async def test_requests_to_a_peer_that_does_not_read_are_bounded():
    async with ends() as it:
        before = len(os.listdir("/proc/self/fd"))
        tasks = [asyncio.ensure_future(it.channel.request(messages.Opened(0, n), 0, deadline=30)) for n in range(4000)]
        assert isinstance(await it.until_closed(), ChannelOverflow)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, ChannelClosed) for result in results)
        assert len(os.listdir("/proc/self/fd")) == before - 1


@asynchronous
async def test_a_cancelled_request_leaves_nothing():
    async with ends() as it:
        task = asyncio.ensure_future(it.channel.request(messages.Drain(0, 1.0), deadline=5))
        await it.at_peer()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert it.channel._waiting == {}


# --- talkative peers -------------------------------------------------------------------------------------------------


async def flood(it: Ends, *, until: Callable[[], bool], within: float = 20.0) -> float:
    """Send heartbeats as fast as they are taken; the processor time that this process spent per second of it."""
    beat = messages.Heartbeat(1, 0, {port: {f"word-{number}": 1 for number in range(250)} for port in range(8)}, {})
    began, spent = time.monotonic(), time.thread_time()
    while not until():
        assert time.monotonic() < began + within
        try:
            it.peer.send(beat, droppable=True)
            it.peer.flush()
        except ChannelClosed:
            break
        await asyncio.sleep(0.001)
    return (time.thread_time() - spent) / (time.monotonic() - began)


@asynchronous
async def test_a_peer_that_never_stops_is_ended():
    async with ends(share=ShareLimits(burst=0.02, share=0.05, patience=0.3)) as it:
        await flood(it, until=lambda: bool(it.closed))
        assert isinstance(await it.until_closed(), PeerError)


@asynchronous
async def test_a_peer_that_stops_in_time_is_listened_to_again():
    async with ends(share=ShareLimits(burst=0.02, share=0.5, patience=30)) as it:
        await flood(it, until=lambda: len(it.received) > 200)
        it.peer.send(messages.NoApp(it.peer.next_seq(), 1, 2))
        async with time_limit(10):
            while not isinstance(it.received[-1], messages.NoApp):
                it.peer.flush()
                await asyncio.sleep(0.001)
        assert not it.closed
