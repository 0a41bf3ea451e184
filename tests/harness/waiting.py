"""Waiting for a condition under a deadline, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL = 0.01
"""Seconds between the first two looks at a condition."""
LAZY = 0.1
"""The seconds between two looks grow to this share of the time waited: looking costs those who are waited for."""
LAZIEST = 0.06
"""Seconds between two looks, unless a test names more."""
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
    begin = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - begin
        if waited >= within:
            text = what() if callable(what) else what
            raise DeadlineError(f"waited {within:g} s for {text}")
        time.sleep(max(every, min(LAZY * waited, LAZIEST)))
