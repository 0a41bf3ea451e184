"""Judges requests and responses by inspection policies. Pure: no socket, no clock; `now` is an argument.

    Inspection(policies)           all accepted policies (`accepted_policy`) of a port; made anew when one changes
      .connection(facts)           what is known of a connection decides which rules can apply to it at all
        .request(method, target, fields, now)    judges a request's head, and returns its `Exchange`
          .request_body(data, now), .request_end(now), .response_head(fields, now), .response_body(...), ...

Each step returns the hits that are new, and `Exchange.verdict` has all of them. The strictest outcome of all hits
counts. No policy is asked about another, so a further policy can only add hits: a namespace tightens what the cluster's
baseline says, and cannot weaken it, and an exception is one of its own rule only.

A rule counts once in an exchange. Patterns are searched for in the head and in the body of the rule's direction. The
same rules apply however the body is cut into reads (`policy.pattern_set`); which of several is told first, and which of
its patterns is named, may differ. Bodies are searched as they are given: whoever calls decodes gzip and deflate, bounds
what is read, and calls `request_end` after each message of a stream of messages.

What a policy cannot look at is told in `Exchange.unread`; under `failurePolicy: Fail` the caller closes.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_network

from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Direction, ExistingConnections, Redaction
from sidestep.policy.accepted_policy import AcceptedPolicy, CompiledRule, Outcome
from sidestep.policy.inspection_match import (
    Address,
    ConnectionFacts,
    RequestFacts,
    plain_address,
    request_text,
    text_of,
)
from sidestep.policy.pattern_set import Findings, PatternSet, Scan
from sidestep.policy.route import Fields
from sidestep.policy.sliding_counts import SlidingCounts

CLIENT_PREFIX = 64
"""Bits of an IPv6 address that name a client in thresholds: whoever has one address has all of its /64 (RFC 4291)."""


class Unread(enum.StrEnum):
    """Why part of an exchange was not looked at."""

    PARAMETERS = "too-many-query-parameters"
    CANDIDATES = "too-many-pattern-candidates"


@dataclass(frozen=True, slots=True)
class Hit:
    """One rule that applies to an exchange.

    `would_block`: a policy in Detect mode would block if it enforced; the outcome is ALERT. `told` is false beyond the
    rule's rate limit. `pattern` names the built-in pattern or the regex that was found, and is empty without one; what
    it was found in is never part of a hit.
    """

    policy: str
    rule: str
    outcome: Outcome
    would_block: bool = False
    told: bool = True
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The hits of an exchange so far, in the order in which they were found."""

    hits: tuple[Hit, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The strictest outcome of all hits."""
        return max((hit.outcome for hit in self.hits), default=Outcome.PASS)

    @property
    def blocker(self) -> Hit | None:
        """The first hit that blocks, which the answer names."""
        return next((hit for hit in self.hits if hit.outcome is Outcome.BLOCK), None)


_NO_HITS = Verdict()


class Inspection:
    """All policies of a port. Raises ConfigurationError for two of one name.

    `thresholds` and `limits` outlive the policies: whoever makes a new Inspection hands them on.
    """

    def __init__(
        self,
        policies: Sequence[AcceptedPolicy],
        *,
        thresholds: SlidingCounts | None = None,
        limits: SlidingCounts | None = None,
    ) -> None:
        self.policies = tuple(sorted(policies, key=lambda each: each.policy.order))
        if len({each.policy.display for each in policies}) < len(policies):
            raise ConfigurationError("two inspection policies of one name on one port")
        self.thresholds = SlidingCounts() if thresholds is None else thresholds
        self.limits = SlidingCounts() if limits is None else limits

    @property
    def closes(self) -> bool:
        """Whether what cannot be inspected is closed: one policy that enforces wants it."""
        return any(each.policy.closes for each in self.policies)

    @property
    def resets_existing(self) -> bool:
        """Whether older connections are reset: one policy wants it."""
        return any(each.policy.existing_connections is ExistingConnections.RESET for each in self.policies)

    @property
    def sample_percent(self) -> float:
        """The share of requests without a hit that is logged: what the most curious policy wants."""
        return max((each.policy.sample_percent for each in self.policies), default=0.0)

    @property
    def redaction(self) -> Redaction:
        """What is left out of records: what any policy wants left out."""
        all_of_them = [each.policy.redaction for each in self.policies]
        names = dict.fromkeys(name for each in all_of_them for name in each.headers)
        return Redaction(not all_of_them or any(each.query_values for each in all_of_them), tuple(names))

    def connection(self, facts: ConnectionFacts) -> InspectedConnection:
        """Begin with a connection, once its TLS handshakes are done."""
        return InspectedConnection(self, facts)


class InspectedConnection:
    """The rules that can apply to one connection."""

    __slots__ = ("_policies", "client", "facts", "inspection")

    def __init__(self, inspection: Inspection, facts: ConnectionFacts) -> None:
        self.inspection = inspection
        self.facts = facts
        self.client = _client(facts.client)
        self._policies = []
        for policy in inspection.policies:
            active = [rule.on_connection(facts) for rule in policy.rules]
            if any(active):
                always = [index for index in policy.always if active[index]]
                waiting = [policy.rules[index] for index in always if policy.rules[index].only_patterns]
                always = [index for index in always if not policy.rules[index].only_patterns]
                self._policies.append((policy, active, always, waiting))

    def request(self, method: bytes, target: bytes, fields: Fields, now: float) -> Exchange:
        """Judge the head of a request: `target` is its path and query as sent, `fields` include `host`."""
        text = request_text(target, fields)
        exchange = None
        for policy, active, always, waiting in self._policies:
            places = policy.request_set.find(text)
            if not places and not always and not waiting:
                continue
            candidates: Sequence[int] = always
            findings = Findings()
            if places:
                needles = policy.request_set.judge_head(places, text, findings)
                candidates = sorted(
                    {index for place in needles if active[index := policy.of_needle[place]]} | {*always}
                )
            if candidates or waiting:
                if exchange is None:
                    exchange = Exchange(self, method, target, fields)
                exchange.begin(policy, candidates, waiting, findings, now)
        return _NOTHING if exchange is None else exchange


def _client(address: Address | None) -> str:
    """What thresholds take for one client."""
    if address is None:
        return ""
    plain = plain_address(address)
    if isinstance(plain, IPv6Address):
        return str(ip_network((int(plain), CLIENT_PREFIX), strict=False))
    return str(plain)


class _Half:
    """The rules of one policy that may still apply to one half of an exchange, for want of a pattern."""

    __slots__ = ("findings", "patterns", "rules", "scan")

    def __init__(self, rules: list[CompiledRule], patterns: PatternSet, findings: Findings) -> None:
        self.rules = rules
        self.patterns = patterns
        self.findings = findings
        self.scan: Scan | None = None
        """Of the body; made when there is one."""


class Exchange:
    """One request and its response."""

    __slots__ = ("_connection", "_facts", "_head", "_of_response", "_requests", "_responses", "unread", "verdict")

    def __init__(self, connection: InspectedConnection, method: bytes, target: bytes, fields: Fields) -> None:
        self._connection = connection
        self._head = (method, target, fields)
        self._facts: RequestFacts | None = None
        self._requests: list[_Half] = []
        self._of_response: list[tuple[AcceptedPolicy, list[CompiledRule]]] = []
        self._responses: list[_Half] = []
        self.verdict = _NO_HITS
        self.unread: frozenset[Unread] = frozenset()

    @property
    def facts(self) -> RequestFacts:
        """The request's head, prepared for conditions."""
        if self._facts is None:
            self._facts = RequestFacts(*self._head)
        return self._facts

    @property
    def reads_request(self) -> bool:
        """Whether a rule wants the request's body."""
        return bool(self._requests)

    @property
    def holds_request(self) -> bool:
        """Whether the request's body may lead to its being blocked."""
        return any(rule.blocks for half in self._requests for rule in half.rules)

    @property
    def reads_response(self) -> bool:
        """Whether a rule wants the response: its head, or once that was given its body."""
        return bool(self._of_response or self._responses)

    @property
    def holds_response(self) -> bool:
        """Whether what is left of the response may lead to its being blocked."""
        rules = [rule for _, each in self._of_response for rule in each]
        rules += [rule for half in self._responses for rule in half.rules]
        return any(rule.blocks for rule in rules)

    def begin(
        self,
        policy: AcceptedPolicy,
        candidates: Sequence[int],
        unconditional: Sequence[CompiledRule],
        findings: Findings,
        now: float,
    ) -> None:
        """Judge the request's head by some rules of a policy; `findings` are those of its patterns in the head.

        `unconditional` rules only want a pattern to be found.
        """
        waiting = [*unconditional]
        later: list[CompiledRule] = []
        for index in candidates:
            rule = policy.rules[index]
            if not rule.on_request(self.facts, self._connection.facts):
                continue
            if rule.rule.direction is Direction.RESPONSE:
                later.append(rule)
            elif rule.numbers:
                waiting.append(rule)
            else:
                self._hit(rule, "", now)
        if self._facts is not None and self._facts.too_many_parameters:
            self.unread |= {Unread.PARAMETERS}
        if later:
            self._of_response.append((policy, later))
        if waiting:
            half = _Half(waiting, policy.request_set, findings)
            self._settle(half, now)
            if half.rules:
                self._requests.append(half)

    def request_body(self, data: bytes, now: float) -> tuple[Hit, ...]:
        """Judge the next bytes of the request's body."""
        return self._feed(self._requests, data, now)

    def request_end(self, now: float) -> tuple[Hit, ...]:
        """Judge the end of the request's body, or of one message in it."""
        return self._finish(self._requests, now)

    def response_head(self, fields: Fields, now: float) -> tuple[Hit, ...]:
        """Judge the head of the final response; a further call finds nothing to do."""
        before = len(self.verdict.hits)
        for policy, rules in self._of_response:
            waiting = []
            for rule in rules:
                if not rule.on_response(fields, self.facts, self._connection.facts):
                    continue
                if rule.numbers:
                    waiting.append(rule)
                else:
                    self._hit(rule, "", now)
            if waiting:
                half = _Half(waiting, policy.response_set, Findings())
                policy.response_set.search_head(text_of(fields), half.findings)
                self._settle(half, now)
                if half.rules:
                    self._responses.append(half)
        self._of_response = []
        return self.verdict.hits[before:]

    def response_body(self, data: bytes, now: float) -> tuple[Hit, ...]:
        """Judge the next bytes of the response's body."""
        return self._feed(self._responses, data, now)

    def response_end(self, now: float) -> tuple[Hit, ...]:
        """Judge the end of the response's body, or of one message in it."""
        return self._finish(self._responses, now)

    def _feed(self, halves: list[_Half], data: bytes, now: float) -> tuple[Hit, ...]:
        before = len(self.verdict.hits)
        for half in halves:
            if half.scan is None:
                half.scan = Scan(half.patterns, half.findings)
            for _ in half.scan.windows(data):
                self._settle(half, now)
                if not half.rules:
                    break
            self._apply(half, now)
        halves[:] = [half for half in halves if half.rules]
        return self.verdict.hits[before:]

    def _finish(self, halves: list[_Half], now: float) -> tuple[Hit, ...]:
        before = len(self.verdict.hits)
        for half in halves:
            if half.scan is not None:
                half.scan.finish()
                self._settle(half, now)
        halves[:] = [half for half in halves if half.rules]
        return self.verdict.hits[before:]

    def _settle(self, half: _Half, now: float) -> None:
        """Conclude about a head, a full window or the end of a body."""
        self._apply(half, now)
        if half.rules and half.findings.incomplete:
            self.unread |= {Unread.CANDIDATES}

    def _apply(self, half: _Half, now: float) -> None:
        """Let those rules apply whose patterns were found."""
        if not half.findings.found:
            return
        still = []
        for rule in half.rules:
            if found := rule.numbers & half.findings.found:
                self._hit(rule, str(half.patterns.patterns[min(found)]), now)
            else:
                still.append(rule)
        half.rules = still

    def _hit(self, compiled_rule: CompiledRule, pattern: str, now: float) -> None:
        rule = compiled_rule.rule
        key = (compiled_rule.policy, rule.name)
        inspection = self._connection.inspection
        threshold = rule.threshold
        if threshold is not None:
            of_client = (*key, self._connection.client)
            if not inspection.thresholds.reaches(of_client, threshold.count, threshold.period, now):
                return
        limit = rule.rate_limit
        told = limit is None or inspection.limits.admits(key, limit.count, limit.period, now)
        hit = Hit(*key, compiled_rule.outcome, compiled_rule.would_block, told, pattern)
        self.verdict = replace(self.verdict, hits=(*self.verdict.hits, hit))


_NOTHING = Exchange(InspectedConnection(Inspection(()), ConnectionFacts()), b"", b"", ())
"""The exchange to which no rule can apply any more. It is shared, because nothing in it ever changes."""
