"""What one process of a pod proxy may use of what the whole proxy may.

A proxy of N processes has bounds of memory, of processor time for copies, and of log lines that hold for the pod. Each
process keeps to 1/N of them, so that the sum is the bound and no process asks another. Applying the same number twice
changes nothing. What a process holds already stays: a budget that shrinks below it lets nothing in until it has fallen.

Not divided are bounds of one copy or one message, the bursts of log lines and records (1 MiB each), the ClientHellos
that are kept (1 MiB), and what the kernel
bounds for each process: its memory and its descriptors. The buffer of a connection is a part of the budget for bytes
that wait (`engine.memory_budget`), and shrinks with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from sidestep.engine.memory_budget import BACKLOG, DIVERTED, INSPECTION, Budget
from sidestep.engine.mirror.budget import BudgetLimits
from sidestep.engine.mirror.ledger import Ledger, TapLimits

if TYPE_CHECKING:
    from sidestep.proxy.control.record_queue import RecordQueue
    from sidestep.proxy.mirror.request_log import RequestLog


class FairShare:
    """Divides the bounds of a process by the number of processes, 1 until it is told another."""

    def __init__(self, *, backlog: Budget, ledger: Ledger, log: RequestLog, records: RecordQueue) -> None:
        self._backlog = backlog
        self._ledger = ledger
        self._log = log
        self._records = records
        self.workers = 1

    def divide(self, workers: int) -> bool:
        """Keep to 1/workers from now on; return whether that is new."""
        if workers == self.workers:
            return False
        self.workers = workers
        self._backlog.total = BACKLOG // workers
        ledger, all_taps = self._ledger, TapLimits()
        ledger.budget.total = DIVERTED // workers
        ledger.inspection.total = INSPECTION // workers
        ledger.limits = replace(
            all_taps,
            tap=max(all_taps.tap // workers, all_taps.copy),
            together=max(all_taps.together // workers, all_taps.copy),
            copies=all_taps.copies // workers,
            process=all_taps.process // workers,
        )
        ledger.gate.limit_time(BudgetLimits().share / workers)
        self._log.limit(1 / workers)
        self._records.limit(1 / workers)
        return True
