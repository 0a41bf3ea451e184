"""How work grows with the size of its input. No absolute time is judged.

Two measures, because each is blind to what the other sees:

- Operations: the lines of Python that one call executes. The same input costs the same number on every machine, however
  busy it is and however small its caches are, so the bounds on it are narrow. A loop that runs once more for each
  element is seen; what happens inside one call of C, such as `in` on a list of numbers, is not.
- CPU: sees C too, but ten times the input may leave the processor's caches and then costs more than ten times as much.
  Its bound, `SQUARED`, only tells linear growth from quadratic growth.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TURNS = 5
TRIES = 3
"""A ratio of CPU that is over its bound is measured again: a busy machine makes either side dearer, not always both."""

EVEN = 1.02
"""The second half of a range of sizes may take so many times the operations of the first half. Linear growth has 1.00,
and one operation for each pair of elements 2.4 from 200 to 2000: a part of it is seen once it is 3 % of the whole."""

SQUARED = 3.0
"""How much dearer each element may become in CPU from the small to the large size. A quadratic part makes it ten times
as dear from 200 to 2000; caches of 1 MiB made linear work 1.4 times as dear."""

Make = Callable[[int], Callable[[], object]]
"""Prepares input of a size and returns the work on it."""


def cpu(work: Callable[[], object], *, turns: int = TURNS) -> float:
    """CPU seconds of one call: the median of some."""
    costs = []
    with _no_collector():
        for _ in range(turns):
            begin = time.process_time()
            work()
            costs.append(time.process_time() - begin)
    return statistics.median(costs)


def operations(work: Callable[[], object]) -> int:
    """The lines of Python that one call executes, in whatever function; a loop's count once a turn."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    with _no_collector():
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(before)
    return count


@contextmanager
def _no_collector() -> Iterator[None]:
    """Without the garbage collector, whose cost is that of all objects of the process, those of other tests too."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def grows_at_most(bound: float, make: Make, *, small: int, large: int) -> None:
    """The operations at the large size are at most `bound` times those at the small one. Raises AssertionError."""
    few, many = (_of_second_call(make(size)) for size in (small, large))
    assert many <= bound * few, f"{few} operations at {small}, {many} at {large}: {many / few:.1f} times as many"


def is_linear(make: Make, *, small: int = 200, large: int = 2000) -> None:
    """The work grows as its input does, whatever a call costs besides. Raises AssertionError."""
    middle = (small + large) // 2
    few, some, many = (_of_second_call(make(size)) for size in (small, middle, large))
    assert many - some <= EVEN * (some - few), f"operations: {few} at {small}, {some} at {middle}, {many} at {large}"
    _cpu_is_not_squared(make, small=small, large=large)


def _of_second_call(work: Callable[[], object]) -> int:
    """The first call may fill what the input keeps for all later ones."""
    work()
    return operations(work)


def _cpu_is_not_squared(make: Make, *, small: int, large: int) -> None:
    ratios = []
    for _ in range(TRIES):
        few, many = make(small), make(large)
        ratios.append(cpu(many) / max(cpu(few), 1e-6))
        if ratios[-1] <= SQUARED * large / small:
            return
    raise AssertionError(f"from {small} to {large} the CPU grew by {', '.join(f'{each:.1f}' for each in ratios)}")
