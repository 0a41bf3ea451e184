"""Printing that never blocks the event loop.

A session prints while it carries traffic. When nobody reads standard output (a pager, a stopped script), a plain
`print` would block the event loop and every diverted connection. Lines therefore go through a bounded queue to a
thread; when the queue is full they are dropped and counted. Control characters in text from the network are escaped
first.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import threading
from collections.abc import Callable, Sequence

import click
import msgspec

from sidestep.cli.standard_streams import silence_stdout
from sidestep.model.text import harmless, harmless_json

QUEUE = 4096
"""Lines queued for standard output."""
ROOM = 256
"""Lines that are queued by whoever waits for room."""
AT_ONCE = 64
"""Lines written by one system call at most."""
FLUSH = 1.0
"""Seconds for printing queued lines at the end."""


class LineWriter:
    """Writes lines to a descriptor from a separate thread. Calls `on_closed`, in that thread, when it has no reader.

    Python's own stream is not used: a thread that waits in its `write` holds its lock, and the interpreter's last flush
    would wait for that lock without a deadline. The raw file below has no lock, and takes UTF-8 for Windows' console.
    """

    def __init__(self, descriptor: int, *, on_closed: Callable[[], None], encoding: str = "utf-8") -> None:
        self._file = open(descriptor, "wb", buffering=0, closefd=False)  # noqa: SIM115 - stays open for the thread
        self._on_closed = on_closed
        self._encoding = encoding
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE)
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        """Those who wait for room."""
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()
        self.dropped = 0

    def line(self, text: str) -> None:
        """Queue a line for printing. Never waits."""
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1

    async def room(self) -> None:
        """Wait while ROOM lines are queued, until some were printed or nobody reads any more."""
        while self._lines.qsize() >= ROOM and not self._is_closed:
            made = asyncio.Event()
            self._waiting.append((asyncio.get_running_loop(), made))
            if self._lines.qsize() >= ROOM and not self._is_closed:  # the thread may not have seen that somebody waits
                await made.wait()

    def close(self) -> None:
        """Print queued lines, within 2 * FLUSH seconds. What nobody has read by then is lost."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=FLUSH)
        self._thread.join(FLUSH)

    def _run(self) -> None:
        text = self._lines.get()
        while text is not None:
            lines = [text]
            with contextlib.suppress(queue.Empty):
                while len(lines) < AT_ONCE and (text := self._lines.get_nowait()) is not None:
                    lines.append(text)
            try:
                self._write(lines)
            except OSError:
                silence_stdout()
                self._is_closed = True
                self._wake()
                self._on_closed()
                return
            if self._waiting:
                self._wake()
            if text is not None:
                text = self._lines.get()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # the loop has already ended
                loop.call_soon_threadsafe(event.set)

    def _write(self, lines: Sequence[str]) -> None:
        data = memoryview("".join(f"{line}\n" for line in lines).encode(self._encoding, "backslashreplace"))
        while data:
            written = self._file.write(data)
            if written is None:  # whoever shares the pipe has made it non-blocking
                select.select([], [self._file], [])
            else:
                data = data[written:]


def tell(text: str) -> None:
    """Print a line for people to standard error."""
    click.echo(harmless(text), err=True)


def json_line(value: object) -> str:
    """Encode a value as one line of JSON without control characters."""
    return harmless_json(msgspec.json.encode(value).decode())
