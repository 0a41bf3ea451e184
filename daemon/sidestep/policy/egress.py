"""Judges the connections that a pod makes, by the `egress` blocks of all policies that select it. Pure.

Three questions, in the order in which their answers become known:

    steers      may any destination be meant? By address and port, which connect(2) has. No: nobody touches it
    treatment   which policies apply, and how far is it opened? By these and the name: the SNI, or the Host of HTTP
    verdict     which rules apply? By these and the fingerprints of the ClientHello

Invariants
  * Policies add up, and the strictest wins, one question at a time: a connection is opened, closed or blocked if one
    policy wants it. No policy and no destination takes anything from another, so those of a namespace cannot weaken
    those of the cluster.
  * `Originate` is about clear HTTP and `Decrypt` about TLS. One does not imply the other; where different destinations
    of a connection have both, both hold.
  * A name is what the client says. A destination with names is not meant by a connection whose name is not known. The
    policies that might have something else to say of a connection if its name were certain are told apart
    (`Treatment.doubtful`): those that fail closed close it.
  * A rule that looks at the connection alone is judged once, before anything is relayed. Any other is left to whoever
    reads the requests; on TLS that is not opened it never applies. Of HTTP that stays in clear each request is judged
    by all rules, by the host that it is for (`outbound_hosts`).

A destination without networks is every external address. External is what is routed on the internet: neither loopback,
link-local, multicast and the like, nor the ranges for private networks, which clusters take their pods' and Services'
addresses from. Private addresses outside the cluster are named by `networks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Final

import msgspec
from msgspec.structs import replace

from sidestep.model.egress import HTTPS, Destination, EgressMode, Network, Quic
from sidestep.model.inspection import Egress, InspectionPolicy, Rule
from sidestep.policy.accepted_policy import AcceptedPolicy, CompiledRule, accept
from sidestep.policy.inspected_exchange import Verdict
from sidestep.policy.inspection import Inspection
from sidestep.policy.inspection_match import Address, ConnectionFacts, is_in, names_server
from sidestep.policy.sliding_counts import SlidingCounts
from sidestep.snapshots.waf import PortWaf

INTERNAL: Final[tuple[Network, ...]] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network (RFC 791, 3.2)
            "10.0.0.0/8",  # private (RFC 1918)
            "100.64.0.0/10",  # shared (RFC 6598)
            "127.0.0.0/8",  # loopback (RFC 1122, 3.2.1.3)
            "169.254.0.0/16",  # link-local (RFC 3927)
            "172.16.0.0/12",  # private
            "192.168.0.0/16",  # private
            "224.0.0.0/3",  # multicast (RFC 5771), reserved, broadcast
            "::/127",  # unspecified and loopback (RFC 4291)
            "fc00::/7",  # unique local (RFC 4193)
            "fe80::/10",  # link-local
            "ff00::/8",  # multicast
        ),
    )
)


def is_external(address: Address) -> bool:
    """Whether an address is one of the internet's."""
    return not is_in(address, INTERNAL)


class EgressPolicy(msgspec.Struct, frozen=True, eq=False):
    """The `egress` of one accepted policy: `of_connection` has the rules that look at connections alone, `of_requests`
    all others, and `whole` both. `waf` is its firewall, None without one. Compared by identity.
    """

    egress: Egress
    of_connection: AcceptedPolicy
    of_requests: AcceptedPolicy
    whole: AcceptedPolicy
    waf: PortWaf | None = None

    @property
    def looks_at_names(self) -> bool:
        """Whether a rule depends on the name of a connection, or on its ClientHello."""
        return any(_looks_at_names(each.rule) for each in self.of_connection.rules)

    @property
    def looks_at_requests(self) -> bool:
        """Whether a rule looks at requests, or at answers to them, or the firewall does."""
        return bool(self.of_requests.rules) or self.waf is not None

    @property
    def looks_at_fingerprints(self) -> bool:
        """Whether a rule depends on the fingerprints of a ClientHello, which take some 0.1 ms to make."""
        rules = (each.rule for each in (*self.of_connection.rules, *self.of_requests.rules))
        return any(each.fingerprints for rule in rules for each in (rule.match, rule.exception) if each is not None)

    @property
    def policy(self) -> InspectionPolicy:
        """The policy, as `InspectionPolicy.outward`, with the rules that look at connections alone."""
        return self.of_connection.policy


