"""When the client is not read because a handler does not keep up.

An app may give its clients large windows (Envoy: 256 MiB, grpcio: what the network carries), so a client may send the
body of a diverted request much faster than a tunnel takes it. What a stream may buffer is bounded (`stream_buffer`),
and from half of that on the client is not read any more: TCP holds it, and nothing is lost.

That stops its other streams, too, and could stop them for good: a handler may wait for something that only a frame
behind these bytes can bring. So it lasts while there is progress, and `brake_seconds` without any end it: then the
client is read on, until the stream's buffer is full, and that stream is reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidestep.engine.http2_exchange import Exchange
    from sidestep.protocols.http2 import Http2Limits


class Brake:
    """The exchanges of one connection that hold its client up. True while there are any."""

    __slots__ = ("_half", "_holding", "_moved", "_released", "_seconds")

    def __init__(self, limits: Http2Limits) -> None:
        self._half = limits.stream_buffer // 2
        self._seconds = limits.brake_seconds
        self._holding: dict[Exchange, None] = {}
        self._released: dict[Exchange, None] = {}
        """Those whose time is up; they do not hold anything up again until they are below the mark."""
        self._moved = False

    def __bool__(self) -> bool:
        return bool(self._holding)

    def grew(self, exchange: Exchange) -> None:
        """The client sent a piece of the body."""
        if exchange.body_size > self._half and exchange not in self._released:
            self._holding[exchange] = None

    def moved(self, exchange: Exchange) -> None:
        """The handler took a piece of the body."""
        if self._holding or self._released:
            self._moved = True
            if exchange.body_size <= self._half:
                self.forget(exchange)

    def forget(self, exchange: Exchange) -> None:
        """The exchange is over, or below the mark."""
        self._holding.pop(exchange, None)
        self._released.pop(exchange, None)

    def expired(self, now: float, deadline: float) -> float | None:
        """The next deadline. The engine has no clock: a deadline of 0 is due at once and only starts the time."""
        if not self._holding:
            return None
        if deadline and not self._moved and now >= deadline:
            self._released.update(self._holding)
            self._holding.clear()
            return None
        self._moved = False
        return now + self._seconds
