"""How long a capture of decrypted traffic lasts and how much it sends, which the daemon decides, not its session.

    time    counts from the first moment at which a pod of this node is captured, but no later than STARTUP seconds
            after the capture was created: a daemon that starts anew does not begin it anew
    bytes   of the frames of all its connections on this node, since this daemon serves it

A session whose tunnel breaks and comes back finds the same bounds. Once one is reached nothing more is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from sidestep.aio.time_limit import time_limit
from sidestep.config.durations import format_duration
from sidestep.tunnel.channel import SocketChannel

if TYPE_CHECKING:
    import socket

    from sidestep.model.intercept import Intercept

STARTUP: Final = 60.0
"""Seconds that a capture has until its time begins to count: certificates may still be read."""


class CaptureBounds:
    """The bounds of one capture, and what it has used of them."""

    def __init__(self, intercept: Intercept) -> None:
        age = max(0.0, time.time() - intercept.created)
        self.sent = 0
        """Bytes."""
        self.reason = ""
        """Why it is over; empty while it is not."""
        self._duration = intercept.duration
        self._max_bytes = intercept.max_bytes
        self._loop = asyncio.get_running_loop()
        self._began: float | None = None
        self._until = self._loop.time() + max(0.0, STARTUP - age + intercept.duration)
        self._news = asyncio.Event()

    @property
    def seconds(self) -> float:
        """Seconds for which it has captured."""
        return self._loop.time() - self._began if self._began is not None else 0.0

    def begin(self) -> None:
        """A pod is captured; the time counts from the first call."""
        if self._began is None:
            self._began = self._loop.time()
            self._until = min(self._until, self._began + self._duration)
            self._news.set()

    def take(self, data: bytes) -> bytes:
        """Return what may be sent of these bytes; b"" once the capture is over."""
        if self.reason:
            return b""
        data = data[: self._max_bytes - self.sent]
        self.sent += len(data)
        if self.sent >= self._max_bytes:
            self._finish(f"the capture has sent {self._max_bytes} bytes")
        return data

    async def over(self) -> str:
        """Wait until a bound is reached; returns which."""
        while not self.reason:
            self._news.clear()
            try:
                async with time_limit(self._until - self._loop.time()):
                    await self._news.wait()
            except TimeoutError:
                self._finish(f"the capture has lasted {format_duration(self._duration)}")
        return self.reason

    def _finish(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._news.set()


class CaptureChannel(SocketChannel):
    """The socket on which a pod proxy sends frames of a capture. It ends where the capture's bounds are."""

    def __init__(self, sock: socket.socket, bounds: CaptureBounds) -> None:
        super().__init__(sock)
        self._bounds = bounds

    async def read(self) -> bytes:
        """As Channel.read."""
        return self._bounds.take(await super().read())


class BoundsOfCaptures:
    """The bounds of captures by uid, of the `most` that were served last: also of those whose tunnel is broken."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_uid: OrderedDict[str, CaptureBounds] = OrderedDict()

    def of(self, intercept: Intercept) -> CaptureBounds | None:
        """Return the bounds of a session; None where it is no capture."""
        if not intercept.capture:
            return None
        bounds = self._by_uid.pop(intercept.uid, None) or CaptureBounds(intercept)
        self._by_uid[intercept.uid] = bounds
        while len(self._by_uid) > self._most:
            self._by_uid.popitem(last=False)
        return bounds

    def take(self, uid: str) -> CaptureBounds | None:
        """Remove and return those of a capture that is gone; None where this node has not served it."""
        return self._by_uid.pop(uid, None)
