"""The steered ports of a pod proxy: a snapshot, its compiled rules, counters, and what was learnt about the app."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sidestep.engine.relay import OnUnreadable
from sidestep.model.condition import ConditionType
from sidestep.model.intercept import Kind
from sidestep.policy.matching import compile_filter, from_rows, needle_of
from sidestep.policy.route import Route, Rule, SteeredPort
from sidestep.proxy.connection.protocol_probe import UNKNOWN, ProtocolProbe
from sidestep.snapshots.ports import PortSnapshot, RuleSnapshot


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
    )


def compile_rules(port: PortSnapshot, known: Mapping[RuleSnapshot, Rule]) -> dict[RuleSnapshot, Rule]:
    """Compile the rules of a port, except those in `known`. Raises ConfigurationError.

    A rule of 32 long regular expressions takes 50 ms, in which nothing is served, and a port has up to 64 rules.
    """
    return {rule: known.get(rule) or compile_rule(rule) for rule in port.rules}


def route_of(rules: Mapping[RuleSnapshot, Rule]) -> Route:
    """Return the route of a port with these rules."""
    return Route(
        intercepts=tuple(made for rule, made in rules.items() if rule.kind == Kind.INTERCEPT),
        wiretaps=tuple(made for rule, made in rules.items() if rule.kind == Kind.WIRETAP),
    )


class LivePort:
    """One steered TCP port. `steered` is the cell that relays read; it outlives every snapshot."""

    def __init__(self, snapshot: PortSnapshot) -> None:
        self.snapshot = snapshot
        self._rules = compile_rules(snapshot, {})
        self.steered = SteeredPort(snapshot.number, route_of(self._rules))
        self.counters: Counter[str] = Counter()
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
        unread.
        """
        return OnUnreadable.CLOSE if self.snapshot.forward_client_cert else OnUnreadable.PASS

    @property
    def late_client_auth(self) -> bool:
        """Whether the app asks clients for certificates after the handshake: told by the daemon, or seen here."""
        return self._late_client_auth or self.snapshot.late_client_auth

    def learn_late_client_auth(self) -> None:
        """Remember that the app asked a client for its certificate after the handshake."""
        self._late_client_auth = True

    def replace(self, snapshot: PortSnapshot) -> None:
        """Apply a newer snapshot. Running connections use its route from their next request on."""
        if snapshot.rules != self.snapshot.rules:
            self._rules = compile_rules(snapshot, self._rules)
            self.steered.route = route_of(self._rules)
        if snapshot.app != self.snapshot.app:
            self.forget_app()
        if snapshot != self.snapshot:
            self.server_first = False
        self.snapshot = snapshot

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
        self.steered.route = Route()
