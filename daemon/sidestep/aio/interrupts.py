"""Calls a function when the person at the terminal wants the program to end: Ctrl-C, SIGTERM, a terminal that hangs up.

The event loop handles these signals where it can. That of Windows cannot, so there Python's own handlers do: they run
in the main thread between two steps of it and hand the call to the loop. Windows has no SIGHUP; Ctrl-Break is its
SIGBREAK.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


@contextlib.contextmanager
def interrupts(call: Callable[[], None]) -> Iterator[None]:
    """Call `call` from the running loop for each of these signals, until the block is left. For the main thread."""
    loop = asyncio.get_running_loop()

    def handle(_number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(call)

    with contextlib.ExitStack() as undo:
        for number in [getattr(signal, name) for name in NAMES if hasattr(signal, name)]:
            try:
                loop.add_signal_handler(number, call)
            except NotImplementedError:
                undo.callback(signal.signal, number, signal.signal(number, handle))
            else:
                undo.callback(loop.remove_signal_handler, number)
        yield
