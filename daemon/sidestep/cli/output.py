"""Printing that cannot stall a tunnel.

A session prints while it carries other people's requests. If standard output is a pipe that nobody reads (a pager, a
stopped script), a plain `print` would block the event loop, and with it every diverted connection. So lines go through
a bounded queue to a thread; lines that find it full are dropped and counted. Text from the network is made harmless for
a terminal first.
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
"""Lines waiting for standard output."""
FLUSH = 1.0
"""Seconds at the end for what is still waiting."""


class LineWriter:
    """Writes lines to a stream from a thread of its own. `on_closed` is called, in that thread, when nobody reads."""

    def __init__(self, stream: TextIO, *, on_closed: Callable[[], None]) -> None:
        self._stream = stream
        self._on_closed = on_closed
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()
        self.dropped = 0

    def line(self, text: str) -> None:
        """Print a line, some time; never waits."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Print what is waiting, within FLUSH seconds."""
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
    """A value as one line of JSON, fit for a terminal."""
    return harmless_json(msgspec.json.encode(value).decode())


def open_standard_streams() -> None:
    """Make sure that descriptors 0 to 2 are open and that whatever is printed can be encoded.

    Where one of them was closed by whoever started us, the next socket or file would take its number, and what is
    printed would go there.
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
    """Nobody reads standard output any more: let the interpreter's last flush go nowhere instead of failing."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
