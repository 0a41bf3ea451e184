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
its patterns is named, may differ. Bodies are searched as they are given, and those of requests as apps may decode them
(`policy.body_views`). Whoever calls decodes gzip and deflate, bounds what is read, and calls `request_end` after each
message of a stream of messages.

What a policy cannot look at is told in `Exchange.unread`; under `failurePolicy: Fail` the caller closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from typing import Any, Final

from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Direction, ExistingConnections, Redaction
from sidestep.policy.accepted_policy import AcceptedPolicy
from sidestep.policy.body_views import whole_texts
from sidestep.policy.inspected_exchange import Exchange, Unread
from sidestep.policy.inspection_match import (
    Address,
    ConnectionFacts,
    HeadForm,
    HostFacts,
    host_of,
    is_plain,
    odd_target,
    plain_address,
    plain_target,
    request_text,
)
from sidestep.policy.pattern_set import Findings, PatternSet
from sidestep.policy.route import Fields
from sidestep.policy.sliding_counts import SlidingCounts
from sidestep.snapshots.waf import PortWaf

CLIENT_PREFIX = 64
"""Bits of an IPv6 address that name a client in thresholds: whoever has one address has all of its /64 (RFC 4291)."""


SKIMMED = 64
"""Regexes for heads up to which heads are skimmed for rules: the automaton of more of them may not find room."""
CLEAN_KINDS = 16
"""Kinds of connections (see `InspectedConnection.clean`) that have a memory of heads."""


HOSTS: Final = 256
"""Hosts of requests, by server, of which is remembered which rules can apply."""
_OF_ALL = b"\nhost:"
"""What is sought for rules about a field that all requests have."""


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
        waf: PortWaf | None = None,
        waf_of: Callable[[frozenset[str]], PortWaf | None] | None = None,
    ) -> None:
        self.waf = waf
        """What the policies say of a web application firewall; None: none of them has one."""
        self.waf_of = waf_of
        """What some of them say, by their display, where not all of them apply to each request (`HostFacts`)."""
        self.policies = tuple(sorted(policies, key=lambda each: each.policy.order))
        if len({each.policy.display for each in policies}) < len(policies):
            raise ConfigurationError("two inspection policies of one name on one port")
        self.thresholds = SlidingCounts() if thresholds is None else thresholds
        self.limits = SlidingCounts() if limits is None else limits
        self._clean: dict[tuple[bool, ...], dict[bytes, None]] = {}
        self._asked: dict[tuple[bool, ...], dict[bytes, None]] = {}
        self.hosts: dict[tuple[ConnectionFacts, bytes], InspectedConnection] = {}
        """For `InspectedConnection`: what judges requests for one host, of all connections to one server."""
        self.successor: Inspection | None = None
        """Newer policies of the port."""
        self.is_over = False
        """The port has no policies any more."""
        self.is_outdated = False
        """Other policies, or none, apply now."""
        halves = (half for each in self.policies for half in (each.request_set, each.response_set))
        self._pattern_sets = tuple(half for half in halves if half.patterns)
        self.skimmer: tuple[Any, Any] | None = None
        """For the HTTP/1 relay: the route for which it has made a `Skimmer` with `head_needles` last, and that."""
        self.stream_skimmer: Any = None
        """For the HTTP/2 relay: its `Http2Skimmer` with `head_needles` ..."""
        self.joint_skimmer: tuple[Any, Any] | None = None
        """... and, as `skimmer`, the one that looks for a route's filters as well."""

    def head_needles(self, form: HeadForm, *, leaves_out_always: bool = False) -> tuple[bytes, ...] | None:
        """RE2 regexes for whole heads: to a sound head that none of them matches no rule applies.

        None where most heads would have to be looked at in another way, too. `leaves_out_always`: no rule that can be
        told by its conditions applies; the caller knows of those that look at each request.
        """
        if not leaves_out_always and any(policy.always for policy in self.policies):
            return None
        needles = [each for policy in self.policies for each in policy.head_needles[form]]
        if len(needles) > SKIMMED or any(_OF_ALL in policy.field_names for policy in self.policies):
            return None
        return (*needles, odd_target(form))

    def give_way(self, successor: Inspection | None) -> None:
        """Newer policies apply from now on, or none. Connections that began with these ask `latest` at each request."""
        self.successor, self.is_over, self.is_outdated = successor, successor is None, True
        for memory in (*self._clean.values(), *self._asked.values()):
            memory.clear()
        self.hosts.clear()

    @property
    def latest(self) -> Inspection:
        """What applies to the port now; `is_over` if nothing does."""
        found = self
        while found.successor is not None:
            found = found.successor
        return found

    @property
    def demands(self) -> tuple[bool, bool, bool, bool]:
        """What a relay has to be made for: closing what cannot be read, blocking, reading responses, a firewall."""
        return self.closes, self.enforces, self.judges_responses, self.waf is not None

    def clean_heads(self, kind: tuple[bool, ...]) -> dict[bytes, None] | None:
        """The memory of clean heads that all connections of a kind share; None when there are too many kinds."""
        if kind not in self._clean and len(self._clean) < CLEAN_KINDS:
            self._clean[kind] = {}
        return self._clean.get(kind)

    def asked_heads(self, kind: tuple[bool, ...]) -> dict[bytes, None] | None:
        """The same of heads to which no rule applies, but of which the answer is searched."""
        if kind not in self._asked and len(self._asked) < CLEAN_KINDS:
            self._asked[kind] = {}
        return self._asked.get(kind)

    @property
    def enforces(self) -> bool:
        """Whether some rule, or the firewall, blocks."""
        if self.waf is not None and self.waf.enforces:
            return True
        return any(rule.blocks for each in self.policies for rule in each.rules)

    @property
    def judges_responses(self) -> bool:
        """Whether some rule, or the firewall, is about responses."""
        if self.waf is not None and self.waf.profile.responses:
            return True
        return any(rule.rule.direction is Direction.RESPONSE for each in self.policies for rule in each.rules)

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

    def finds(self, text: bytes) -> bool:
        """Whether a pattern of any rule may be in a text of a head, whatever else the rule asks for."""
        forms, _, is_complete = request_text(text, ())
        return not is_complete or any(half.search(forms).found for half in self._pattern_sets)

    @property
    def has_patterns(self) -> bool:
        """Whether a rule has patterns."""
        return bool(self._pattern_sets)

    def connection(self, facts: ConnectionFacts) -> InspectedConnection:
        """Begin with a connection, once its TLS handshakes are done."""
        return InspectedConnection(self, facts)


