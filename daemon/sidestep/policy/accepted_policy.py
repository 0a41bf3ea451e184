"""Compiles an inspection policy, and refuses one that cannot be used.

A policy is accepted once, by `accept`: its regexes are compiled and probed (`pattern_probe`), its conditions become
closures, and its patterns, together with the needles of its rules, become one RE2 set for requests and one for
responses. The result is immutable, and shared by all connections.
"""

from __future__ import annotations

import enum

from sidestep.config.field_error import FieldError
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Action, Direction, InspectionPolicy, Mode, Pattern, Rule
from sidestep.policy.inspection_match import (
    HTTP1_HEAD,
    HTTP2_HEAD,
    CompiledMatch,
    ConnectionFacts,
    HeadForm,
    RequestFacts,
    head_needle,
    needle,
    regexes_of,
    rough_needle,
)
from sidestep.policy.pattern_probe import Clock, check_cost
from sidestep.policy.pattern_set import PatternSet
from sidestep.policy.regex_set import MAX_INSTRUCTIONS, MAX_MEMORY, RegexError, RegexSet, compiled
from sidestep.policy.route import Fields

MAX_REGEXES = 512
"""Regexes of one policy: of its patterns, and in its matches and exceptions."""


class Outcome(enum.IntEnum):
    """What a hit asks for, from lenient to strict."""

    PASS = 0
    LOG = 1
    ALERT = 2
    BLOCK = 3


_OUTCOMES = {Action.LOG: Outcome.LOG, Action.ALERT: Outcome.ALERT, Action.BLOCK: Outcome.BLOCK}


class CompiledRule:
    """A rule with its conditions compiled. `numbers` are those of its patterns in the set of its direction."""

    __slots__ = ("blocks", "exception", "match", "numbers", "only_patterns", "outcome", "policy", "rule", "would_block")

    def __init__(self, rule: Rule, policy: InspectionPolicy, numbers: frozenset[int]) -> None:
        self.rule = rule
        self.policy = policy.display
        self.numbers = numbers
        of_response = rule.direction is Direction.RESPONSE
        self.match = CompiledMatch(rule.match, of_exception=False, of_response=of_response)
        self.exception = None
        if rule.exception is not None:
            self.exception = CompiledMatch(rule.exception, of_exception=True, of_response=of_response)
        undecided = self.match.on_request or (self.exception is not None and self.exception.on_request)
        self.only_patterns = bool(numbers) and not of_response and not undecided
        """Whether all else is decided once the connection is known."""
        self.would_block = rule.action is Action.BLOCK and policy.mode is Mode.DETECT
        self.outcome = Outcome.ALERT if self.would_block else _OUTCOMES[rule.action]
        self.blocks = self.outcome is Outcome.BLOCK

    def on_connection(self, facts: ConnectionFacts) -> bool:
        """Whether the rule can apply to requests of a connection."""
        if self.match.on_connection and not self.match.connection(facts):
            return False
        exception = self.exception
        if exception is None or exception.on_request or exception.on_response:
            return True
        return not exception.connection(facts)

    def on_request(self, facts: RequestFacts, connection: ConnectionFacts) -> bool:
        """Whether the conditions on the request hold, and no exception is certain yet."""
        if self.match.on_request and not self.match.request(facts):
            return False
        exception = self.exception
        if exception is None or exception.on_response or not exception.on_request:
            return True
        return not (exception.connection(connection) and exception.request(facts))

    def on_response(self, fields: Fields, facts: RequestFacts, connection: ConnectionFacts) -> bool:
        """Whether the conditions on the response hold, and the exception does not."""
        if self.match.on_response and not self.match.response(fields):
            return False
        exception = self.exception
        if exception is None or not exception.on_response:
            return True
        return not (exception.connection(connection) and exception.request(facts) and exception.response(fields))


