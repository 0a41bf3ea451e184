"""Imports of many modules at once, without the garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import modules in this context.

    What modules make lives as long as the process: looking for garbage among it took a fifth of the time until a
    command began. Afterwards all of it is frozen, so that later collections leave it out as well
    (https://docs.python.org/3/library/gc.html#gc.freeze).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