def compile_egress(policy: InspectionPolicy, egress: Egress, waf: PortWaf | None = None) -> EgressPolicy:
    """Compile a policy that was accepted. `policy` has the form of `InspectionPolicy.outward`, `waf` is its firewall.

    Raises ConfigurationError for one that was not.
    """
    alone = tuple(rule for rule in egress.rules if rule.of_connection)
    others = tuple(rule for rule in egress.rules if not rule.of_connection)
    of_connection, of_requests = accept(replace(policy, rules=alone)), accept(replace(policy, rules=others))
    if alone and others:
        return EgressPolicy(egress, of_connection, of_requests, accept(replace(policy, rules=egress.rules)), waf)
    return EgressPolicy(egress, of_connection, of_requests, of_connection if alone else of_requests, waf)


def address_rules(written: Iterable[tuple[InspectionPolicy, Egress]]) -> EgressPolicies:
    """Policies with what `blocks_address` asks about, and no other rule: regexes of others are not compiled.

    Raises ConfigurationError as `compile_egress`.
    """
    return EgressPolicies(
        [
            compile_egress(policy, replace(egress, rules=tuple(each for each in egress.rules if each.of_connection)))
            for policy, egress in written
        ]
    )


class Treatment(msgspec.Struct, frozen=True):
    """What becomes of one connection, before its rules are asked.

    `policies` apply to it. `doubtful` might, if its name were known. Nothing applies where both are empty.
    `originator` and `decryptor` are the first of `policies` that want its clear HTTP, or its TLS, to be opened; what
    they say of authorities holds for the connection. Those of the cluster come first.
    """

    policies: tuple[EgressPolicy, ...] = ()
    doubtful: tuple[EgressPolicy, ...] = ()
    originator: EgressPolicy | None = None
    decryptor: EgressPolicy | None = None

    @property
    def originates(self) -> bool:
        """Whether clear HTTP is opened."""
        return self.originator is not None

    @property
    def decrypts(self) -> bool:
        """Whether TLS is opened."""
        return self.decryptor is not None

    @property
    def closes_unread(self) -> bool:
        """Whether it is closed if it cannot be opened as far as it should be: a policy that applies wants that."""
        return any(each.policy.closes for each in self.policies)

    @property
    def closes_unnamed(self) -> bool:
        """Whether it is closed because its name is not known."""
        return any(each.policy.closes for each in self.doubtful)


REMEMBERED: Final = 1024
"""Kinds of connections of which is remembered what becomes of them. Clients choose names, so this is a bound."""
_NO_HITS: Final = Verdict()


