"""How much of a processor processes use, as proc_pid_stat(5) tells it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float | None:
    """Return the seconds of processor time that a process has taken (fields 14, 15); None when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK


class ProcessorUse:
    """What processes have used since they were last looked at."""

    __slots__ = ("_at", "_seen")

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._seen: dict[int, float] = {}

    def since_last(self, pids: tuple[int, ...]) -> list[float]:
        """Return how much of a processor each that runs has used since the last look: 0 of one that is new."""
        now = time.monotonic()
        elapsed = max(now - self._at, _TICK)
        seen = {pid: seconds for pid in pids if (seconds := processor_seconds(pid)) is not None}
        used = [(seconds - self._seen.get(pid, seconds)) / elapsed for pid, seconds in seen.items()]
        self._at, self._seen = now, seen
        return used
