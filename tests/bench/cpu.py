"""CPU time of a process and its descendants, in seconds, from /proc/PID/task/*/schedstat (nanoseconds on CPU)."""

from __future__ import annotations

import os
from pathlib import Path

CORES = os.cpu_count() or 1
LOAD_CORE = 0
PROXY_CORE = 1 if CORES > 1 else 0


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of these processes so far."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0])
            except OSError:
                continue
    return total / 1e9


def pin(pid: int, core: int) -> None:
    """Put every thread of a process on one core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found
