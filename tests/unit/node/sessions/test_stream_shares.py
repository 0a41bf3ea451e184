"""A pod that wants every stream of a session leaves some to the others, and takes what they do not want."""

import asyncio
import contextlib
import random

import pytest

from sidestep.aio.time_limit import time_limit
from sidestep.model.errors import RefusedError
from sidestep.node.sessions.stream_shares import StreamShares


async def grab(shares: StreamShares, pod: str, count: int) -> tuple[int, list[asyncio.Task[None]]]:
    """Ask for so many; how many are had at once, and those that wait."""
    tasks = [asyncio.ensure_future(shares.acquire(pod)) for _ in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return sum(task.done() for task in tasks), [task for task in tasks if not task.done()]


async def give_up(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_one_takes_three_quarters_and_every_other_one_finds_some():
    async def run() -> None:
        shares = StreamShares(1024)
        had, waiting = await grab(shares, "a", 1000)
        assert had == 768
        others = [await grab(shares, f"other-{number}", 20) for number in range(3)]
        assert [count for count, _ in others] == [20, 20, 20]
        more, waiting_too = await grab(shares, "b", 1000)
        assert 100 < more < 200
        late, none = await grab(shares, "c", 1)
        assert (late, none) == (1, [])
        await give_up(waiting + waiting_too)
        assert not shares._waiting

    asyncio.run(run())


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 16])
def test_few_streams_are_of_use_to_one_pod(streams):
    async def run() -> None:
        had, waiting = await grab(StreamShares(streams), "a", streams)
        assert had == max(1, -(-3 * streams // 4))
        await give_up(waiting)

    asyncio.run(run())


def test_a_stream_that_becomes_free_goes_to_the_pod_with_the_fewest():
    async def run() -> None:
        shares = StreamShares(4)
        _, greedy = await grab(shares, "a", 4)
        had, poor = await grab(shares, "b", 2)
        assert (len(greedy), had, len(poor)) == (1, 1, 1)
        shares.release("a")
        await asyncio.sleep(0)
        assert poor[0].done()
        assert not greedy[0].done()
        for _ in range(2):
            shares.release("b")
        await asyncio.sleep(0)
        assert greedy[0].done()

    asyncio.run(run())


def test_more_than_can_be_are_refused():
    async def run() -> None:
        shares = StreamShares(2)
        await grab(shares, "a", 2)
        _, waiting = await grab(shares, "a", 2)
        with pytest.raises(RefusedError, match="wait"):
            await shares.acquire("a")
        await give_up(waiting)

    asyncio.run(run())


def test_nothing_is_lost_whoever_gives_up_whenever():
    async def run(seed: int) -> None:
        chance = random.Random(seed)
        shares, taken, waiting = StreamShares(8), [], []

        async def one(pod: str) -> None:
            await shares.acquire(pod)
            taken.append(pod)

        for _ in range(400):
            step = chance.random()
            if step < 0.5:
                waiting.append(asyncio.ensure_future(one(chance.choice("abc"))))
            elif step < 0.7 and taken:
                shares.release(taken.pop(chance.randrange(len(taken))))
            elif waiting:
                waiting.pop(chance.randrange(len(waiting))).cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            assert 0 <= shares._used <= 8
        for task in waiting:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(0)
        assert shares._used == len(taken)
        while taken:
            shares.release(taken.pop())
        assert (shares._used, dict(shares._taken), shares._waiting) == (0, {}, {})

    for seed in range(50):
        asyncio.run(run(seed))


def test_a_turn_that_is_cancelled_just_before_it_comes_ends_as_cancelled():
    async def run() -> None:
        shares = StreamShares(1)
        await shares.acquire("a")
        waiting = asyncio.ensure_future(shares.acquire("a"))
        await asyncio.sleep(0)
        waiting.cancel()
        shares.release("a")  # before the one who waited runs
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with time_limit(5):
            await shares.acquire("b")

    asyncio.run(run())
