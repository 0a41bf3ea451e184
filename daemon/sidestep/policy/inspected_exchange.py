"""One request and its response as the rules of a port's policies see them: what applies, and what is wanted next.

Made and begun by `inspection.InspectedConnection.request`; then given the parts of the exchange in order. A rule that
waits for a pattern is in one `_Half` per policy, until it applies or the half is over.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from sidestep.model.inspection import Direction
from sidestep.policy.accepted_policy import AcceptedPolicy, CompiledRule, Outcome
from sidestep.policy.body_views import BodyViews, Doubt, View
from sidestep.policy.inspection_match import ConnectionFacts, RequestFacts, text_of
from sidestep.policy.pattern_set import Findings, PatternSet, Scan
from sidestep.policy.route import Fields
from sidestep.policy.sliding_counts import SlidingCounts

VIEWED = 128 * 1024
"""Bytes of a request's body that are searched in further views: twice what is held for a verdict."""


class Unread(enum.StrEnum):
    """Why part of an exchange was not looked at."""

    PARAMETERS = "too-many-query-parameters"
    CANDIDATES = "too-many-pattern-candidates"
    PATHS = "too-many-path-forms"
    HOST = "another-host"
    NAME = "server-name"
    CHARSET = Doubt.CHARSET.value
    PARTS = Doubt.PARTS.value


class Hit(msgspec.Struct, frozen=True):
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


class Verdict(msgspec.Struct, frozen=True):
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
_AS_SENT = (False, View.SENT)


class Counts(Protocol):
    """What exchanges of all connections to a port share."""

    thresholds: SlidingCounts
    limits: SlidingCounts


class Connection(Protocol):
    """What an exchange takes from its connection. `client` is what thresholds take for one."""

    facts: ConnectionFacts
    client: str
    closing: str
    """The policy that refuses what is in doubt although the connection's others pass it; empty if none does."""

    @property
    def inspection(self) -> Counts:
        """The policies of the port."""


class _Half:
    """The rules of one policy that may still apply to one half of an exchange, for want of a pattern."""

    __slots__ = ("findings", "patterns", "rules", "scans")

    def __init__(self, rules: list[CompiledRule], patterns: PatternSet, findings: Findings) -> None:
        self.rules = rules
        self.patterns = patterns
        self.findings = findings
        self.scans: dict[tuple[bool, View], Scan] = {}
        """Of the body's views; made when there is something in them. The body itself and its encoded form have each
        their own."""


