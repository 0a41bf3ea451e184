"""Makes a process yield to all others in its cgroup: for work that may take as long as it takes.

It keeps a share: a process of the lowest priorities of all would stand still on a busy machine, and its deadlines with
it. I/O priorities count where the I/O scheduler of a disk knows them (BFQ; ioprio_set(2)).
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

NICE: Final = 10
"""A tenth of the processor time that a process of priority 0 gets beside it (sched(7))."""
_SYS_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS: Final = 1
LOWEST_BEST_EFFORT: Final = 2 << 13 | 7
"""IOPRIO_CLASS_BE, and the last of its eight levels (linux/ioprio.h)."""


def yield_to_others() -> None:
    """Lower the priorities of this process for good. A kernel that refuses leaves them as they are."""
    number = _SYS_IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        libc = ctypes.CDLL(None)
        libc.syscall(
            ctypes.c_long(number), ctypes.c_int(_WHO_PROCESS), ctypes.c_int(0), ctypes.c_int(LOWEST_BEST_EFFORT)
        )
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
