"""What a steered port does with a request: the rules of all its intercepts and wiretaps, in order.

A `Route` is immutable; a changed snapshot replaces it. Relays read it through `SteeredPort.route` at every request, so
when an intercept ends during a keep-alive connection, the next request goes to the app. `Route.memo` (head bytes to
routed request) and `Route.skimmer` belong to the HTTP/1 relay. They live here so that a new route begins without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sidestep.model.intercept import Live, Snap
from sidestep.model.shown import Shown

Fields = Sequence[tuple[bytes, bytes]]
"""Header fields in order: (lower-case name, value). HTTP/2 callers add (b"host", authority) for `:authority`."""

Matches = Callable[[bytes, bytes, Fields], bool]
"""(method, path without query as sent, fields) -> whether every condition of a filter holds."""

KUBE_PROBE = b"kube-probe/"
"""User-Agent prefix of kubelet probes (pkg/probe/http in Kubernetes); never diverted unless the rule says so."""


class Rule(msgspec.Struct, frozen=True):
    """One intercept or wiretap on one port. `uid` is for the daemon, `display` (`namespace/name`) for people."""

    uid: str
    display: str
    matches: Matches
    divert_probes: bool = False
    needle: bytes | None = None
    """Bytes that every matching head contains, in lower case; b"": method and path decide alone; None: not known."""
    heads_only: bool = False
    """A wiretap that gets log lines about requests and no copies."""
    capture: Snap = Snap.NOTHING
    """A wiretap that gets requests and responses as a capture."""
    records: Live = Live.NOTHING
    """A wiretap that gets records of inspection."""
    shown: Shown = msgspec.field(default_factory=Shown)
    """Which of its requests its session is shown."""

    @property
    def wants_copies(self) -> bool:
        """Whether a wiretap gets copies of requests."""
        return not (self.heads_only or self.capture or self.records)


@dataclass(frozen=True, slots=True)
class Decision:
    """Where one request goes: to the handler of `intercept`, or to the app when that is None; copies go to `taps`."""

    intercept: Rule | None = None
    taps: tuple[Rule, ...] = ()
    copied: tuple[Rule, ...] = field(init=False, compare=False, repr=False)
    """Those of `taps` that want a copy ..."""
    shown: tuple[Rule, ...] = field(init=False, compare=False, repr=False)
    """... those that want heads only ..."""
    captured: tuple[Rule, ...] = field(init=False, compare=False, repr=False)
    """... those that are captures ..."""
    recorded: tuple[Rule, ...] = field(init=False, compare=False, repr=False)
    """... and those that want a record of every request."""
    is_told: bool = field(init=False, compare=False, repr=False)
    """Whether a session is told of the request: it is not the app's alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "copied", tuple(tap for tap in self.taps if tap.wants_copies))
        object.__setattr__(self, "shown", tuple(tap for tap in self.taps if tap.heads_only))
        object.__setattr__(self, "captured", tuple(tap for tap in self.taps if tap.capture))
        object.__setattr__(self, "recorded", tuple(tap for tap in self.taps if tap.records is Live.ALL))
        object.__setattr__(self, "is_told", bool(self.taps) or self.intercept is not None)


TO_APP = Decision()


def is_probe(fields: Fields) -> bool:
    """Whether the User-Agent is that of a kubelet probe. Any client can send it."""
    return any(name == b"user-agent" and value.startswith(KUBE_PROBE) for name, value in fields)


@dataclass(frozen=True, slots=True)
class Route:
    """The filtered rules of a port: `intercepts` oldest first, `wiretaps` in any order."""

    intercepts: tuple[Rule, ...] = ()
    wiretaps: tuple[Rule, ...] = ()
    memo: dict[bytes, Any] = field(default_factory=dict, compare=False, repr=False)
    skimmer: list[Any] = field(default_factory=list, compare=False, repr=False)
    """The HTTP/1 relay's `Skimmer` for `needles` and `headless`; empty until it is first needed."""
    needles: tuple[bytes, ...] | None = field(init=False, compare=False, repr=False)
    """The needles of all rules; None when a rule has none. A head that contains no needle matches no rule."""
    headless: tuple[Matches, ...] = field(init=False, compare=False, repr=False)
    """The filters that look at method and path only."""
    listeners: tuple[Rule, ...] = field(init=False, compare=False, repr=False)
    """The wiretaps that get records of inspection."""

    def __post_init__(self) -> None:
        rules = (*self.intercepts, *self.wiretaps)
        known = [rule.needle for rule in rules if rule.needle is not None]
        needles = tuple(needle for needle in known if needle)
        object.__setattr__(self, "needles", needles if len(known) == len(rules) else None)
        object.__setattr__(self, "headless", tuple(rule.matches for rule in rules if rule.needle == b""))
        object.__setattr__(self, "listeners", tuple(rule for rule in self.wiretaps if rule.records))

    def decide(self, method: bytes, path: bytes, fields: Fields) -> Decision:
        """Decide for one request. A query in `path` is ignored. Pure; does not raise for any bytes."""
        question = path.find(b"?")
        if question >= 0:
            path = path[:question]
        chosen = None
        for rule in self.intercepts:
            if rule.matches(method, path, fields) and (rule.divert_probes or not is_probe(fields)):
                chosen = rule
                break
        taps = tuple(rule for rule in self.wiretaps if rule.matches(method, path, fields)) if self.wiretaps else ()
        if chosen is None and not taps:
            return TO_APP
        return Decision(chosen, taps)


@dataclass(slots=True)
class SteeredPort:
    """A live port of the pod proxy. Running relays see a new route through this mutable cell."""

    number: int
    route: Route = field(default_factory=Route)
