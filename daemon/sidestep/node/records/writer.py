"""Writes lines to a sink in a thread of its own: whoever has lines never waits for a disk or a reader.

Lines wait in a queue that is bounded in bytes. A line that finds no room is not taken, and one that the sink does not
write is lost; both are counted. A thread whose sink does not come back is left behind: it ends with the process.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from sidestep.node.records.sinks import Sink

WAITING: Final = 8 * 1024 * 1024
"""Bytes of lines that wait."""
BATCH: Final = 256 * 1024
"""Bytes of lines that are given to the sink at once, about."""
FAREWELL: Final = 2.0
"""Seconds that whoever ends the process should give a writer after `finish`."""


class Writer:
    """Owns the sink. `counts` has `written`, `dropped_full` (no room) and `dropped_output` (the sink's)."""

    def __init__(self, sink: Sink, counts: Counter[str]) -> None:
        self._sink = sink
        self._counts = counts
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why lines are not written now, for people; empty while all is well."""
        return self._sink.problem

    def put(self, lines: Sequence[bytes]) -> None:
        """Have lines written. Never blocks. The thread is woken once for all of them: for each it took 3 µs."""
        with self._changed:
            for line in lines:
                if self._closing or self._size + len(line) > WAITING:
                    self._counts["dropped_full"] += 1
                    continue
                self._lines.append(line)
                self._size += len(line)
            self._changed.notify()

    def finish(self) -> None:
        """Take no more lines; those that wait are written, and the sink is closed, by the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    @property
    def is_alive(self) -> bool:
        """Whether the thread has something to do yet; it has not, some time after `finish`."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while batch := self._take():
            written = self._sink.write(batch)
            with self._changed:
                self._counts["written"] += written
                self._counts["dropped_output"] += len(batch) - written
        self._sink.close()

    def _take(self) -> list[bytes]:
        """The next lines, once there are any; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closing)
            batch: list[bytes] = []
            size = 0
            while self._lines and size < BATCH:
                line = self._lines.popleft()
                batch.append(line)
                size += len(line)
            self._size -= size
            return batch
