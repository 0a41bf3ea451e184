"""Finds which ports of a network namespace an app serves (sock_diag(7)).

A port without an app must not be steered: clients and probes must see the same refusal as without Sidestep. An app
serves a port if a listening socket accepts connections to one of the pod's addresses, that is, if it is bound to a
wildcard or to one of them. Listeners on loopback addresses do not count; Sidestep's own listeners are among those.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from sidestep.model.errors import KernelError
from sidestep.model.pod import Family, Transport
from sidestep.netns.namespace import Netns
from sidestep.netns.netlink import attributes, dump
from sidestep.netns.port_filter import port_filter

Address = IPv4Address | IPv6Address

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
TCP_LISTEN: Final = 10
_UNCONNECTED: Final = 7
"""State of a UDP socket that takes datagrams from anybody (TCP_CLOSE)."""
_REQUEST: Final = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states, any id
_ANSWER: Final = struct.Struct("=BBBB2s2s16s16sI8s5I")  # struct inet_diag_msg
_SKV6ONLY: Final = 11
_LOOPBACK_INDEX: Final = 1  # the loopback device is the first of every namespace (LOOPBACK_IFINDEX)


@dataclass(frozen=True, slots=True)
class ListenTable:
    """A snapshot: (port, address family the clients may use, local address or None for any)."""

    listeners: frozenset[tuple[int, Family, Address | None]]

    def serves(self, port: int, family: Family, pod_ips: Collection[Address]) -> bool:
        """Whether a client that dials `port` on one of `pod_ips` over `family` finds an app."""
        if (port, family, None) in self.listeners:
            return True
        return any(
            (port, family, address) in self.listeners
            for address in pod_ips
            if _family(address) is family and not address.is_loopback
        )


def listening(netns: Netns, ports: Collection[int] = (), *, transport: Transport = Transport.TCP) -> ListenTable:
    """Ask which sockets listen in `netns`, on these ports or on any. Raises KernelError.

    A question costs about 30 microseconds; about all ports, five more for each socket that listens.
    """
    wanted = port_filter(ports)
    found: set[tuple[int, Family, Address | None]] = set()
    udp = transport is Transport.UDP
    protocol, state = (socket.IPPROTO_UDP, _UNCONNECTED) if udp else (socket.IPPROTO_TCP, TCP_LISTEN)
    for family in Family:
        request = _REQUEST.pack(family, protocol, 0, 1 << state) + wanted
        try:
            diag = netns.netlink(NETLINK_SOCK_DIAG)
            doing = f"listing the listening sockets of {netns.path}"
            for body in dump(diag, SOCK_DIAG_BY_FAMILY, request, doing=doing):
                found.update(_entries(body, state))
        except KernelError as error:
            netns.forget(NETLINK_SOCK_DIAG)
            if error.errno == errno.ENOENT and (udp or family is Family.IPV6):
                continue  # a kernel without IPv6, or without udp_diag
            raise
    return ListenTable(listeners=frozenset(found))


def _entries(body: bytes, wanted: int) -> list[tuple[int, Family, Address | None]]:
    if len(body) < _ANSWER.size:
        return []
    family, state, _, _, port, _, source, _, interface, *_ = _ANSWER.unpack_from(body)
    if state != wanted or interface == _LOOPBACK_INDEX:
        return []
    number = int.from_bytes(port, "big")
    address: Address = ip_address(source[:4] if family == Family.IPV4 else source)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return []
    if not address.is_unspecified:
        return [(number, _family(address), address)]
    served = [_family(address)]
    if isinstance(address, IPv6Address) and attributes(body, _ANSWER.size).get(_SKV6ONLY, b"\0")[:1] == b"\0":
        served.append(Family.IPV4)
    return [(number, each, None) for each in served]


def _family(address: Address) -> Family:
    return Family.IPV4 if address.version == 4 else Family.IPV6
