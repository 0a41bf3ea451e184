"""How the CPU of some work grows with the size of its input, as a ratio: no absolute time is judged."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TURNS = 5
TRIES = 3
"""A ratio that is over its bound is measured again: a busy machine makes either side dearer, not always both."""


def cpu(work: Callable[[], object], *, turns: int = TURNS) -> float:
    """CPU seconds of one call: the median of some. Without the garbage collector, whose cost is that of all objects of
    the process, those of other tests too."""
    costs = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(turns):
            begin = time.process_time()
            work()
            costs.append(time.process_time() - begin)
    finally:
        if collecting:
            gc.enable()
    return statistics.median(costs)


def grows_at_most(bound: float, make: Callable[[int], Callable[[], object]], *, small: int, large: int) -> None:
    """`make` prepares input of a size and returns the work on it; AssertionError when the cost grows by more."""
    ratios = []
    for _ in range(TRIES):
        few, many = make(small), make(large)
        ratios.append(cpu(many) / max(cpu(few), 1e-6))
        if ratios[-1] <= bound:
            return
    raise AssertionError(f"from {small} to {large} the CPU grew by {', '.join(f'{each:.1f}' for each in ratios)}")
