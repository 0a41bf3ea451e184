"""The steered ports of a pod proxy: a snapshot, its compiled rules, counters, and what was learnt about the app."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from sidestep.engine.relay import OnUnreadable
from sidestep.model.condition import ConditionType
from sidestep.model.inspection import ExistingConnections
from sidestep.model.intercept import Kind, Live, Snap
from sidestep.model.shown import Shown
from sidestep.policy.accepted_policy import AcceptedPolicy, accept
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import ConnectionFacts
from sidestep.policy.inspection_rows import from_snapshot
from sidestep.policy.matching import compile_filter, from_rows, needle_of
from sidestep.policy.route import Route, Rule, SteeredPort
from sidestep.protocols.eve_redaction import Redaction
from sidestep.proxy.connection.inspection_counts import NewIds
from sidestep.proxy.connection.protocol_probe import UNKNOWN, ProtocolProbe
from sidestep.proxy.mirror.recent_requests import KEEPER, RecentRequests
from sidestep.snapshots.inspection import PolicySnapshot
from sidestep.snapshots.ports import OUTBOUND, PortSnapshot, RuleSnapshot

TOLD: Final = 1024
"""Sessions of a port that are remembered to have been told of earlier requests."""


def compile_rule(rule: RuleSnapshot) -> Rule:
    """Compile a rule. Raises ConfigurationError for a regular expression that RE2 refuses."""
    rows = tuple((condition.part, condition.test, condition.name, condition.value) for condition in rule.conditions)
    wanted = from_rows(rows)
    matches = compile_filter(wanted)
    return Rule(
        rule.uid,
        rule.display,
        matches,
        divert_probes=rule.divert_probes,
        needle=needle_of(wanted),
        heads_only=rule.heads_only,
        capture=Snap(rule.capture),
        records=Live(rule.records),
        shown=Shown(rule.statuses, rule.since, rule.last),
    )


def compile_rules(port: PortSnapshot, known: Mapping[RuleSnapshot, Rule]) -> dict[RuleSnapshot, Rule]:
    """Compile the rules of a port, except those in `known`. Raises ConfigurationError.

    A rule of 32 long regular expressions takes 50 ms, in which nothing is served, and a port has up to 64 rules.
    """
    return {rule: known.get(rule) or compile_rule(rule) for rule in port.rules}


def route_of(rules: Mapping[RuleSnapshot, Rule], *further: Rule) -> Route:
    """Return the route of a port with these rules, and with `further` wiretaps."""
    return Route(
        intercepts=tuple(made for rule, made in rules.items() if rule.kind == Kind.INTERCEPT),
        wiretaps=(*(made for rule, made in rules.items() if rule.kind == Kind.WIRETAP), *further),
    )


def source_of(port: PortSnapshot) -> str | None:
    """Return whose lines the ring of a port keeps (`proxy.mirror.recent_requests`): a uid, that of `KEEPER` where no
    session is shown everything, None for nothing."""
    if port.number == OUTBOUND:
        return None
    shown = (rule.uid for rule in port.rules if rule.heads_only and not rule.conditions and not rule.statuses)
    return next(shown, KEEPER.uid if port.recent else None)


class Outward(msgspec.Struct, frozen=True):
    """A connection that the pod makes, to a server of this name. `flow` is the number of its records; `facts` are what
    rules may ask of it. `ids`: a policy wants it to be fed to an IDS.
    """

    name: str
    flow: int
    facts: ConnectionFacts
    ids: bool = False


class CompiledPolicies:
    """The compiled policies of a process: one that applies to several ports is compiled and held once.

    A policy of 256 rules takes some 10 ms to compile, in which nothing is served, and its regexes up to 16 MiB.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[PolicySnapshot, AcceptedPolicy] = WeakValueDictionary()

    def get(self, snapshot: PolicySnapshot) -> AcceptedPolicy:
        """Return the compiled policy. Raises ConfigurationError. The daemon has accepted it, so it is not probed."""
        found = self._known.get(snapshot)
        if found is None:
            found = self._known[snapshot] = accept(from_snapshot(snapshot))
        return found


def inspection_of(port: PortSnapshot, before: Inspection | None, compiled: CompiledPolicies) -> Inspection | None:
    """Return the inspection of a port, which goes on with the counts of the one before. Raises ConfigurationError."""
    if not port.policies:
        return None
    policies = [compiled.get(policy) for policy in port.policies]
    if before is None:
        return Inspection(policies, waf=port.waf)
    return Inspection(policies, thresholds=before.thresholds, limits=before.limits, waf=port.waf)


def redaction_of(inspection: Inspection) -> Redaction:
    """Return what the policies of a port keep out of records."""
    wanted = inspection.redaction
    return Redaction(wanted.query_values, frozenset(name.encode() for name in wanted.headers))


