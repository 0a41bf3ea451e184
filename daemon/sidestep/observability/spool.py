"""A log stream that never blocks the event loop and never raises.

If the daemon wrote to standard error itself, a reader that stalls would stop it with all its traffic, and a closed pipe
or a full disk would end it. Lines therefore go through a bounded queue to a thread. Lines that do not fit are dropped
and counted; the count is logged once there is room. Lines that the stream refuses are dropped.

The thread writes to the descriptor and not to `sys.stderr`: that object has a lock, and a thread blocked with the lock
held would block the exit of the interpreter.
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
"""Most seconds that `drain` waits for queued lines."""


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
        """Queue a line; returns its length in characters. Never blocks."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            with self._counting:
                self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing; streams have this method. `drain` waits for the queue."""

    def drain(self) -> None:
        """Wait until all lines queued so far are written, at most FAREWELL seconds for each step."""
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