class Exchange:
    """One request and its response."""

    __slots__ = (
        "_connection", "_facts", "_head", "_of_response", "_requests", "_responses", "_views", "matched", "unread",
        "verdict",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        method: bytes,
        target: bytes,
        fields: Fields,
        paths: tuple[bytes, ...] = (),
    ) -> None:
        self._connection = connection
        self._head = (method, target, fields, paths)
        self._facts: RequestFacts | None = None
        self._requests: list[_Half] = []
        self._of_response: list[tuple[AcceptedPolicy, list[CompiledRule]]] = []
        self._responses: list[_Half] = []
        self._views: dict[bool, BodyViews] = {}
        self.verdict = _NO_HITS
        self.matched = False
        """A rule has applied, be it below its threshold."""
        self.unread: frozenset[Unread] = frozenset()

    @property
    def facts(self) -> RequestFacts:
        """The request's head, prepared for conditions."""
        if self._facts is None:
            self._facts = RequestFacts(*self._head)
        return self._facts

    @property
    def closing(self) -> str:
        """As `Connection.closing`."""
        return self._connection.closing

    @property
    def reads_request(self) -> bool:
        """Whether a rule wants the request's body."""
        return bool(self._requests)

    @property
    def holds_request(self) -> bool:
        """Whether the request's body may lead to its being blocked."""
        for half in self._requests:  # asked for each read of a body, several times
            for rule in half.rules:
                if rule.blocks:
                    return True
        return False

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

    @property
    def held(self) -> int:
        """Bytes of bodies that are in memory, to be searched together with what follows them."""
        held = 0
        for half in (*self._requests, *self._responses):  # likewise
            for scan in half.scans.values():
                held += scan.held
        for views in self._views.values():
            held += views.held
        return held

    def give_up(self) -> None:
        """Look at nothing further."""
        self._requests, self._responses, self._of_response = [], [], []
        self._views = {}

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

    def request_body(self, data: bytes, now: float, *, encoded: bool = False) -> tuple[Hit, ...]:
        """Judge the next bytes of the request's body.

        `encoded`: as they were sent, if that differs from what they decode to. Apps that do not know an encoding read
        the body as it is, so both are judged.
        """
        before = len(self.verdict.hits)
        self._feed(self._requests, data, now, (encoded, View.SENT))
        if self._requests:
            if encoded not in self._views:
                self._views[encoded] = BodyViews(VIEWED, self._head[2])
            views = self._views[encoded]
            for view, text in views.feed(data):
                self._feed(self._requests, text, now, (encoded, view))
            if views.doubts and self._requests:
                self.unread |= {Unread(doubt.value) for doubt in views.doubts}
        return self.verdict.hits[before:]

    def request_end(self, now: float, *, of_message: bool = False) -> tuple[Hit, ...]:
        """Judge the end of the request's body, or of one message in it; as it was sent it goes on then."""
        before = len(self.verdict.hits)
        for encoded, views in self._views.items():
            if not (encoded and of_message):
                for view, text in views.finish():
                    self._feed(self._requests, text, now, (encoded, view))
        self._finish(self._requests, now, of_message=of_message)
        return self.verdict.hits[before:]

    def request_so_far(self, now: float) -> tuple[Hit, ...]:
        """Judge what has come of the request's body, because it is passed on before it is whole; more may follow."""
        before = len(self.verdict.hits)
        for half in self._requests:
            for scan in half.scans.values():
                scan.look()
            self._apply(half, now)
        self._requests[:] = [half for half in self._requests if half.rules]
        return self.verdict.hits[before:]

    def response_interim(self, fields: Fields, now: float) -> tuple[Hit, ...]:
        """Judge the head of an informational response (1xx) by rules that look for patterns; more heads follow.

        A rule without patterns is about the final head.
        """
        before = len(self.verdict.hits)
        text = text_of(fields)
        for policy, rules in self._of_response:
            patterns = policy.response_set
            found = Findings()
            patterns.search_head(text, found)
            for rule in [*rules]:
                known = rule.numbers & found.found
                if known and rule.on_response(fields, self.facts, self._connection.facts):
                    self._hit(rule, str(patterns.patterns[min(known)]), now)
                    rules.remove(rule)
        self._of_response = [(policy, rules) for policy, rules in self._of_response if rules]
        return self.verdict.hits[before:]

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
        return self._feed(self._responses, data, now, _AS_SENT)

    def response_end(self, now: float) -> tuple[Hit, ...]:
        """Judge the end of the response's body, or of one message in it."""
        return self._finish(self._responses, now)

    def _feed(self, halves: list[_Half], data: bytes, now: float, text: tuple[bool, View]) -> tuple[Hit, ...]:
        before = len(self.verdict.hits)
        for half in halves:
            scan = half.scans.get(text)
            if scan is None:
                scan = half.scans[text] = Scan(half.patterns, half.findings)
            for _ in scan.windows(data):
                self._settle(half, now)
                if not half.rules:
                    break
            self._apply(half, now)
        halves[:] = [half for half in halves if half.rules]
        return self.verdict.hits[before:]

    def _finish(self, halves: list[_Half], now: float, *, of_message: bool = False) -> tuple[Hit, ...]:
        before = len(self.verdict.hits)
        for half in halves:
            for (encoded, _), scan in half.scans.items():
                if not (encoded and of_message):
                    scan.finish()
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
        self.matched = True
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
