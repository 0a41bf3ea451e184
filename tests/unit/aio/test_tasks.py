"""Named tasks with an owner."""

from __future__ import annotations

import asyncio

import pytest

from sidestep.aio.tasks import Tasks
from sidestep.model.errors import BugError


async def forever() -> None:
    await asyncio.Event().wait()


async def crash() -> None:
    raise ValueError("crashed")


def test_leaving_cancels_and_awaits():
    ended = []

    async def careful() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def main() -> None:
        async with Tasks("owner") as tasks:
            task = tasks.start(careful(), name="careful")
            assert task.get_name() == "owner: careful"
            await asyncio.sleep(0)
            assert len(tasks) == 1
        assert ended == [True]
        assert len(tasks) == 0

    asyncio.run(main())


def test_a_crash_takes_the_siblings_down_and_is_told_once():
    async def main() -> None:
        crashes = []
        tasks = Tasks("owner", on_crash=lambda name, error: crashes.append((name, str(error))))
        sibling = tasks.start(forever(), name="sibling")
        tasks.start(crash(), name="crashing")
        tasks.start(crash(), name="crashing too")
        with pytest.raises(ValueError, match="crashed"):
            await tasks.wait()
        assert sibling.cancelled()
        assert crashes == [("owner: crashing", "crashed")]
        assert isinstance(tasks.crash, ValueError)
        with pytest.raises(BugError):
            tasks.start(forever(), name="late")
        await tasks.aclose()

    asyncio.run(main())


def test_a_task_may_close_its_own_group():
    async def main() -> None:
        tasks = Tasks("owner")
        sibling = tasks.start(forever(), name="sibling")
        closing = tasks.start(tasks.aclose(), name="closing")
        await tasks.wait()
        assert sibling.cancelled()
        assert not closing.cancelled()

    asyncio.run(main())


def test_waiting_ends_when_all_have_ended():
    async def main() -> None:
        async with Tasks("owner") as tasks:
            results = [tasks.start(asyncio.sleep(0, number), name=str(number)) for number in range(3)]
            await tasks.wait()
            assert [task.result() for task in results] == [0, 1, 2]

    asyncio.run(main())
