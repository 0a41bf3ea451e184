"""Circuit breaker of one wiretap's handler, in one pod proxy.

    closed      copies are made. `BreakerLimits.failures` in a row open the breaker
    open        no copy is made until the pause is over
    half-open   one copy is made, the *probe*. Its success closes the breaker, its failure opens it for a longer pause

    closed -- failures in a row --> open -- pause over --> half-open -- success --> closed
                                     ^------------ failure, or no outcome ---'

A copy fails when its handler refuses it, breaks it off, or answers in another protocol. It succeeds when it is
answered, or has been open for `trial` seconds: a handler need not answer, and a copy of a whole connection may last for
hours.
"""

from __future__ import annotations

import enum
import random

import msgspec


class BreakerLimits(msgspec.Struct, frozen=True):
    """When a breaker opens, and for how long (seconds)."""

    failures: int = 5
    """Failures in a row that open it; fewer, as when a handler restarts, cost only those copies."""
    first_pause: float = 0.5
    last_pause: float = 30.0
    """The longest pause: a handler that is up again gets copies after this at the latest."""
    jitter: float = 0.25
    """Share by which a pause is longer or shorter at random: handlers that died together are probed apart."""
    trial: float = 2.0
    """Seconds after which a probe that was opened and has not failed counts as a success."""
    probe: float = 20.0
    """Seconds for a probe to be opened; longer than the daemon's own deadline."""


class State(enum.Enum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """See the module. `due` is when time itself changes something, on the clock of `now`."""

    __slots__ = ("_failures", "_is_probing", "_limits", "_pause", "_probe_is_open", "due", "state")

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._failures = 0
        self._pause = limits.first_pause
        self._is_probing = False
        self._probe_is_open = False
        self.state = State.CLOSED
        self.due: float | None = None

    @property
    def wants_probe(self) -> bool:
        """Whether the next copy may be made, as the probe."""
        return self.state is State.HALF_OPEN and not self._is_probing

    @property
    def is_probing(self) -> bool:
        """Whether the outcome of a probe is awaited."""
        return self._is_probing

    def probe(self, now: float) -> None:
        """The probe is being made."""
        self._is_probing = True
        self._probe_is_open = False
        self.due = now + self._limits.probe

    def opened(self, now: float) -> None:
        """The handler has taken the connection of a copy."""
        if self._is_probing:
            self._probe_is_open = True
            self.due = now + self._limits.trial

    def failed(self, now: float) -> None:
        """A copy has failed. While the breaker is open that changes nothing: the copy was begun before."""
        if self.state is State.CLOSED:
            self._failures += 1
            if self._failures >= self._limits.failures:
                self._open(now)
        elif self._is_probing:
            self._pause = min(self._limits.last_pause, 2 * self._pause)
            self._open(now)

    def succeeded(self) -> None:
        """A copy has succeeded."""
        if self.state is not State.OPEN:
            self._failures = 0
            self._pause = self._limits.first_pause
            self._is_probing = False
            self.state = State.CLOSED
            self.due = None

    def expire(self, now: float) -> None:
        """`due` has passed."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN
            self.due = None
        elif self._probe_is_open:
            self.succeeded()
        else:
            self.failed(now)

    def _open(self, now: float) -> None:
        jitter = self._limits.jitter
        self.state = State.OPEN
        self._is_probing = False
        self.due = now + self._pause * random.uniform(1 - jitter, 1 + jitter)  # noqa: S311 - no secret
