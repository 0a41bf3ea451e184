"""One connection's share of the backlog: the bytes that all connections have queued for peers that do not read.

Each relay bounds what it queues by itself (`HIGH_WATER`). When many connections have slow readers that is too much for
the process: `engine.memory_budget.high_water` then gives a lower bound, which holds for every connection alike.
"""

from __future__ import annotations

from sidestep.engine.leg import HIGH_WATER, Leg, Role
from sidestep.engine.memory_budget import Budget, high_water
from sidestep.engine.relay import Relay


class BacklogShare:
    """What one connection holds of the budget."""

    __slots__ = ("_held", "budget")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._held = 0

    def set(self, queued: int) -> None:
        """Hold this many bytes instead of those held before."""
        if queued != self._held:
            self.budget.held += queued - self._held
            self._held = queued

    def holds_up(self, relay: Relay, leg: Leg, protocol: str) -> bool:
        """Return whether a leg is not to be read, because those who get its bytes have more queued than there is room
        for. Ask only while `budget.held`: otherwise nothing is queued anywhere.

        The client of an HTTP/2 connection is not held up by handlers: its other streams go elsewhere.
        """
        most = high_water(self.budget)
        if most >= HIGH_WATER:
            return False  # the relay's own bound is the lower one
        client = relay.client
        if leg is not client:
            return client.queued > most
        if protocol == "h2":
            return relay.app.queued > most
        return any(other.queued > most for other in relay.legs if other.role in (Role.APP, Role.HANDLER))
