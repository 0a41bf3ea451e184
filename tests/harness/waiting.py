"""Waiting for a condition under a deadline, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL = 0.01
"""Seconds between two looks at a condition."""
SLACK = 4.0
"""How many times as long as a test says a condition may take. Tests say what is plenty on an idle machine; they run
beside others, on machines that have other things to do, and a condition that comes true late is no fault."""


class DeadlineError(AssertionError):
    """A condition did not come true in time; an AssertionError so that a test fails rather than errs."""


def until(condition: Callable[[], T], *, within: float, what: str | Callable[[], str], every: float = POLL) -> T:
    """Return the first true value of `condition()`.

    `within` is seconds on an idle machine, `what` completes "waited for …". Raises DeadlineError.
    """
    within *= SLACK
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = what() if callable(what) else what
            raise DeadlineError(f"waited {within:g} s for {text}")
        time.sleep(every)
