"""Which addresses a session may have a pod connect to. Pure.

What is judged is the address that would be connected to: after a name was looked up, and each address of a name by
itself. Refused are

  * addresses of no host of its own: unspecified, multicast, broadcast, reserved for future use;
  * link-local addresses, and the others where clouds answer questions about a machine, with its credentials
    (`METADATA`);
  * the node's own addresses, where the kubelet listens and whatever else the node has;
  * the pod's loopback, and every address that the kernel would deliver within the pod, unless the session may use it;
  * what the Node's annotation `sidestep.dev/outbound-deny` names.

An IPv6 address that carries an IPv4 address is judged as both (`_carried`): the kernel, or a gateway, connects to the
IPv4 one.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

import msgspec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

METADATA: Final[tuple[Network, ...]] = (
    IPv6Network("fd00:ec2::/32"),  # Amazon: instance metadata, pod identities
    IPv6Network("fd20:ce::254/128"),  # Google
    IPv6Network("fd00:42::42/128"),  # Scaleway
    IPv4Network("100.100.100.200/32"),  # Alibaba
    IPv4Network("168.63.129.16/32"),  # Azure: the host of the machine
    IPv4Network("192.0.0.192/32"),  # Oracle
)
"""Where clouds answer beside the link-local addresses."""
_THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")  # RFC 1122 section 3.2.1.3; Linux connects 0.0.0.0 to loopback
_RESERVED: Final = IPv4Network("240.0.0.0/4")
_COMPATIBLE: Final = IPv6Network("::/96")  # RFC 4291 section 2.5.5.1
_TRANSLATED: Final = (
    IPv6Network("64:ff9b::/96"),  # RFC 6052
    IPv6Network("::ffff:0:0:0/96"),  # RFC 2765: stateless translation
)
_LOCALLY_TRANSLATED: Final = IPv6Network("64:ff9b:1::/48")
"""RFC 8215: the prefix within it may have any length of RFC 6052 section 2.2."""


class Destinations(msgspec.Struct, frozen=True):
    """What a node permits. `denied` are the annotation's networks, `node` the node's own addresses."""

    denied: tuple[Network, ...] = ()
    node: frozenset[Address] = frozenset()

    def refusal(self, address: Address, *, is_local: bool, allow_loopback: bool) -> str:
        """Return why a connection to an address is refused, in a few words; "" when it is permitted.

        `is_local`: the kernel delivers to it within the pod's network namespace.
        """
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            return "it has a zone, so it is a link-local address"
        reasons = (
            self._refusal(each, is_local=is_local, allow=allow_loopback) for each in (address, *_carried(address))
        )
        return next(filter(None, reasons), "")

    def _refusal(self, address: Address, *, is_local: bool, allow: bool) -> str:
        if address.is_unspecified or _within(address, (_THIS_NETWORK,)):
            return "it is the address of no host"
        if address.is_loopback or is_local:
            if not allow:
                return "it is the pod's own, and the access does not have allowLoopback"
        elif address in self.node:
            return "it is the node's own"
        if address.is_link_local:
            return "it is a link-local address, where clouds have their metadata"
        if _within(address, METADATA):
            return "it is where clouds have their metadata"
        if address.is_multicast or _within(address, (_RESERVED,)):
            return "it is a multicast, broadcast or reserved address"
        if _within(address, self.denied):
            return "the node denies it (annotation sidestep.dev/outbound-deny)"
        return ""


def networks_of(texts: Sequence[str]) -> tuple[Network, ...]:
    """Return the networks that texts describe. Raises ValueError, also for a network with bits beside its prefix."""
    return tuple(ip_network(each) for each in texts)


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == each.version and address in each for each in networks)


def _carried(address: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that may be inside an IPv6 one: mapped, compatible, translated, or of 6to4."""
    if isinstance(address, IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    is_compatible = address in _COMPATIBLE and int(address) > 1  # not :: and not ::1
    if is_compatible or any(address in each for each in _TRANSLATED):
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    if address in _LOCALLY_TRANSLATED:
        return tuple(each for each in _embedded(int(address)) if each not in _THIS_NETWORK)
    return ()


def _embedded(value: int) -> tuple[IPv4Address, ...]:
    """Return what RFC 6052 section 2.2 puts behind prefixes of 48, 56, 64 and 96 bits; bits 64 to 71 are zero."""
    by_48 = (value >> 64 & 0xFFFF) << 16 | value >> 40 & 0xFFFF
    by_56 = (value >> 64 & 0xFF) << 24 | value >> 32 & 0xFFFFFF
    return tuple(map(IPv4Address, (by_48, by_56, value >> 24 & 0xFFFFFFFF, value & 0xFFFFFFFF)))
