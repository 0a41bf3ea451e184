"""Totals of the answers that sessions were told of, for metrics: how many, how long they took, how large they were.

Requests that no session is told of are not counted: pod proxies measure nothing of them. A request that is told to
several sessions counts once for each. There are at most KINDS x ANSWERERS x classes of statuses totals.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

from sidestep.aio.meter import BOUNDS
from sidestep.model.intercept import Intercept
from sidestep.tunnel.messages import Answer
from sidestep.tunnel.views import AnswersView

NOBODY: Final = "nobody"
NONE: Final = "none"
_ANSWERERS: Final = frozenset({"app", "handler", "sidestep"})


@dataclass(slots=True)
class _Total:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    sent: int = 0
    received: int = 0


class AnswerTotals:
    """See the module."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str, str], _Total] = {}

    def count(self, intercept: Intercept, answer: Answer) -> None:
        """Count an answer that the session of an intercept is told of."""
        kind = "flows" if intercept.heads_only else intercept.kind.value
        by = answer.by if answer.by in _ANSWERERS else NOBODY
        status = f"{answer.status // 100}xx" if 100 <= answer.status <= 599 else NONE
        total = self._totals.get((kind, by, status))
        if total is None:
            total = self._totals[kind, by, status] = _Total()
        total.counts[bisect_left(BOUNDS, answer.seconds)] += 1
        total.seconds += answer.seconds
        total.sent += answer.sent
        total.received += answer.received

    def views(self) -> tuple[AnswersView, ...]:
        """Return the totals."""
        return tuple(
            AnswersView(kind, by, status, tuple(each.counts), round(each.seconds, 6), each.sent, each.received)
            for (kind, by, status), each in sorted(self._totals.items())
        )
