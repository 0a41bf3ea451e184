"""The state of one TCP port that a proxy listens for, and the decision whether the port is steered.

`PortState.unsteered` is the one place where this is decided, for each address family: a family is steered while none of
the reasons in `Unsteered` holds. The reasons are tried in the order of the enum, and the first that holds is returned.

`node.pods.stream_ports` owns the socket and carries the decision out; this module reads no clock (`now` is an argument,
in seconds of a monotonic clock) and touches no socket.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from sidestep.model.pod import Family
from sidestep.node.planning.listener_backoff import ListenerBackoff
from sidestep.node.planning.valve import Valve

if TYPE_CHECKING:
    from sidestep.node.planning.plan import PortPlan

REFUSED_PAUSE = 0.5
"""Seconds for which a port stays unsteered after a refused dial although an app listens; doubles up to the maximum."""

REFUSED_PAUSE_MAX = 30.0
"""Seconds; the longest pause after refused dials."""

REFUSED_CALM = 60.0
"""Seconds without a refused dial after which the pause starts again at REFUSED_PAUSE."""


class Unsteered(enum.Enum):
    """Why an address family of a port is not steered. The values are texts for people.

    The app then serves it, or clients are refused if a policy closes the port (`node.pods.closed_ports`).
    """

    LEAVING = "leaving"
    """The plan does not want the port any more."""
    NO_PROXY = "no proxy"
    """The proxy has ended, fails again and again, or shows no sign of life."""
    LISTENER_DEAD = "the listener was closed by somebody in the pod; another one is made"
    OVERLOADED = "overloaded"
    """Connections arrive faster than the proxy accepts them (`valve`)."""
    HINDERED = "hindered"
    """The proxy reports that it cannot serve the family (`readiness`)."""
    NO_APP = "no app"
    """No app listens. This is no reason where a global intercept takes the whole port."""
    REFUSED = "the app refuses connections from inside the pod, although it listens"
    """An app listens and refused a dial a moment ago. This is no reason where a global intercept takes the port."""


class Availability(msgspec.Struct, frozen=True):
    """Whether the proxy can serve. Empty texts mean that it can."""

    absence: str
    """Why the proxy serves nothing."""
    hindrance: dict[Family, str] = msgspec.field(default_factory=dict)
    """Why it does not serve a family."""


@dataclass(slots=True, eq=False)
class PortState:
    """What is known about one port."""

    plan: PortPlan
    families: tuple[Family, ...] = (Family.IPV4,)
    """The families that the listener can accept."""
    served: set[Family] = field(default_factory=set)
    """The families in which an app listens, as the kernel lists them."""
    steered: set[Family] = field(default_factory=set)
    """The families that are in the kernel's map."""
    refused_until: dict[Family, float] = field(default_factory=dict)
    """The ends of the pauses after refused dials."""
    refused_pause: float = REFUSED_PAUSE
    refused_at: float = 0.0
    valve: Valve = field(default_factory=Valve)
    leaving: bool = False
    """The port is being given up and is not steered again, whatever is found meanwhile."""
    replacement: ListenerBackoff = field(default_factory=ListenerBackoff)
    """When the listener is replaced, once it has died."""
    reset_for: frozenset[str] = frozenset()
    """The uids of the intercepts for which the connections that existed before have been ended."""

    @property
    def waits_for_app(self) -> bool:
        """Whether the port is unsteered only because no app listens."""
        return self.plan.needs_app and not self.served and not self.steered

    @property
    def listener_dead(self) -> bool:
        """Whether the listener has died and is not replaced yet."""
        return self.replacement.renew_at is not None

    def unsteered(self, family: Family, *, proxy: Availability, now: float) -> Unsteered | None:
        """Why a family is not steered. None: it is steered."""
        if self.leaving:
            return Unsteered.LEAVING
        if proxy.absence:
            return Unsteered.NO_PROXY
        if self.listener_dead:
            return Unsteered.LISTENER_DEAD
        if self.valve.shut:
            return Unsteered.OVERLOADED
        if proxy.hindrance.get(family):
            return Unsteered.HINDERED
        if self.plan.needs_app and family not in self.served:
            return Unsteered.NO_APP
        if self.plan.needs_app and self.refused_until.get(family, now) > now:
            return Unsteered.REFUSED
        return None

    def found(self, served: set[Family]) -> None:
        """The kernel lists an app for these families. An app that ended and starts again is steered without a pause."""
        self.served = served
        for family in [family for family in self.refused_until if family not in served]:
            del self.refused_until[family]
            self.refused_pause = REFUSED_PAUSE

    def refuse(self, family: Family, now: float) -> None:
        """The app refused a dial: the family pauses until the end of `refused_pause`, and the next pause is longer."""
        if now - self.refused_at > REFUSED_CALM:
            self.refused_pause = REFUSED_PAUSE
        self.refused_at = now
        self.refused_until[family] = now + self.refused_pause
        self.refused_pause = min(2 * self.refused_pause, REFUSED_PAUSE_MAX)
        self.served.discard(family)

    def forget_refusals(self, now: float) -> None:
        """Forget the pauses that have ended."""
        self.refused_until = {family: until for family, until in self.refused_until.items() if until > now}
