"""Decides which copies are made at all: wiretaps with dead handlers get none, and all together get a share of time.

A copy is *held back*, that is dropped before anything is spent on it, while its wiretap's breaker is not closed
(`breaker`), while its wiretap has no room (`Ledger`), or while the budget of all is spent (`budget`). What is held
back is counted by port, wiretap and reason; the counts are told every few seconds (`take_losses`), not each request.

Hot path: while nothing is held back `holds` is false and nothing else is asked. Otherwise a head that was met before
has a `Tally`, which says that all its wiretaps are held back. It is valid while `version` is the same, and costs
a comparison and an addition.

No clock: callers pass the time and call `expire` at `due`. Only the jitter of pauses is random.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from sidestep.engine.mirror.breaker import Breaker, BreakerLimits, State
from sidestep.engine.mirror.budget import BudgetLimits, CopyBudget

if TYPE_CHECKING:
    from sidestep.policy.route import Rule

ROOM: Final = 0.1
"""Seconds for which a wiretap without room gets no copy, unless one of its copies ends before."""
TALLIES: Final = 256
"""Combinations of wiretaps for which a tally is kept."""


class Why(enum.Enum):
    """Why copies are held back."""

    HANDLER = "handler"
    """The handler refuses them."""
    ROOM = "room"
    """The wiretap has no room: too many copies, or too many bytes, wait for its handler."""
    BUDGET = "budget"
    """Copying has taken its share of time."""


class Loss(NamedTuple):
    """Copies of a port's requests, or connections, that one wiretap did not get."""

    port: int
    uid: str
    why: Why


class Tally:
    """Requests with the same wiretaps, all of which are held back while `version` is the gate's."""

    __slots__ = ("count", "gate", "losses", "version")

    def __init__(self, gate: TapGate, losses: tuple[Loss, ...]) -> None:
        self.gate = gate
        self.version = gate.version
        self.losses = losses
        self.count = 0


