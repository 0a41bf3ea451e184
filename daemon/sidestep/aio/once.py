"""A value that takes long to make, and is made once: when somebody first asks for it.

Who asks meanwhile waits for the same one. If making it fails, each who has asked is told so in turn, after another try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """See the module. `make` makes the value; it may raise whatever it likes."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._made: list[T] = []

    async def get(self) -> T:
        """The value. Raises what making it raises."""
        async with self._lock:
            if not self._made:
                self._made.append(await self._make())
            return self._made[0]
