"""A call that may block for ever, in a thread that nobody waits for at the end of the process.

The threads of a loop's executor are joined when the loop closes; one that waits for the reader of a pipe would keep the
process alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T], *, name: str) -> T:
    """Return what `call` returns, or raise what it raises. Cancelling stops waiting; the thread goes on."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)  # type: ignore[arg-type]  # what `call` returned

    def run() -> None:
        value, failure = None, None
        try:
            value = call()
        except BaseException as error:  # noqa: BLE001 - raised where the call is awaited
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(settle, value, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await answer
