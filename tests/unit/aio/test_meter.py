"""The meter of the event loop, and deadlines that leave out what it and the scheduler tell."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sidestep.aio.meter import BOUNDS, NOTICED, LoopMeter, MeteredLoop, stalled
from sidestep.aio.patience import MOST, patience, run_delay
from tests.harness.waiting import until


def run(main):
    with asyncio.Runner(loop_factory=MeteredLoop) as runner:
        return runner.run(main)


def test_turns_are_sorted_into_buckets():
    meter = LoopMeter()
    for seconds in (0.0001, BOUNDS[0], 0.02, 0.3, 100.0):
        meter.turn(seconds)
    assert sum(meter.counts) == 5
    assert meter.counts[0] == 2
    assert meter.counts[BOUNDS.index(0.025)] == 1
    assert meter.counts[-1] == 1
    assert meter.longest == 100.0
    assert meter.stalled == pytest.approx(0.3 + 100.0 - 2 * NOTICED)
    assert meter.seconds == pytest.approx(100.3251)


@pytest.mark.alone
def test_a_blocked_loop_is_seen_and_an_idle_one_is_not():
    async def main():
        loop: Any = asyncio.get_running_loop()
        await asyncio.sleep(0.3)
        assert loop.meter.longest < 0.3
        before = stalled(loop)
        time.sleep(0.4)  # noqa: ASYNC251 - this is the fault
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stalled(loop) - before >= 0.25
        assert loop.meter.longest >= 0.4

    run(main())


def test_a_loop_without_a_meter_is_never_stalled():
    async def main():
        assert stalled(asyncio.get_running_loop()) == 0.0

    asyncio.run(main())


@pytest.mark.alone
def test_what_never_answers_is_given_up_in_time():
    async def main():
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with patience(0.2, of=os.getpid()):
                await asyncio.Event().wait()
        assert 0.19 < time.monotonic() - began < 0.2 * MOST + 2

    run(main())


@pytest.mark.alone
def test_time_in_which_the_loop_was_away_does_not_count():
    async def main():
        answer = asyncio.get_running_loop().create_future()
        async with patience(0.4):
            await asyncio.sleep(0.05)
            time.sleep(0.6)  # noqa: ASYNC251 - this is the fault
            asyncio.get_running_loop().call_later(0.2, answer.set_result, "in time")
            assert await answer == "in time"

    run(main())


def test_an_answer_in_time_leaves_no_timer():
    async def main():
        async with patience(0.05):
            pass
        await asyncio.sleep(0.1)

    run(main())


@pytest.mark.alone
def test_a_process_that_waits_for_a_cpu_is_told_from_one_that_is_stopped():
    """Three that compute on one core wait for it; stopped, they do not."""
    core = min(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for each in busy:
            os.sched_setaffinity(each.pid, {core})
        first = busy[0].pid
        before = run_delay(first)
        until(lambda: run_delay(first) - before > 0.2, within=20, what="it to wait for the core")
        os.kill(first, signal.SIGSTOP)
        stat = Path(f"/proc/{first}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", within=5, what="it to stop")
        stopped, began = run_delay(first), time.monotonic()
        until(lambda: time.monotonic() - began > 0.5, within=5, what="half a second")
        assert run_delay(first) == pytest.approx(stopped, abs=0.05)
    finally:
        for each in busy:
            each.kill()
            each.wait()


def test_a_process_that_is_gone_has_waited_for_nothing():
    assert run_delay(2**22 + 1) == 0.0
