"""Waiting for a condition under a deadline, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL = 0.01
"""Seconds between two looks at a condition."""


class DeadlineError(AssertionError):
    """A condition did not come true in time; an AssertionError so that a test fails rather than errs."""


def until(condition: Callable[[], T], *, within: float, what: str | Callable[[], str], every: float = POLL) -> T:
    """Return the first true value of `condition()`. `within` is seconds; `what` completes "waited for …"."""
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            text = what() if callable(what) else what
            raise DeadlineError(f"waited {within:g} s for {text}")
        time.sleep(every)