class EgressPolicies:
    """All policies of a pod. `thresholds` and `limits` outlive them: whoever makes new ones hands them on."""

    def __init__(
        self,
        policies: Sequence[EgressPolicy],
        *,
        thresholds: SlidingCounts | None = None,
        limits: SlidingCounts | None = None,
    ) -> None:
        self.policies = tuple(sorted(policies, key=lambda each: each.policy.order))
        self.thresholds = SlidingCounts() if thresholds is None else thresholds
        self.limits = SlidingCounts() if limits is None else limits
        self._inspections: dict[tuple[EgressPolicy, ...], Inspection] = {}
        self._treatments: dict[tuple[Address, int, str, bool], Treatment] = {}
        self._clean: dict[ConnectionFacts, None] = {}
        """Connections to which no rule applied, if all policies were asked; of both at most REMEMBERED."""
        self.may_block_addresses = any(
            _blocks_addresses(rule) for each in self.policies for rule in each.of_connection.rules
        )
        """Whether `blocks_address` can be true of any connection: no need to ask otherwise."""
        self.looks_at_fingerprints = any(each.looks_at_fingerprints for each in self.policies)

    def steers(self, address: Address, port: int) -> bool:
        """Whether some destination may be meant by a connection to this address and port, whatever its name is."""
        return any(_reaches(each, address, port) for policy in self.policies for each in policy.egress.destinations)

    def reaching(self, address: Address, port: int) -> tuple[EgressPolicy, ...]:
        """The policies of which a destination may be meant, whatever the name is."""
        return tuple(
            policy
            for policy in self.policies
            if any(_reaches(each, address, port) for each in policy.egress.destinations)
        )

    def originating(self, address: Address, port: int, name: str) -> list[EgressPolicy]:
        """The policies that may mean a destination whose clear HTTP is to leave in TLS; `name` may be empty."""
        return [
            policy
            for policy in self.policies
            if any(
                each.mode is EgressMode.ORIGINATE
                and _reaches(each, address, port)
                and (not each.names or not name or names_server(each.names, name))
                for each in policy.egress.destinations
            )
        ]

    def blocks_quic(self, address: Address, port: int) -> bool:
        """Whether a datagram to this address and port is refused, so that clients use TCP."""
        return port == HTTPS and any(
            policy.egress.quic is Quic.BLOCK
            and any(_reaches(each, address, port) for each in policy.egress.destinations)
            for policy in self.policies
        )

    def treatment(self, address: Address, port: int, name: str = "", *, is_certain: bool = True) -> Treatment:
        """Decide how a connection is treated. `name` is empty if it is not known; one may be known and not certain."""
        key = address, port, name, is_certain
        found = self._treatments.get(key)
        if found is None:
            if len(self._treatments) >= REMEMBERED:
                self._treatments.clear()
            found = self._treatments[key] = self._treat(address, port, name, is_certain=is_certain)
        return found

    def _treat(self, address: Address, port: int, name: str, *, is_certain: bool) -> Treatment:
        doubts = not name or not is_certain
        applying, doubtful = [], []
        opening: dict[EgressMode, EgressPolicy] = {}
        for policy in self.policies:
            reached = [each for each in policy.egress.destinations if _reaches(each, address, port)]
            meant = [each for each in reached if not each.names or (name and names_server(each.names, name))]
            if meant:
                applying.append(policy)
                for each in meant:
                    opening.setdefault(each.mode, policy)
            if doubts and (any(each.names for each in reached) or (meant and policy.looks_at_names)):
                doubtful.append(policy)
        originator, decryptor = opening.get(EgressMode.ORIGINATE), opening.get(EgressMode.DECRYPT)
        return Treatment(tuple(applying), tuple(doubtful), originator, decryptor)

    def blocks_address(self, treatment: Treatment, facts: ConnectionFacts) -> bool:
        """Whether a rule blocks a connection whatever its name and its ClientHello are. Counts nothing."""
        return any(
            _blocks_addresses(rule) and rule.on_connection(facts)
            for each in treatment.policies
            for rule in each.of_connection.rules
        )

    def verdict(self, treatment: Treatment, facts: ConnectionFacts, now: float) -> Verdict:
        """Judge a connection by the rules of the policies that apply to it which look at connections alone."""
        if facts in self._clean:
            return _NO_HITS
        judging = treatment.policies
        if not any(rule.on_connection(facts) for each in judging for rule in each.of_connection.rules):
            if judging == self.policies and not facts.fingerprints:  # else what applies depends on more than the facts
                if len(self._clean) >= REMEMBERED:
                    self._clean.clear()
                self._clean[facts] = None
            return _NO_HITS  # as for most connections: the rest costs as much again
        inspection = self._inspections.get(judging)
        if inspection is None:
            # As many as there are sets of policies that destinations tell apart, each a few pointers.
            inspection = self._inspections[judging] = Inspection(
                [each.of_connection for each in judging], thresholds=self.thresholds, limits=self.limits
            )
        return inspection.connection(facts).request(b"", b"", (), now).verdict


def _blocks_addresses(rule: CompiledRule) -> bool:
    """Whether a rule blocks connections by their address and port alone."""
    return rule.blocks and rule.rule.threshold is None and not _looks_at_names(rule.rule)


def _looks_at_names(rule: Rule) -> bool:
    """Whether it depends on the name or the ClientHello of a connection whether a rule applies."""
    return any(each.server_names or each.fingerprints for each in (rule.match, rule.exception) if each is not None)


def _reaches(destination: Destination, address: Address, port: int) -> bool:
    """Whether a destination may be meant by a connection to this address and port."""
    if destination.ports and port not in destination.ports:
        return False
    return is_in(address, destination.networks) if destination.networks else is_external(address)
