"""A stream that never blocks its writer and never fails: what a log must be that is written from an event loop.

A reader of standard error that stalls would stop the node daemon with everything it carries; one that has gone, or a
disk that is full, would end it. So texts go through a bounded queue to a thread. What does not fit is dropped and
counted, and the count is told in the log once there is room; what the stream refuses is dropped.

The thread writes to the descriptor, past Python's own stream: a lock of that, held by a thread that waits for ever,
would be in the way of the interpreter's end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading

QUEUE = 4096
"""Lines that may wait; the daemon writes some ten for each pod that becomes a target."""
FAREWELL = 1.0
"""Seconds at the end for what is still waiting."""


class Spool:
    """Writes to the descriptor `fd`, which stays the caller's. `write` and `flush` as of any stream."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: queue.Queue[str | threading.Event] = queue.Queue(QUEUE)
        self._dropped = 0
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Write, some time."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            with self._counting:
                self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Nothing: whoever logs does not wait. See `drain`."""

    def drain(self) -> None:
        """Wait until what was written before is out, or for FAREWELL seconds."""
        done = threading.Event()
        with contextlib.suppress(queue.Full):
            self._lines.put(done, timeout=FAREWELL)
            done.wait(FAREWELL)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            with self._counting:
                dropped, self._dropped = self._dropped, 0
            if dropped:
                line = json.dumps({"event": "log lines dropped", "count": dropped, "level": "warning"}) + "\n" + line
            data = line.encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError):
                while data:
                    data = data[os.write(self._fd, data) :]