class TapGate:
    """One per pod proxy."""

    def __init__(
        self, now: float, *, breakers: BreakerLimits | None = None, budget: BudgetLimits | None = None
    ) -> None:
        self.holds = False
        """Whether anything is held back."""
        self.version = 0
        self._limits = breakers or BreakerLimits()
        self._budget = CopyBudget(budget or BudgetLimits(), now)
        self._now = now
        self._breakers: dict[str, Breaker] = {}
        """Those that are not closed, or have seen a failure."""
        self._full: dict[str, float] = {}
        """Wiretaps without room -> until when."""
        self._tallies: dict[tuple[int | str, ...], Tally] = {}
        """Those of the present version, by port and wiretaps."""
        self._losses: Counter[Loss] = Counter()
        self.numbers = itertools.count(1)
        """Numbers of requests, by which sessions know whose answer is told."""

    def limit_time(self, share: float) -> None:
        """All copies together may take this share of one processor's time from now on."""
        self._budget.limit(share)

    # --- what is copied ---------------------------------------------------------------------------------------------

    def choose(self, port: int, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        """Return those of the wiretaps that get a copy of a request or connection; count the others."""
        if not self.holds:
            return rules
        tally = self.tally(port, rules)
        if tally is not None:
            tally.count += 1
            return ()
        chosen = []
        for rule in rules:
            why = self._held(rule.uid)
            if why is None:
                self._probe(rule.uid)
                chosen.append(rule)
            else:
                self._losses[Loss(port, rule.uid, why)] += 1
        return tuple(chosen)

    def tally(self, port: int, rules: tuple[Rule, ...]) -> Tally | None:
        """Return where requests with these wiretaps are counted; None if not all of them are held back."""
        key: tuple[int | str, ...] = (port, *(rule.uid for rule in rules))
        tally = self._tallies.get(key)
        if tally is None:
            losses = []
            for rule in rules:
                why = self._held(rule.uid)
                if why is None:
                    return None
                losses.append(Loss(port, rule.uid, why))
            if len(self._tallies) >= TALLIES:
                self._fold()
            tally = self._tallies[key] = Tally(self, tuple(losses))
        return tally

    def still(self, port: int, rule: Rule) -> bool:
        """Whether a copy that `choose` let pass is still made; otherwise it is counted."""
        if not self.holds:
            return True
        breaker = self._breakers.get(rule.uid)
        if breaker is not None and breaker.is_probing:
            return True
        why = self._held(rule.uid)
        if why is not None:
            self._losses[Loss(port, rule.uid, why)] += 1
        return why is None

    def lose(self, port: int, uid: str, why: Why) -> None:
        """A copy that was chosen is not made for another reason."""
        self._losses[Loss(port, uid, why)] += 1

    def takes(self, port: int, uid: str, *, begun: bool) -> bool:
        """Whether a datagram is copied; otherwise it is counted. `begun`: the connection for its flow is open."""
        if not self.holds:
            return True
        why = self._held(uid)
        if why is None and not begun:
            self._probe(uid)
        if why is None or (begun and why is not Why.BUDGET):
            return True
        self._losses[Loss(port, uid, why)] += 1
        return False

    @property
    def is_spent(self) -> bool:
        """Whether copies have taken their share of time."""
        return self._budget.is_spent

    def is_closed(self, uid: str) -> bool:
        """Whether the breaker of a wiretap lets all its copies pass."""
        breaker = self._breakers.get(uid)
        return breaker is None or breaker.state is State.CLOSED

    @property
    def cuts(self) -> bool:
        """Whether copies that have begun are cut short."""
        return self._budget.is_overdrawn

    def _held(self, uid: str) -> Why | None:
        breaker = self._breakers.get(uid)
        if breaker is not None and breaker.state is not State.CLOSED:
            return None if breaker.wants_probe else Why.HANDLER
        if uid in self._full:
            return Why.ROOM
        return Why.BUDGET if self._budget.is_spent else None

    def _probe(self, uid: str) -> None:
        breaker = self._breakers.get(uid)
        if breaker is not None and breaker.wants_probe:
            breaker.probe(self._now)
            self._changed()

    # --- what becomes of copies -------------------------------------------------------------------------------------

    def opened(self, uid: str, now: float) -> None:
        """A handler has taken the connection of a copy."""
        self._now = now
        breaker = self._breakers.get(uid)
        if breaker is not None:
            breaker.opened(now)

    def failed(self, uid: str, now: float) -> None:
        """A copy has failed; see `breaker`."""
        self._now = now
        breaker = self._breakers.setdefault(uid, Breaker(self._limits))
        breaker.failed(now)
        if breaker.state is not State.CLOSED:
            self._changed()

    def succeeded(self, uid: str, now: float) -> None:
        """A copy has succeeded; see `breaker`."""
        self._now = now
        breaker = self._breakers.get(uid)
        if breaker is not None:
            breaker.succeeded()
            self._forget(uid, breaker)

    def spend(self, seconds: float, now: float) -> None:
        """Copying has taken time."""
        self._now = now
        before = self._budget.is_spent
        self._budget.spend(seconds, now)
        if self._budget.is_spent is not before:
            self._changed()

    def fill(self, uid: str) -> None:
        """There was no room for a copy."""
        self._full[uid] = self._now + ROOM
        self._changed()

    def empty(self, uid: str) -> None:
        """There may be room again."""
        if self._full and self._full.pop(uid, None) is not None:
            self._changed()

    def keep(self, uids: Collection[str]) -> None:
        """Forget all wiretaps but these."""
        self._breakers = {uid: breaker for uid, breaker in self._breakers.items() if uid in uids}
        self._full = {uid: until for uid, until in self._full.items() if uid in uids}
        self._changed()

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> float | None:
        """When `expire` has something to do."""
        times = [breaker.due for breaker in self._breakers.values()]
        return min(filter(None, (self._budget.due, *times, *self._full.values())), default=None)

    def expire(self, now: float) -> None:
        """Do what is due by now."""
        self.spend(0.0, now)
        for uid, breaker in [*self._breakers.items()]:
            if breaker.due is not None and breaker.due <= now:
                breaker.expire(now)
                self._forget(uid, breaker)
                self._changed()
        for uid in [uid for uid, until in self._full.items() if until <= now]:
            self.empty(uid)

    def _forget(self, uid: str, breaker: Breaker) -> None:
        if breaker.state is State.CLOSED:
            del self._breakers[uid]
            self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._fold()
        self.holds = (
            self._budget.is_spent
            or bool(self._full)
            or any(breaker.state is not State.CLOSED for breaker in self._breakers.values())
        )

    # --- losses -----------------------------------------------------------------------------------------------------

    def take_losses(self) -> dict[Loss, int]:
        """Return what was held back since the last call."""
        self._fold()
        losses, self._losses = self._losses, Counter()
        return losses

    def _fold(self) -> None:
        for tally in self._tallies.values():
            for loss in tally.losses:
                self._losses[loss] += tally.count
            tally.count = 0
            tally.version = -1
        self._tallies.clear()
