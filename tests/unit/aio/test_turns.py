"""Turns: a burst at once, then a rate, first come, first served."""

import asyncio

from sidestep.aio.turns import Turns


def test_whoever_came_first_is_first_and_the_rate_holds():
    async def go():
        loop = asyncio.get_running_loop()
        turns, order = Turns(rate=50.0, burst=2.0), []

        async def one(number):
            await turns.take()
            order.append((number, loop.time()))

        begun = loop.time()
        await asyncio.gather(*(one(number) for number in range(5)))
        assert [number for number, _ in order] == [0, 1, 2, 3, 4]
        assert order[4][1] - begun >= 3 / 50 - 0.005  # the burst has two of the five

    asyncio.run(go())


def test_whoever_is_cancelled_takes_none():
    async def go():
        turns = Turns(rate=20.0, burst=1.0)
        await turns.take()
        waiting = [asyncio.ensure_future(turns.take()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        waiting[1].cancel()
        await asyncio.wait_for(waiting[2], 60)
        assert [each.cancelled() for each in waiting] == [True, True, False]

    asyncio.run(go())
