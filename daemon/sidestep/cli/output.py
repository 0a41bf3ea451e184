"""Printing that never blocks the event loop.

A session prints while it carries traffic. When nobody reads standard output (a pager, a stopped script), a plain
`print` would block the event loop and every diverted connection. Lines therefore go through a bounded queue to a
thread; when the queue is full they are dropped and counted. Control characters in text from the network are escaped
first.
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TextIO

import msgspec

from sidestep.model.text import harmless_json

QUEUE = 4096
"""Lines queued for standard output."""
FLUSH = 1.0
"""Seconds for printing queued lines at the end."""


class LineWriter:
    """Writes lines to a stream from a separate thread. Calls `on_closed`, in that thread, when the stream has no
    reader.
    """

    def __init__(self, stream: TextIO, *, on_closed: Callable[[], None]) -> None:
        self._stream = stream
        self._on_closed = on_closed
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()
        self.dropped = 0

    def line(self, text: str) -> None:
        """Queue a line for printing. Never waits."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Print queued lines, within FLUSH seconds."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH)
        self._thread.join(FLUSH)

    def _run(self) -> None:
        while (text := self._lines.get()) is not None:
            try:
                self._stream.write(text + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                silence_stdout()
                self._on_closed()
                return


def json_line(value: object) -> str:
    """Encode a value as one line of JSON without control characters."""
    return harmless_json(msgspec.json.encode(value).decode())


def open_standard_streams() -> None:
    """Ensure that descriptors 0 to 2 are open and that all text can be encoded.

    When the parent has closed one of them, the next socket or file would get its number and receive printed text.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - a stream
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def silence_stdout() -> None:
    """Redirect standard output to /dev/null after its reader has gone, so that the interpreter's last flush
    succeeds.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
