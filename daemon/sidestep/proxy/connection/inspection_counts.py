"""Counts what inspection finds on the connections of a port, and what it does not see.

Counters of the port, in its heartbeats:

    inspection_logged, _alerted, _would_block, _blocked    hits of rules
    inspection_bypassed_REASON                             what passed unread
    inspection_closed_REASON                               what was refused because it cannot be read
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

from sidestep.engine.inspection.records import ExchangeRecord, FileRecord, HitRecord
from sidestep.engine.inspection.samples import Sample
from sidestep.policy.accepted_policy import Outcome

_NAMES: Final = {
    Outcome.LOG: "inspection_logged",
    Outcome.ALERT: "inspection_alerted",
    Outcome.BLOCK: "inspection_blocked",
}


class InspectionCounts:
    """The observer of a port's connections; `counters` are the port's."""

    __slots__ = ("_counters",)

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters

    def hit(self, record: HitRecord) -> None:
        """See `records.Observer`."""
        self._counters["inspection_would_block" if record.would_block else _NAMES[record.action]] += 1

    def sampled(self, sample: Sample) -> None:
        """See `records.Observer`."""

    def file(self, record: FileRecord) -> None:
        """See `records.Observer`."""

    def answered(self, record: ExchangeRecord) -> None:
        """See `records.Observer`."""

    def uninspected(self, reason: str, *, closed: bool) -> None:
        """See `records.Observer`."""
        outcome = "closed" if closed else "bypassed"
        self._counters[f"inspection_{outcome}_{reason.replace('-', '_')}"] += 1


class NewIds:
    """Makes names of exchanges: 8 random hexadecimal digits, then a number.

    Made by the pod proxy, not by the zygote, so that the names of one pod's exchanges are not those of another's.
    """

    __slots__ = ("_last", "_process")

    def __init__(self) -> None:
        self._process = os.urandom(4).hex()
        self._last = 0

    def __call__(self) -> str:
        """Return the next name."""
        self._last += 1
        return f"{self._process}-{self._last}"
