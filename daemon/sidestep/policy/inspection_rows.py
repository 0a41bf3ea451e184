"""Inspection policies as snapshots for pod proxies, and back."""

from __future__ import annotations

import hashlib
from ipaddress import ip_network

import msgspec

from sidestep.model.errors import ConfigurationError
from sidestep.model.filter import HeaderTest
from sidestep.model.inspection import (
    Action,
    Builtin,
    Direction,
    ExistingConnections,
    FailurePolicy,
    InspectionPolicy,
    Match,
    Mode,
    ParameterCondition,
    Pattern,
    RateLimit,
    Redaction,
    Rule,
    Threshold,
)
from sidestep.policy.matching import from_rows, to_rows
from sidestep.snapshots.filter_row import FilterRow
from sidestep.snapshots.inspection import InspectionRuleSnapshot, MatchSnapshot, PolicySnapshot


def to_snapshot(policy: InspectionPolicy) -> PolicySnapshot:
    """The policy without what it selects, and without `egress`. `from_snapshot` is the inverse, but for an IDS and a
    firewall."""
    return PolicySnapshot(
        policy.name,
        policy.namespace,
        policy.mode.value,
        policy.failure_policy.value,
        policy.existing_connections.value,
        policy.sample_percent,
        tuple(map(_rule_snapshot, policy.rules)),
        policy.redaction.query_values,
        policy.redaction.headers,
        policy.ids is not None,
        b"" if policy.waf is None else hashlib.sha256(msgspec.msgpack.encode(policy.waf)).digest()[:8],
    )


def display_of(snapshot: PolicySnapshot) -> str:
    """The name that records give the policy (`InspectionPolicy.display`)."""
    return f"{snapshot.namespace}/{snapshot.name}" if snapshot.namespace else snapshot.name


def from_snapshot(snapshot: PolicySnapshot) -> InspectionPolicy:
    """The policy that `to_snapshot` described. Raises ConfigurationError for one that it cannot have made."""
    try:
        return InspectionPolicy(
            snapshot.name,
            snapshot.namespace,
            mode=Mode(snapshot.mode),
            failure_policy=FailurePolicy(snapshot.failure_policy),
            existing_connections=ExistingConnections(snapshot.existing_connections),
            sample_percent=snapshot.sample_percent,
            rules=tuple(map(_rule, snapshot.rules)),
            redaction=Redaction(snapshot.redacts_queries, snapshot.redacted_headers),
        )
    except ValueError as error:
        raise ConfigurationError("an inspection policy that cannot be read", value=str(error)[:100]) from None


def _rule_snapshot(rule: Rule) -> InspectionRuleSnapshot:
    return InspectionRuleSnapshot(
        rule.name,
        rule.action.value,
        rule.direction.value,
        _match_snapshot(rule.match),
        None if rule.exception is None else _match_snapshot(rule.exception),
        tuple((each.builtin.value if each.builtin else "", each.regex) for each in rule.patterns),
        None if rule.threshold is None else (rule.threshold.count, rule.threshold.period),
        None if rule.rate_limit is None else (rule.rate_limit.count, rule.rate_limit.period),
    )


def _rule(snapshot: InspectionRuleSnapshot) -> Rule:
    return Rule(
        snapshot.name,
        Action(snapshot.action),
        Direction(snapshot.direction),
        _match(snapshot.match),
        None if snapshot.exception is None else _match(snapshot.exception),
        tuple(Pattern(Builtin(name) if name else None, regex) for name, regex in snapshot.patterns),
        None if snapshot.threshold is None else Threshold(*snapshot.threshold),
        None if snapshot.rate_limit is None else RateLimit(*snapshot.rate_limit),
    )


def _match_snapshot(match: Match) -> MatchSnapshot:
    return MatchSnapshot(
        tuple(FilterRow(*row) for row in to_rows(match.filter)),
        tuple(FilterRow("parameter", each.test.value, each.name, each.value) for each in match.parameters),
        match.server_names,
        tuple(map(str, match.sources)),
        match.client_certificates,
        tuple(map(str, match.networks)),
        match.ports,
        match.fingerprints,
    )


def _match(snapshot: MatchSnapshot) -> Match:
    rows = tuple((row.part, row.test, row.name, row.value) for row in snapshot.conditions)
    return Match(
        from_rows(rows),
        tuple(ParameterCondition(row.name, HeaderTest(row.test), row.value) for row in snapshot.parameters),
        snapshot.server_names,
        tuple(map(ip_network, snapshot.sources)),
        snapshot.client_certificates,
        tuple(map(ip_network, snapshot.networks)),
        snapshot.ports,
        snapshot.fingerprints,
    )
