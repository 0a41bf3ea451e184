"""Time limits, in tasks that have been cancelled too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from sidestep.aio.time_limit import time_limit


def test_it_ends_what_takes_too_long():
    async def story() -> int:
        with pytest.raises(TimeoutError):
            async with time_limit(0.01):
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(story()) == 0


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_it_leaves_alone_what_ends_in_time(seconds):
    async def story() -> str:
        async with time_limit(seconds):
            await asyncio.sleep(0)
        with pytest.raises(ValueError, match="of the body"):
            async with time_limit(seconds):
                raise ValueError("of the body")
        return "done"

    assert asyncio.run(story()) == "done"


def test_a_time_that_is_over_already_ends_at_the_first_wait():
    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with time_limit(-1.0):
                await asyncio.sleep(60)

    asyncio.run(story())


def test_it_holds_in_the_cleanup_of_a_task_that_was_cancelled():
    async def story() -> list[str]:
        told = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                try:
                    async with time_limit(0.01):
                        await asyncio.Event().wait()
                except TimeoutError:
                    told.append("over")
                told.append("cleaned up")

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return told

    assert asyncio.run(story()) == ["over", "cleaned up"]


@pytest.mark.parametrize("first", ["the limit", "the cancellation"])
def test_who_cancels_at_the_moment_of_the_end_is_obeyed(first):
    async def story() -> None:
        limit = time_limit(None)

        async def work() -> None:
            async with limit:
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        ends: list[Callable[[], object]] = [limit.expire, task.cancel]
        for end in ends if first == "the limit" else reversed(ends):
            end()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(story())


def test_limits_in_each_other():
    async def story() -> list[str]:
        told = []
        with pytest.raises(TimeoutError):
            async with time_limit(0.05):
                try:
                    async with time_limit(0.01):
                        await asyncio.Event().wait()
                except TimeoutError:
                    told.append("inner")
                await asyncio.Event().wait()
        return [*told, "outer"]

    assert asyncio.run(story()) == ["inner", "outer"]


def test_an_outer_limit_passes_an_inner_one():
    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with time_limit(0.01), time_limit(60):
                await asyncio.Event().wait()

    asyncio.run(story())
