"""When the client is not read because a handler does not keep up.

What a diverted stream has outstanding is bounded by its window, which is the app's to give: an app may give its clients
large ones (Envoy: 256 MiB, grpcio: what the network carries). The proxy holds what a handler leaves waiting, up to the
connection's share of the budget. Where that is tight the client is not read any more: TCP holds the rest, and nothing
is lost.

That stops its other streams, too, and could stop them for good: a handler may wait for something that only a frame
behind these bytes can bring. So it lasts while there is progress, and `brake_ticks` without any end it: then the
client is read on, until the share is used up, and the stream that exceeds it is reset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.memory_budget import Account
    from sidestep.protocols.http2 import Http2Limits


class Brake:
    """The exchanges of one connection that hold its client up. True while there are any."""

    __slots__ = ("_account", "_holding", "_moved", "_patience", "_released", "_small", "_still")

    def __init__(self, limits: Http2Limits, account: Account) -> None:
        self._account = account
        self._small = limits.small
        self._patience = limits.brake_ticks
        self._holding: dict[Exchange, None] = {}
        self._released: dict[Exchange, None] = {}
        """Those whose time is up; they do not hold anything up again until they are below the mark."""
        self._moved = False
        self._still = 0
        """Whole ticks without progress."""

    def __bool__(self) -> bool:
        return bool(self._holding)

    def grew(self, exchange: Exchange) -> None:
        """The client sent a piece of the body."""
        if exchange.body_size > self._small and self._account.is_tight and exchange not in self._released:
            self._holding[exchange] = None

    def moved(self, exchange: Exchange) -> None:
        """The handler took a piece of the body."""
        if self._holding or self._released:
            self._moved = True
            if exchange.body_size <= self._small or not self._account.is_tight:
                self.forget(exchange)

    def forget(self, exchange: Exchange) -> None:
        """The exchange is over, or below the mark."""
        self._holding.pop(exchange, None)
        self._released.pop(exchange, None)

    def tick(self) -> None:
        """A tick has passed."""
        if self._moved or not self._holding:
            self._moved = False
            self._still = 0
            return
        self._still += 1
        if self._still >= self._patience:
            self._released.update(self._holding)
            self._holding.clear()
            self._still = 0
