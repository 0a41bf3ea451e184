"""Tells those who show the node's state that something of it has changed: once for what comes together.

Each change makes telling due. It is done after a pause, which is short while telling costs little (`planning.pace`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from sidestep.node.planning.pace import Pace

PAUSE: Final = 0.01
PAUSE_MAX: Final = 0.5
"""Seconds in which changes are gathered; more while telling costs more."""


class ShownChanges:
    """See the module. Nobody is told before `connect`."""

    def __init__(self) -> None:
        self._tell: tuple[Callable[[], None], ...] = ()
        self._due: asyncio.TimerHandle | None = None
        self._pace = Pace(least=PAUSE, most=PAUSE_MAX)

    def connect(self, *tell: Callable[[], None]) -> None:
        """Call these, in order, once something has changed."""
        self._tell = tell

    def changed(self) -> None:
        """Something that is shown has changed."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(self._pace.pause, self._tell_all)

    def _tell_all(self) -> None:
        self._due = None
        began = time.perf_counter()
        for tell in self._tell:
            tell()
        self._pace.took(time.perf_counter() - began)
