"""A real loop that a test steps, and coroutines that run on it."""

from __future__ import annotations

import contextlib
import time

from sidestep.model.errors import SidestepError
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.task import Task

PATIENCE = 10
"""Seconds after which something that should happen has not, on a machine with much else to do."""


def run_until(loop, condition, within=PATIENCE):
    """Run a loop until something holds, which it has to in so many seconds."""
    end = loop.later(within, loop.stop)

    def look():
        if condition():
            loop.stop()
        else:
            loop.later(0.01, look)

    loop.later(0.0, look)
    loop.run()
    end.cancel()
    assert condition()


class Running:
    """A coroutine on a loop: `result` and `error` tell how it ended."""

    def __init__(self, coroutine):
        self.result = self.error = None
        self.over = False
        self.task = Task(self._run(coroutine))
        self.task.start()

    async def _run(self, coroutine):
        try:
            self.result = await coroutine
        except (SidestepError, OSError) as error:
            self.error = error
        finally:
            self.over = True

    def cancel(self):
        self.task.cancel()


class Stepped:
    """A loop that runs while a test waits for something."""

    def __init__(self):
        self.crashes = []
        self.loop = Loop(on_crash=lambda owner, error: self.crashes.append(error))

    def run(self, until=lambda: False, within=PATIENCE):
        """Step the loop until something holds; tell whether it does."""
        deadline = time.monotonic() + within
        while not until() and time.monotonic() < deadline:
            self.loop.later(0.01, self.loop.stop)
            self.loop.run()
        assert not self.crashes, self.crashes
        return bool(until())

    def finish(self, coroutine, within=PATIENCE):
        """Run a coroutine to its end; return what it returns, raise what it raises."""
        running = Running(coroutine)
        assert self.run(lambda: running.over, within)
        if running.error is not None:
            raise running.error
        return running.result


@contextlib.contextmanager
def stepped():
    """A loop on which nothing is left in the end."""
    made = Stepped()
    yield made
    made.run(lambda: not made.loop._callbacks, within=5)
    left = dict(made.loop._callbacks)
    made.loop.close()
    assert not left, "descriptors are still watched"
