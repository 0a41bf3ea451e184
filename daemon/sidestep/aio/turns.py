"""Turns: paces work that many ask for at once and that costs processor time, first come, first served."""

from __future__ import annotations

import asyncio

from sidestep.aio.token_bucket import TokenBucket


class Turns:
    """Gives `burst` turns at once, and `rate` a second after that."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._bucket: TokenBucket | None = None
        self._first = asyncio.Lock()
        """Whoever has it is the next one."""

    async def take(self) -> None:
        """Wait for a turn. Whoever is cancelled meanwhile takes none."""
        loop = asyncio.get_running_loop()
        if self._bucket is None:
            self._bucket = TokenBucket(rate=self._rate, burst=self._burst, now=loop.time())
        async with self._first:
            while not self._bucket.take(loop.time()):  # noqa: ASYNC110 - it fills with time
                await asyncio.sleep(self._bucket.wait())