class AcceptedPolicy:
    """A policy whose rules are compiled.

    `cost`: microseconds per KiB of hostile text that its regexes need; `instructions`: of RE2's programs for them.
    Errors name fields by `rules`, the path of the rules. `outward` is what the policy says of connections that pods
    make, compiled in the same way; None if it says nothing of them.
    """

    def __init__(self, policy: InspectionPolicy, clock: Clock | None, rules: str = "spec.rules") -> None:
        self.policy = policy
        self.instructions = _instructions(policy, rules)
        halves = {direction: _patterns(policy, direction) for direction in Direction}
        self.rules = tuple(
            CompiledRule(rule, policy, frozenset(halves[rule.direction].index(each) for each in rule.patterns))
            for rule in policy.rules
        )
        needles = [needle(rule.match, of_response=rule.direction is Direction.RESPONSE) for rule in policy.rules]
        sought = [(index, each) for index, each in enumerate(needles) if each is not None]
        self.request_set = PatternSet(
            halves[Direction.REQUEST], needles=[each for _, each in sought], room=MAX_MEMORY // 2
        )
        self.response_set = PatternSet(halves[Direction.RESPONSE], room=MAX_MEMORY // 2)
        self.of_needle = tuple(index for index, _ in sought)
        """The rule of each needle ..."""
        self.always = tuple(index for index, each in enumerate(needles) if each is None)
        """... and those rules that have none: they are evaluated for every request."""
        rough = [rough_needle(rule.match, of_response=rule.direction is Direction.RESPONSE) for rule in policy.rules]
        raw = [each for each, _ in rough if each is not None]
        self.target_set = RegexSet([], raw=raw, room=MAX_MEMORY // 2)
        """The needles of those rules that have one in the target ..."""
        self.field_names = tuple(dict.fromkeys(b"\n" + name + b":" for _, name in rough if name))
        """... and the fields that requests have to which others apply, as in a head in lower case with - for _."""
        self.head_needles = {form: _head_needles(policy, form) for form in (HTTP1_HEAD, HTTP2_HEAD)}
        """The same as regexes for whole heads, by their form."""
        matches = [each for rule in policy.rules for each in (rule.match, rule.exception) if each is not None]
        self.judges_paths = any(each.filter.paths for each in matches)
        """Some rule is about paths."""
        self.cost = 0.0 if clock is None else self._checked_cost(clock)
        outward = policy.outward
        self.outward = None if outward is None else AcceptedPolicy(outward, clock, "spec.egress.rules")

    def _checked_cost(self, clock: Clock) -> float:
        regexes = [Pattern(regex=regex) for _, regex in _regexes_of_matches(self.policy, "")]
        sets = (self.request_set, self.response_set, PatternSet(tuple(dict.fromkeys(regexes))))
        return max(check_cost(each, clock) for each in sets)


def accept(policy: InspectionPolicy, clock: Clock | None = None) -> AcceptedPolicy:
    """Compile a policy. With a clock of processor time its regexes are probed too, which takes some 50 ms.

    Raises FieldError for a regex that cannot be compiled, ConfigurationError when all are too large or too slow. A
    policy that was accepted elsewhere needs no clock.
    """
    return AcceptedPolicy(policy, clock)


def _head_needles(policy: InspectionPolicy, form: HeadForm) -> tuple[bytes, ...]:
    halves = ((rule.match, rule.direction is Direction.RESPONSE) for rule in policy.rules)
    found = (head_needle(match, form, of_response=of_response) for match, of_response in halves)
    return tuple(dict.fromkeys(each for each in found if each is not None))


def _patterns(policy: InspectionPolicy, direction: Direction) -> list[Pattern]:
    found = [each for rule in policy.rules if rule.direction is direction for each in rule.patterns]
    return list(dict.fromkeys(found))


def _regexes_of_matches(policy: InspectionPolicy, rules: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for index, rule in enumerate(policy.rules):
        found += regexes_of(rule.match, f"{rules}[{index}].match")
        if rule.exception is not None:
            found += regexes_of(rule.exception, f"{rules}[{index}].except")
    return found


def _instructions(policy: InspectionPolicy, rules: str) -> int:
    """The instructions of all regexes of a policy. Raises FieldError, ConfigurationError."""
    regexes = _regexes_of_matches(policy, rules)
    regexes += [
        (f"{rules}[{index}].patterns[{at}].regex", pattern.regex)
        for index, rule in enumerate(policy.rules)
        for at, pattern in enumerate(rule.patterns)
        if pattern.builtin is None
    ]
    if len(regexes) > MAX_REGEXES:
        raise ConfigurationError(f"{len(regexes)} regexes, at most {MAX_REGEXES} are possible in one policy")
    room = MAX_INSTRUCTIONS
    for path, regex in regexes:
        try:
            room -= compiled(regex).programsize
        except RegexError as error:
            raise FieldError(path, str(error)) from None
        if room < 0:
            raise FieldError(path, f"the regexes up to this one compile to more than {MAX_INSTRUCTIONS} instructions")
    return MAX_INSTRUCTIONS - room