class InspectedConnection:
    """The rules that can apply to one connection, or to the requests for one host on it (`ConnectionFacts.hosts`).

    `clean` is for whoever calls: heads for which `request` found nothing to do (`is_nothing`). Whether it does depends
    on the head and on what the rules say of the connection, so all connections of which they say the same share one
    memory. The caller bounds it. None: there is no room for one. `asked` is the same for heads that `clears` where
    `answer_sets` are left to be searched.
    """

    __slots__ = (
        "_policies", "answer_sets", "asked", "clean", "client", "closing", "doubt", "facts", "inspection", "is_quick",
        "is_sampled", "looks_at_all", "may_block_answers", "searches_requests", "waf",
    )  # fmt: skip

    def __init__(self, inspection: Inspection, facts: ConnectionFacts, host: HostFacts | None = None) -> None:
        self.inspection = inspection
        self.facts = facts
        self.doubt = "" if host is None else host.doubt
        """Why no request for the host can be judged as policies want."""
        self.client = _client(facts.client)
        self.waf = inspection.waf
        """What applies to requests of a firewall, None for nothing."""
        if host is not None and inspection.waf_of is not None:
            # A policy that is newer than the connection does not judge it: the relay was not made for its firewall.
            present = (each.policy.display for each in inspection.policies)
            self.waf = inspection.waf_of(host.policies.intersection(present))
        closing = frozenset[str]() if host is None else host.closing
        self.closing = next((each.policy.display for each in inspection.policies if each.policy.display in closing), "")
        """The policy that has requests for the host refused because they are in doubt; empty if none does."""
        self.is_sampled = False
        """Whether a policy that samples applies; where each request is judged by its host `samples` tells."""
        self._policies = []
        kind: list[bool] = []
        for policy in inspection.policies if facts.hosts is None else ():
            if host is not None and policy.policy.display not in host.policies:
                continue
            self.is_sampled |= policy.policy.sample_percent > 0
            active = [rule.on_connection(facts) for rule in policy.rules]
            if host is not None and policy.policy.display in host.judged:
                before = replace(facts, further_names=())
                rules = zip(policy.rules, active, strict=True)
                active = [
                    is_on and not (rule.rule.of_connection and rule.on_connection(before)) for rule, is_on in rules
                ]
            kind += active
            kind += [rule.exception.connection(facts) for rule in policy.rules if rule.exception is not None]
            if any(active):
                always = [index for index in policy.always if active[index]]
                waiting = [policy.rules[index] for index in always if policy.rules[index].only_patterns]
                always = [index for index in always if not policy.rules[index].only_patterns]
                self._policies.append((policy, active, always, waiting))
        self.answer_sets = self._sets_of_answers()
        """The patterns of rules that look at each request, and only for a pattern in its answer. Empty if there is no
        such rule, or one that looks at each request for anything else."""
        self.looks_at_all = facts.hosts is not None or host is not None
        """Each request has to be judged, because it may be for another host."""
        if self.looks_at_all:
            self.answer_sets = ()
        self.asked = inspection.asked_heads(tuple(kind)) if self.answer_sets else None
        self.clean = None if self.looks_at_all else inspection.clean_heads(tuple(kind))
        self.is_quick = not self.looks_at_all and not any(always or waiting for _, _, always, waiting in self._policies)
        """No rule has to look at each request, so that `rules_out` and `rules_out_request` may tell something."""
        self.searches_requests = any(waiting for _, _, _, waiting in self._policies)
        """Some rule looks for a pattern in each request."""
        self.may_block_answers = any(
            policy.rules[index].blocks for policy, _, always, _ in self._policies for index in always
        )
        """Some rule that looks at each request, or its answer, blocks."""

    def _sets_of_answers(self) -> tuple[PatternSet, ...]:
        sets = []
        for policy, _, always, _ in self._policies:
            rules = [policy.rules[index] for index in always]
            if not all(rule.numbers and rule.rule.direction is Direction.RESPONSE for rule in rules):
                return ()
            if rules:
                sets.append(policy.response_set)
        return tuple(sets)

    def rules_out(self, head: bytes) -> bool:
        """Whether no rule can apply to this HTTP/1 head, which was validated; False when that is not certain.

        Much cheaper than reading it and asking `request`: for nearly all heads the target and the names of a few fields
        tell.
        """
        if not self.is_quick or self.inspection.is_outdated:
            return False
        target = plain_target(head)
        if target is None:
            return False
        low = b""
        for policy, _, _, _ in self._policies:
            if policy.target_set.found(target):
                return False
            for name in policy.field_names:
                low = low or head.lower().replace(b"_", b"-")
                if name in low:
                    return False
        return True

    def rules_out_request(self, target: bytes, fields: Fields) -> bool:
        """The same for a valid HTTP/2 head: `target` is its path and query, names of `fields` are in lower case."""
        if not self.is_quick or self.inspection.is_outdated or not is_plain(target):
            return False
        names = b""
        for policy, _, _, _ in self._policies:
            if policy.target_set.found(target):
                return False
            if policy.field_names:
                names = names or b"".join([b"\n" + name + b":" for name, _ in fields]).replace(b"_", b"-")
                if any(name in names for name in policy.field_names):
                    return False
        return True

    def clears(self, target: bytes, fields: Fields, body: bytes = b"", *, searches_answer: bool = False) -> bool:
        """Whether no rule applies to a request that is here, whole; False when that is not certain.

        `searches_answer`: rules that want a pattern in the answer are left out, because the caller searches that for
        `answer_sets`. Only to be set where these are not empty.

        Searches all texts of the request for the needles and patterns of all rules, as `request` and `Exchange` do, but
        makes no exchange and counts nothing. `body` has no encoding, and is no stream of messages.
        """
        text, _, is_complete = request_text(target, fields)
        if not is_complete or self.inspection.is_outdated or self.looks_at_all:
            return False
        sets = []
        for policy, _, always, waiting in self._policies:
            if (always and not searches_answer) or policy.request_set.find(text):
                return False
            if waiting:
                sets.append(policy.request_set)
        if not body or not sets:
            return True
        texts = whole_texts(body, fields)
        return texts is not None and all(each.clears(text) for each in sets for text in texts)

    def of_request(self, fields: Fields) -> InspectedConnection:
        """What judges a request with these fields, which include `host`: this one, unless hosts are told apart."""
        return self if self.facts.hosts is None else self._of_host(host_of(fields), self.facts.hosts)

    def request(self, method: bytes, target: bytes, fields: Fields, now: float) -> Exchange:
        """Judge the head of a request: `target` is its path and query as sent, `fields` include `host`."""
        if self.facts.hosts is not None:
            return self.of_request(fields).request(method, target, fields, now)
        text, paths, is_complete = request_text(target, fields)
        head = method, target, fields, paths
        exchange = None
        if not is_complete and any(policy.judges_paths for policy, _, _, _ in self._policies):
            exchange = Exchange(self, *head)
            exchange.unread |= {Unread.PATHS}
        if self.doubt:
            exchange = exchange or Exchange(self, *head)
            exchange.unread |= {Unread(self.doubt)}
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
                    exchange = Exchange(self, *head)
                exchange.begin(policy, candidates, waiting, findings, now)
        return _NOTHING if exchange is None else exchange

    def samples(self, host: bytes) -> bool:
        """Whether a policy that samples applies to requests with this `Host`, or `:authority`."""
        return self.of_request(((b"host", host),)).is_sampled

    def _of_host(self, host: bytes, hosts: Callable[[bytes], HostFacts]) -> InspectedConnection:
        """Return what judges requests for a host on this connection."""
        known, key = self.inspection.hosts, (self.facts, host)
        found = known.get(key)
        if found is None:
            if len(known) >= HOSTS:
                known.clear()
            told = hosts(host)
            found = known[key] = InspectedConnection(self.inspection, self.facts.of_host(told), told)
        return found


def _client(address: Address | None) -> str:
    """What thresholds take for one client."""
    if address is None:
        return ""
    plain = plain_address(address)
    if isinstance(plain, IPv6Address):
        return str(ip_network((int(plain), CLIENT_PREFIX), strict=False))
    return str(plain)


_NOTHING = Exchange(InspectedConnection(Inspection(()), ConnectionFacts()), b"", b"", ())
"""The exchange to which no rule can apply any more. It is shared, because nothing in it ever changes."""


def is_nothing(exchange: Exchange) -> bool:
    """Whether no rule applies to an exchange, and none can any more."""
    if exchange is _NOTHING:
        return True
    return not (exchange.matched or exchange.reads_request or exchange.reads_response or exchange.unread)
