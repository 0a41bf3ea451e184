"""Telling those who show the node's state: once for what comes together, less often the more it costs."""

import asyncio
import time

from sidestep.aio.time_limit import time_limit
from sidestep.node.shown_changes import PAUSE, ShownChanges

GENEROUS = 20.0
"""Seconds for a timer, on a machine with much else to do."""


async def come_true(condition):
    async with time_limit(GENEROUS):
        while not condition():  # noqa: ASYNC110 - nobody is told when a timer has fired
            await asyncio.sleep(0.001)


def test_changes_that_come_together_are_told_once_and_later_ones_again():
    async def run():
        told = []
        shown = ShownChanges()
        shown.connect(lambda: told.append("sessions"), lambda: told.append("cluster"))
        for _ in range(3):
            shown.changed()
        assert told == []
        await come_true(lambda: told)
        assert told == ["sessions", "cluster"]
        shown.changed()
        await come_true(lambda: len(told) > 2)
        assert told == ["sessions", "cluster"] * 2

    asyncio.run(run())


def test_nobody_is_told_before_there_is_somebody():
    async def run():
        told = []
        shown = ShownChanges()
        shown.changed()
        await asyncio.sleep(2 * PAUSE)
        shown.connect(lambda: told.append("sessions"))
        shown.changed()
        await come_true(lambda: told)
        assert told == ["sessions"]

    asyncio.run(run())


def test_what_costs_much_is_done_less_often():
    async def run():
        began = []

        def tell():
            began.append(time.perf_counter())
            time.sleep(5 * PAUSE)
            shown.changed()

        shown = ShownChanges()
        shown.connect(tell)
        shown.changed()
        await come_true(lambda: len(began) == 3)
        assert began[2] - began[1] > 4 * 5 * PAUSE

    asyncio.run(run())
