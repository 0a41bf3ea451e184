"""What all copies of a process hold, and whether there is room for more.

Bounds (`TapLimits`): bytes of one copy, bytes and number of all copies of one wiretap, number of all copies of the
process. So a hung handler takes no room from another wiretap, and all hung handlers together take none of the memory
that serves the app. Events that wait to be consumed (`queue`) do not count here.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from sidestep.engine.memory_budget import COPIES, INSPECTION, Budget
from sidestep.engine.mirror.gate import TapGate


class TapLimits(msgspec.Struct, frozen=True):
    """Bounds of wiretaps in one pod proxy."""

    copy: int = 1024 * 1024
    """Bytes waiting for the handler in one copy."""
    tap: int = 4 * 1024 * 1024
    """Bytes waiting in all copies of one wiretap."""
    together: int = COPIES
    """The same of all wiretaps (`engine.memory_budget`)."""
    copies: int = 256
    """Copies of one wiretap at once, those whose handler has yet to answer included."""
    per_connection: int = 64
    """The same of one client connection, of all its wiretaps."""
    process: int = 1024
    """Copies of all wiretaps at once: each may hold a descriptor."""


class Holder(Protocol):
    """Something in which bytes wait for the handler of a wiretap: a leg, a stream."""

    @property
    def queued(self) -> int:
        """How many bytes."""


class Ledger:
    """One per pod proxy. Raises nothing.

    The shell empties queues without a report, so the ledger keeps an upper bound for each wiretap, and sums up the true
    numbers when that bound leaves no room.
    """

    __slots__ = ("_bounds", "_count", "_holders", "budget", "gate", "inspection", "limits")

    def __init__(
        self, limits: TapLimits | None = None, gate: TapGate | None = None, budget: Budget | None = None
    ) -> None:
        self.limits = limits or TapLimits()
        self.gate = gate or TapGate(0.0)
        self.budget = budget or Budget()
        self.inspection = Budget(INSPECTION)
        """What all connections keep for verdicts of inspection."""
        """What diverted HTTP/2 streams hold; every relay gets it beside its mirror."""
        self._holders: dict[str, dict[Holder, None]] = {}
        self._bounds: dict[str, int] = {}
        self._count = 0

    @property
    def count(self) -> int:
        """Copies at present."""
        return self._count

    def admits(self, uid: str, size: int) -> bool:
        """Whether this wiretap may have one more holder, with so many bytes."""
        limits = self.limits
        if size > limits.copy:
            return False
        if len(self._holders.get(uid, ())) < limits.copies and self._count < limits.process and self._takes(uid, size):
            return True
        self.gate.fill(uid)
        return False

    def enter(self, uid: str, holder: Holder) -> None:
        """Count a new holder of this wiretap."""
        self._holders.setdefault(uid, {})[holder] = None
        self._count += 1

    def leave(self, uid: str, holder: Holder) -> None:
        """Forget a holder. Idempotent."""
        holders = self._holders.get(uid)
        if holders is None or holder not in holders:
            return
        del holders[holder]
        self._count -= 1
        self.gate.empty(uid)
        if not holders:
            del self._holders[uid]
            self._bounds.pop(uid, None)

    def has_room(self, uid: str, holder: Holder, size: int) -> bool:
        """Whether `holder` may queue so many bytes more; then they count."""
        return not self.gate.cuts and holder.queued + size <= self.limits.copy and self._takes(uid, size)

    def _takes(self, uid: str, size: int) -> bool:
        bounds = self._bounds
        if not self._fits(uid, size):
            for each in bounds:
                bounds[each] = sum(holder.queued for holder in self._holders.get(each, ()))
            if not self._fits(uid, size):
                return False
        bounds[uid] = bounds.get(uid, 0) + size
        return True

    def _fits(self, uid: str, size: int) -> bool:
        """Whether this wiretap stays within its own bound, and within what all of them leave free."""
        bound = self._bounds.get(uid, 0) + size
        return bound <= self.limits.tap and bound <= self.limits.together - sum(self._bounds.values()) - size
