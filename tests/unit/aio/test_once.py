"""A value that is made once."""

import asyncio

import pytest

from sidestep.aio.once import Once


def test_whoever_asks_gets_the_same_value():
    async def run():
        made, go = [], asyncio.Event()

        async def make():
            await go.wait()
            made.append(object())
            return made[-1]

        once = Once(make)
        asked = asyncio.gather(once.get(), once.get())
        await asyncio.sleep(0)
        go.set()
        assert await asked == [made[0], made[0]]
        assert await once.get() is made[0]
        assert len(made) == 1

    asyncio.run(run())


def test_one_that_was_not_made_is_tried_again():
    async def run():
        tries = []

        async def make():
            tries.append(1)
            if len(tries) == 1:
                raise OSError("no compiler")
            return ""

        once = Once(make)
        with pytest.raises(OSError, match="no compiler"):
            await once.get()
        assert await once.get() == ""
        assert await once.get() == ""
        assert len(tries) == 2

    asyncio.run(run())


def test_who_gives_up_leaves_it_to_the_next():
    async def run():
        async def make():
            await asyncio.sleep(3600 if not tries else 0)
            return "made"

        tries = []
        once = Once(make)
        first = asyncio.ensure_future(once.get())
        second = asyncio.ensure_future(once.get())
        await asyncio.sleep(0)
        tries.append(1)
        first.cancel()
        assert await second == "made"
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(run())
