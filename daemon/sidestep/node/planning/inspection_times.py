"""Adds up for how long the ports of a pod that have inspection policies were not inspected, by reason. Pure.

`now` is an argument, in seconds of a monotonic clock. A port with policies is at any moment

    inspected   new connections reach the proxy, or nothing listens that they could reach
    open        they reach the app uninspected: the policies are not in effect here yet, or the port is not steered and
                its policies ignore failures
    closed      they are refused: the port is not steered, and one of its policies fails closed

What a single connection meets in the proxy is not counted here but there, connection by connection.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

import msgspec

from sidestep.node.planning.port_state import Unsteered


class Outcome(enum.StrEnum):
    """What becomes of new connections to a port that is not inspected."""

    OPEN = "open"
    CLOSED = "closed"


class Uninspected(msgspec.Struct, frozen=True):
    """Why a port is not inspected. `reason` is short and stable (a metric label)."""

    outcome: Outcome
    reason: str


NOT_PROGRAMMED = Uninspected(Outcome.OPEN, "not-programmed")
"""The policies are planned and not in effect yet: the pod's proxy starts, or could not be told of them."""

NO_DAEMON = Uninspected(Outcome.OPEN, "no-daemon")
"""No node daemon ran."""

STEERING_FAILED = "steering-failed"
"""The kernel did not do, or say, what steering needs."""

REASONS = {
    Unsteered.NO_PROXY: "no-proxy",
    Unsteered.LISTENER_DEAD: "listener-dead",
    Unsteered.OVERLOADED: "overloaded",
    Unsteered.HINDERED: "hindered",
    Unsteered.REFUSED: "app-refuses",
}
"""Reasons for which a port is not inspected although an app may listen."""


def uninspected_of(reasons: Collection[Unsteered | None], *, closes: bool) -> Uninspected | None:
    """What the reasons of a port's address families come to; None: it is inspected."""
    word = next((word for reason, word in REASONS.items() if reason in reasons), None)
    if word is None:
        return None
    return Uninspected(Outcome.CLOSED if closes else Outcome.OPEN, word)


class InspectionTimes:
    """The ports of one pod that have policies, whatever becomes of its target."""

    def __init__(self) -> None:
        self._ports: dict[int, Uninspected | None] = {}
        self._since: dict[int, float] = {}
        self._totals: dict[Uninspected, float] = {}

    def want(self, numbers: Collection[int], now: float) -> None:
        """Set which ports have policies. A new one is not programmed yet; of others nothing more is counted."""
        for number in self._ports.keys() - set(numbers):
            self.stand(number, None, now)
            del self._ports[number], self._since[number]
        for number in numbers:
            if number not in self._ports:
                self._ports[number], self._since[number] = NOT_PROGRAMMED, now

    @property
    def wanted(self) -> tuple[int, ...]:
        """The ports that have policies, sorted."""
        return tuple(sorted(self._ports))

    def missed(self, count: int, seconds: float) -> None:
        """Count some seconds, of so many ports each, in which no daemon ran."""
        self._totals[NO_DAEMON] = self._totals.get(NO_DAEMON, 0.0) + count * seconds

    def stand(self, number: int, uninspected: Uninspected | None, now: float) -> None:
        """Say what becomes of new connections to a port from now on; ports without policies do not count."""
        before = self._ports.get(number)
        if number not in self._ports or before == uninspected:
            return
        self._add(number, before, now)
        self._ports[number], self._since[number] = uninspected, now

    def detached(self, now: float) -> None:
        """The program is gone: nothing is programmed."""
        for number in self._ports:
            self.stand(number, NOT_PROGRAMMED, now)

    def closed(self) -> tuple[int, ...]:
        """The ports that refuse connections now, sorted."""
        return tuple(sorted(number for number, each in self._ports.items() if each and each.outcome is Outcome.CLOSED))

    def totals(self, now: float) -> dict[Uninspected, float]:
        """The seconds so far of all ports together."""
        for number, uninspected in self._ports.items():
            self._add(number, uninspected, now)
        return dict(self._totals)

    def _add(self, number: int, uninspected: Uninspected | None, now: float) -> None:
        if uninspected is not None:
            self._totals[uninspected] = self._totals.get(uninspected, 0.0) + now - self._since[number]
        self._since[number] = now
