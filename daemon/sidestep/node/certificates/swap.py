"""Whether this machine may write memory to a disk: swap, which private keys in a pod proxy's memory could reach.

Locking the memory of every proxy would need CAP_IPC_LOCK or a limit that nobody can know in advance, and would count
against the pod; so the daemon tells, and an operator decides. Compressed memory (zram) is memory, no disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

SWAPS: Final = Path("/proc/swaps")
"""proc_swaps(5); of the whole machine, also as a container sees it."""
ADVICE: Final = (
    "private keys in the memory of pod proxies may be written to it; switch it off (swapoff -a), or encrypt it with a "
    "key of its own for each boot"
)
_IN_MEMORY: Final = "/dev/zram"


def swap_devices(swaps: Path = SWAPS) -> tuple[str, ...]:
    """The files and devices to which this machine may swap, as the kernel names them."""
    try:
        rows = swaps.read_text().splitlines()[1:]
    except OSError:
        return ()  # a kernel without swap has no such file
    names = (row.split()[0] for row in rows if row.split())
    return tuple(name for name in names if not name.startswith(_IN_MEMORY))
