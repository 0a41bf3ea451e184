"""One TCP port that a proxy listens for, and the decision whether it is steered. Pure: `now` is the caller's.

`SteeredPort.left` is the one place where it is decided: a family of a port is steered while there is no reason to
leave it to the app. The reasons, the first that holds is told:

    LEAVING     the plan does not want the port any more
    NO_PROXY    the proxy is away, fails again and again, or shows no sign of life
    DEAF        its listener does not listen any more; another one is made
    OVERLOADED  connections come faster than the proxy takes them (`valve`)
    HINDERED    the proxy says that it cannot serve it (`readiness`)
    NO_APP      no app listens there; not asked when the plan takes the whole port
    REFUSED     one listens, and has refused a connection all the same; not asked either
"""

from __future__ import annotations

import enum
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidestep.model.pod import Family
from sidestep.node.planning.listener_backoff import Deaths
from sidestep.node.planning.valve import Valve

if TYPE_CHECKING:
    from sidestep.node.planning.plan import PortPlan

REFUSED_PAUSE = 0.5
"""Seconds for which a port is left alone after a refused dial although something listens; doubles up to the next."""

REFUSED_PAUSE_MAX = 30.0

REFUSED_CALM = 60.0
"""Seconds without a refusal after which the next one is a first one again."""


class Left(enum.Enum):
    """Why a family of a port is left to the app."""

    LEAVING = "leaving"
    NO_PROXY = "no proxy"
    DEAF = "the listener was closed by somebody in the pod; another one is made"
    OVERLOADED = "overloaded"
    HINDERED = "hindered"
    NO_APP = "no app"
    REFUSED = "the app refuses connections from inside the pod, although it listens"


@dataclass(frozen=True, slots=True)
class Proxy:
    """Why the proxy serves nothing (`absence`), and why it does not serve a family (`hindrance`). Empty: it does."""

    absence: str
    hindrance: dict[Family, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class SteeredPort:
    """A port that the proxy listens for."""

    plan: PortPlan
    listener: socket.socket
    served: set[Family] = field(default_factory=set)
    steered: set[Family] = field(default_factory=set)
    refused_until: dict[Family, float] = field(default_factory=dict)
    refused_pause: float = REFUSED_PAUSE
    refused_at: float = 0.0
    valve: Valve = field(default_factory=Valve)
    leaving: bool = False
    """It is being given up: whatever a look finds meanwhile, it is not steered again."""
    deaths: Deaths = field(default_factory=Deaths)
    """Those of its listener."""
    reset_for: frozenset[str] = frozenset()
    """The intercepts for which the connections that existed have been ended."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Families that the listener can take."""
        return tuple(Family) if self.listener.family == socket.AF_INET6 else (Family.IPV4,)

    @property
    def waits_for_app(self) -> bool:
        """Whether it is not steered only because no app listens."""
        return self.plan.needs_app and not self.served and not self.steered

    @property
    def is_deaf(self) -> bool:
        """Whether its listener has died."""
        return self.deaths.renew_at is not None

    def left(self, family: Family, *, proxy: Proxy, now: float) -> Left | None:
        """Why a family is left to the app; None: it is steered."""
        if self.leaving:
            return Left.LEAVING
        if proxy.absence:
            return Left.NO_PROXY
        if self.is_deaf:
            return Left.DEAF
        if self.valve.shut:
            return Left.OVERLOADED
        if proxy.hindrance.get(family):
            return Left.HINDERED
        if self.plan.needs_app and family not in self.served:
            return Left.NO_APP
        if self.plan.needs_app and self.refused_until.get(family, now) > now:
            return Left.REFUSED
        return None

    def found(self, served: set[Family]) -> None:
        """The kernel lists an app for these families. One that has ended and starts again begins without a pause."""
        self.served = served
        for family in [family for family in self.refused_until if family not in served]:
            del self.refused_until[family]
            self.refused_pause = REFUSED_PAUSE

    def refuse(self, family: Family, now: float) -> None:
        """The app has refused a connection: leave the family alone for a while."""
        if now - self.refused_at > REFUSED_CALM:
            self.refused_pause = REFUSED_PAUSE
        self.refused_at = now
        self.refused_until[family] = now + self.refused_pause
        self.refused_pause = min(2 * self.refused_pause, REFUSED_PAUSE_MAX)
        self.served.discard(family)

    def forget_refusals(self, now: float) -> None:
        """Drop those that are over."""
        self.refused_until = {family: until for family, until in self.refused_until.items() if until > now}

    def renewed(self, listener: socket.socket) -> None:
        """Close the listener that died; this one takes its place."""
        self.listener.close()
        self.listener = listener
        self.deaths.renewed()
