"""Back-pressure on a client whose handler does not keep up.

What a diverted stream has outstanding is bounded by its window, which the app sets: some apps give large ones (Envoy:
256 MiB, grpcio: what the network carries). The proxy buffers what a handler leaves waiting, up to the connection's
share of the memory budget. Where that gets tight the client is not read any more, and TCP holds the rest.

This stops the client's other streams too, and would stop them for good if a handler waited for something that only a
frame behind these bytes can bring. So back-pressure ends after `backpressure_ticks` without progress: the client is
read again until the share is used up, and the stream that exceeds it is reset.

    below the mark --body over `small` while the budget is tight--> holding --no progress--> released
          ^--------------- body at most `small`, or the budget not tight any more -------------'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.memory_budget import Account
    from sidestep.protocols.http2 import Http2Limits


class Backpressure:
    """The exchanges of one connection that keep its client from being read. True while there are any."""

    __slots__ = ("_account", "_holding", "_moved", "_patience", "_released", "_small", "_still")

    def __init__(self, limits: Http2Limits, account: Account) -> None:
        self._account = account
        self._small = limits.small
        self._patience = limits.backpressure_ticks
        self._holding: dict[Exchange, None] = {}
        self._released: dict[Exchange, None] = {}
        """Exchanges whose time is up; they hold nothing up again before they have been below the mark."""
        self._moved = False
        self._still = 0
        """Whole ticks in a row without progress."""

    def __bool__(self) -> bool:
        return bool(self._holding)

    def body_grew(self, exchange: Exchange) -> None:
        """Learn that the client has sent a piece of the body."""
        if exchange.body_size > self._small and self._account.is_tight and exchange not in self._released:
            self._holding[exchange] = None

    def body_shrank(self, exchange: Exchange) -> None:
        """Learn that the handler has taken a piece of the body."""
        if self._holding or self._released:
            self._moved = True
            if exchange.body_size <= self._small or not self._account.is_tight:
                self.release(exchange)

    def release(self, exchange: Exchange) -> None:
        """Learn that the exchange is over, or below the mark."""
        self._holding.pop(exchange, None)
        self._released.pop(exchange, None)

    def tick(self) -> None:
        """Learn that a tick has passed."""
        if self._moved or not self._holding:
            self._moved = False
            self._still = 0
            return
        self._still += 1
        if self._still >= self._patience:
            self._released.update(self._holding)
            self._holding.clear()
            self._still = 0
