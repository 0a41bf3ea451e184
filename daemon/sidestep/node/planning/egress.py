"""Which policies apply to the connections that a pod makes, and what the kernel is told to steer for them. Pure.

What the kernel steers is the least that holds all destinations: every network that one of them names, everything
external if one names none, and their ports. The pod proxy decides about each connection (`policy.egress`), and relays
those that no policy means.

What a pod is told is bounded as in `planning.inspection`: beyond MAX_POLICIES policies, MAX_BYTES bytes or MAX_NETWORKS
networks the later ones are left out, and a condition says so. Those of the cluster come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.config.annotations import CertificateSource, SourceKind
from sidestep.node.planning.inspection import MAX_BYTES, MAX_POLICIES
from sidestep.node.planning.plan import CertificateFacts
from sidestep.policy.egress import INTERNAL
from sidestep.policy.survey import CertificateKey, Side, WantedCertificate
from sidestep.policy.waf import alone

if TYPE_CHECKING:
    from sidestep.model.egress import Network, SecretRef
    from sidestep.model.pod import PodKey
    from sidestep.node.planning.inspection import PlannedPolicy
    from sidestep.snapshots.egress import DestinationSnapshot, EgressSnapshot

MAX_NETWORKS: Final = 900
"""Networks of all destinations of one pod; the kernel's map has room for 1,024 prefixes, INTERNAL and the pod's
addresses included."""
MAX_PORTS: Final = 1024
"""Ports that the kernel tells apart; with more, all are steered."""

EVERYTHING: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


class SteeredDestinations(msgspec.Struct, frozen=True):
    """What the kernel steers: of `steered` and `passed` the longest prefix decides. `ports` None: all of them.

    `fails`: what is meant and cannot be steered is refused. `blocks_quic`: so is UDP to port 443.
    """

    steered: tuple[Network, ...]
    passed: tuple[Network, ...]
    ports: frozenset[int] | None
    fails: bool
    blocks_quic: bool


def outward(policies: Iterable[PlannedPolicy]) -> tuple[tuple[PlannedPolicy, ...], dict[str, list[str]]]:
    """The policies that apply to connections that a pod makes, of those that select it; and why others do not."""
    applying: list[PlannedPolicy] = []
    problems: dict[str, list[str]] = {}
    room, networks = MAX_BYTES, MAX_NETWORKS
    for each in policies:
        if each.egress is None:
            continue
        size = len(msgspec.msgpack.encode(each.egress))
        if each.egress_waf is not None:
            size += each.egress_waf.custom.size
        needed = len({network for one in each.egress.destinations for network in one.networks})
        if len(applying) == MAX_POLICIES:
            problem = f"more than {MAX_POLICIES} policies are about connections that the pod makes"
        elif size > room or needed > networks:
            problem = "the policies about connections that the pod makes are too large together"
        else:
            problem = ""
            room, networks = room - size, networks - needed
            applying.append(each)
        if problem:
            problems.setdefault(problem, []).append(each.display)
    return tuple(applying), problems


def certificates_of(pod: PodKey, policies: Iterable[PlannedPolicy]) -> list[WantedCertificate]:
    """The Secrets that policies about connections of this pod name, each once."""
    found: dict[CertificateKey, WantedCertificate] = {}
    for each in policies:
        egress = each.policy.egress
        named = () if egress is None else ((Side.DOWNSTREAM, egress.issuer), (Side.UPSTREAM, egress.trust))
        for side, secret in named:
            if secret is not None:
                key = _key_of(pod, side, secret)
                field = f"spec.egress.{'issuer' if side is Side.DOWNSTREAM else 'trust'}"
                source = CertificateSource(SourceKind.SECRET, secret.name, field, f"inspection policy {each.display}")
                found.setdefault(key, WantedCertificate(key, source, stated=secret.namespace))
    return [*found.values()]


def with_credentials(
    pod: PodKey, policies: Iterable[PlannedPolicy], certificates: Mapping[CertificateKey, CertificateFacts]
) -> tuple[EgressSnapshot, ...]:
    """What the pod proxy is told of these policies: with the credentials that were found in their Secrets, and with
    their firewalls."""
    made = []
    places = count()
    for each in policies:
        if each.egress is None or each.policy.egress is None:
            continue
        waf = None if each.egress_waf is None else alone(each.egress_waf, next(places))
        told = msgspec.structs.replace(each.egress, waf=waf)
        issuer, trust = each.policy.egress.issuer, each.policy.egress.trust
        names = {"issuer": "", "trust": ""}
        if issuer is not None:
            names["issuer"] = _facts(certificates, _key_of(pod, Side.DOWNSTREAM, issuer)).identity
        if trust is not None:
            names["trust"] = _facts(certificates, _key_of(pod, Side.UPSTREAM, trust)).trust
        lacks_trust = trust is not None and not names["trust"]
        made.append(told.without_credentials() if lacks_trust else msgspec.structs.replace(told, **names))
    return tuple(made)


def _key_of(pod: PodKey, side: Side, secret: SecretRef) -> CertificateKey:
    return CertificateKey(pod, 0, side, f"{secret.namespace}/{secret.name}")


def _facts(certificates: Mapping[CertificateKey, CertificateFacts], key: CertificateKey) -> CertificateFacts:
    return certificates.get(key, CertificateFacts())


def steered(snapshots: Sequence[EgressSnapshot], *, listened: bool = False) -> SteeredDestinations:
    """What the kernel has to steer for these policies; if somebody listens, everything external as well.

    Not where a policy has something refused: what a session listens to must not be refused for its sake.
    """
    destinations = [one for each in snapshots for one in each.destinations]
    named = {ip_network(text) for one in destinations for text in one.networks}
    fails, blocks_quic = any(each.policy.closes for each in snapshots), any(each.blocks_quic for each in snapshots)
    listened = listened and not (fails or blocks_quic)
    external = listened or any(not one.networks for one in destinations)
    return SteeredDestinations(
        tuple(sorted(named | {*EVERYTHING} if external else named, key=_order)),
        tuple(each for each in INTERNAL if external and not any(_holds(wide, each) for wide in named)),
        None if listened else _ports(destinations),
        fails,
        blocks_quic,
    )


def _ports(destinations: Sequence[DestinationSnapshot]) -> frozenset[int] | None:
    if any(not one.ports for one in destinations):
        return None
    found = frozenset(port for one in destinations for port in one.ports)
    return found if len(found) <= MAX_PORTS else None


def _holds(wide: Network, narrow: Network) -> bool:
    """Whether one network is in another."""
    if isinstance(wide, IPv4Network):
        return isinstance(narrow, IPv4Network) and narrow.subnet_of(wide)
    return isinstance(narrow, IPv6Network) and narrow.subnet_of(wide)


def _order(network: Network) -> tuple[int, int, int]:
    return network.version, int(network.network_address), network.prefixlen
