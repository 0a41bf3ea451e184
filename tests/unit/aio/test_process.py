"""Processes by pidfd."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

from sidestep.aio.process import Process


def start() -> tuple[subprocess.Popen[bytes], Process]:
    popen = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    return popen, Process(popen.pid, os.pidfd_open(popen.pid))


def test_it_is_awaited_signalled_and_closed():
    async def main() -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        popen, process = start()
        assert process.alive
        assert await process.wait(deadline=0.01) is False
        ends: list[int] = []
        call_off = process.watch(lambda: ends.append(1))
        never = process.watch(lambda: ends.append(2))
        never()
        waiting = [asyncio.ensure_future(process.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        process.kill()
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [True] * 3
        assert ends == [1]
        call_off()
        assert not process.alive
        assert await process.wait()
        process.send_signal(signal.SIGTERM)
        assert popen.wait() == -signal.SIGKILL
        process.kill()
        process.close()
        process.close()
        process.kill()
        assert not process.alive
        assert len(os.listdir("/proc/self/fd")) == descriptors

    asyncio.run(main())


def test_a_deadline_holds_in_the_cleanup_of_a_task_that_was_cancelled():
    async def story() -> bool | None:
        popen, process = start()
        found = None

        async def work() -> None:
            nonlocal found
            try:
                await asyncio.Event().wait()
            finally:
                found = await process.wait(deadline=0.05)

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        process.kill()
        popen.wait()
        process.close()
        return found

    assert asyncio.run(story()) is False
