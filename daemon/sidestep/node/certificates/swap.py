"""Detects whether this machine may write memory to a disk: private keys in a pod proxy's memory could reach swap.

Locking the memory of every proxy would require CAP_IPC_LOCK, or a limit that cannot be known in advance, and would
count against the pod. Therefore the daemon reports swap and the operator decides. Compressed memory (zram) stays in
memory and does not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SWAPS: Final = Path("/proc/swaps")
"""proc_swaps(5). It describes the whole machine, also inside a container."""
ADVICE: Final = (
    "private keys in the memory of pod proxies may be written to it; switch it off (swapoff -a), or encrypt it with a "
    "key of its own for each boot"
)
_IN_MEMORY: Final = "/dev/zram"


def swap_devices(swaps: Path = SWAPS) -> tuple[str, ...]:
    """Return the files and devices to which this machine may swap, as the kernel names them."""
    try:
        rows = swaps.read_text().splitlines()[1:]
    except OSError:
        return ()  # a kernel without swap support has no such file
    names = (row.split()[0] for row in rows if row.split())
    return tuple(name for name in names if not name.startswith(_IN_MEMORY))