class LivePort:
    """One steered TCP port. `steered` is the cell that relays read; it outlives every snapshot."""

    def __init__(self, snapshot: PortSnapshot, compiled: CompiledPolicies | None = None) -> None:
        self.snapshot = snapshot
        self._compiled = CompiledPolicies() if compiled is None else compiled
        self._rules = compile_rules(snapshot, {})
        self.steered = SteeredPort(snapshot.number)
        self.recent = RecentRequests()
        """What is kept for sessions that ask for earlier requests; it outlives every snapshot, too."""
        self.was_kept = False
        """Whether requests were kept before the present rules came."""
        self._is_alone = True
        """No other process serves the port: only then its requests are kept, all of them and in order."""
        self._told: dict[str, None] = {}
        """Sessions that were told of earlier requests, the oldest first."""
        self._route(snapshot)
        self.inspection = inspection_of(snapshot, None, self._compiled)
        """The policies that judge new connections; None without any."""
        self.new_id = NewIds()
        """Makes the names of inspected exchanges."""
        self.counters: Counter[str] = Counter()
        self.outward: Outward | None = None
        """Of a connection that the pod makes: what is known of it."""
        self.conditions: dict[ConditionType, str] = {}
        self.reported: dict[ConditionType, float] = {}
        """When a condition was last told, on the loop's clock."""
        self.clearing: set[ConditionType] = set()
        """Conditions that will be taken back unless a connection meets them before."""
        self.probe_result = UNKNOWN
        """What a probe found; UNKNOWN until one was definite."""
        self.probe: ProtocolProbe | None = None
        self.server_first = False
        """The app spoke first on the last connection whose client was silent, so the next silent client is not waited
        for. Reset when a client begins with HTTP or TLS, when the snapshot changes, and when the app restarts."""
        self._late_client_auth = False

    @property
    def on_unreadable(self) -> OnUnreadable:
        """What becomes of connections to this port that cannot be read.

        An app behind `forward-client-cert` believes what a request says about its client, so nothing may reach it
        unread. Neither may it past a policy that enforces and fails closed.
        """
        closes = self.snapshot.forward_client_cert or (self.inspection is not None and self.inspection.closes)
        return OnUnreadable.CLOSE if closes else OnUnreadable.PASS

    @property
    def has_ids(self) -> bool:
        """Whether a policy wants the port's connections to be fed to an IDS."""
        if self.outward is not None:
            return self.outward.ids
        return any(policy.ids for policy in self.snapshot.policies)

    @property
    def captures_requests(self) -> bool:
        """Whether a capture wants some of the port's requests."""
        return any(rule.capture for rule in self.snapshot.rules)

    @property
    def listeners(self) -> tuple[Rule, ...]:
        """The sessions that get records of inspection."""
        return self.steered.route.listeners

    @property
    def has_wiretaps(self) -> bool:
        """Whether a session wants copies, heads or records of the port's requests."""
        return bool(self.steered.route.wiretaps)

    @property
    def is_shown(self) -> bool:
        """Whether requests of the port are told to a session, or kept for some."""
        route = self.steered.route
        return bool(route.wiretaps or route.intercepts)

    @property
    def late_client_auth(self) -> bool:
        """Whether the app asks clients for certificates after the handshake: told by the daemon, or seen here."""
        return self._late_client_auth or self.snapshot.late_client_auth

    def learn_late_client_auth(self) -> None:
        """Remember that the app asked a client for its certificate after the handshake."""
        self._late_client_auth = True

    def replace(self, snapshot: PortSnapshot) -> None:
        """Apply a newer snapshot. Running connections use its route from their next request on.

        So they do with its policies, as far as their relays are made for them (`engine.inspection.gate`).
        Raises ConfigurationError.
        """
        if (snapshot.rules, snapshot.recent) != (self.snapshot.rules, self.snapshot.recent):
            self._rules = compile_rules(snapshot, self._rules)
            self._route(snapshot)
        if (snapshot.policies, snapshot.waf) != (self.snapshot.policies, self.snapshot.waf):
            before, self.inspection = self.inspection, inspection_of(snapshot, self.inspection, self._compiled)
            if before is not None:
                before.give_way(self.inspection)
        if snapshot.app != self.snapshot.app:
            self.forget_app()
        if snapshot != self.snapshot:
            self.server_first = False
        self.snapshot = snapshot

    def _route(self, snapshot: PortSnapshot) -> None:
        self.was_kept = self._is_alone and (self.recent.source is not None or snapshot.recent)
        self.recent.source = source_of(snapshot) if self._is_alone else None
        further = (KEEPER,) if self.recent.source == KEEPER.uid else ()
        self.steered.route = route_of(self._rules, *further)

    def stand_alone(self, is_alone: bool) -> None:
        """Know whether other processes serve the port, too: what they are asked for is not seen here."""
        if is_alone is not self._is_alone:
            self._is_alone = is_alone
            if not is_alone:
                self.recent.clear()
            self._route(self.snapshot)

    def serves(self, uid: str) -> bool:
        """Whether the port has the rule of a session."""
        return any(rule.uid == uid for rule in self.snapshot.rules)

    def take_newcomers(self) -> tuple[Rule, ...]:
        """Return the rules whose sessions are to be told of earlier requests, and were not. A session that returns
        after its tunnel broke is no newcomer."""
        found = tuple(rule for rule in self._rules.values() if rule.shown.wants_earlier and rule.uid not in self._told)
        for rule in found:
            self._told[rule.uid] = None
        while len(self._told) > TOLD:
            del self._told[next(iter(self._told))]
        return found

    def for_connection(self, outward: Outward, inspection: Inspection | None, snapshot: PortSnapshot) -> LivePort:
        """Return the port of one connection that the pod makes, which is judged by `inspection` and opened as
        `snapshot` says. Counters, sessions and the names of exchanges are this port's.
        """
        made = copy.copy(self)
        made.outward, made.inspection, made.snapshot = outward, inspection, snapshot
        return made

    def resets(self, snapshot: PortSnapshot) -> bool:
        """Whether a newer snapshot has a policy that the port does not have, and that wants connections which are
        older than itself to be reset."""
        wanting = {each for each in snapshot.policies if each.existing_connections == ExistingConnections.RESET}
        return not wanting.issubset(self.snapshot.policies)

    def forget_app(self) -> None:
        """Drop what was learnt about the app: it is another process now."""
        self.probe_result = UNKNOWN
        self.server_first = False
        if self.probe is not None:
            self.probe.cancel()
            self.probe = None

    def retire(self) -> None:
        """Take the rules away: the port is not configured any more, and everything goes to the app."""
        self.forget_app()
        self.recent.clear()
        self.steered.route = Route()
        if self.inspection is not None:
            self.inspection.give_way(None)
