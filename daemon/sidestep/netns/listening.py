"""Finds which ports of a network namespace an app serves (sock_diag(7)).

A port without an app must not be steered: clients and probes must see the same refusal as without Sidestep. An app
serves a port if a listening socket accepts connections to one of the pod's addresses, that is, if it is bound to a
wildcard or to one of them. Listeners on loopback addresses do not count; Sidestep's own listeners are among those.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection
from ipaddress import IPv6Address
from typing import Any, Final

import msgspec

from sidestep.model.errors import KernelError
from sidestep.model.pod import Family, Transport
from sidestep.netns.exchange import dump
from sidestep.netns.messages import (
    NETLINK_SOCK_DIAG,
    SS_CLOSE,
    SS_LISTEN,
    Address,
    ListenerAnswer,
    address_of,
    list_sockets,
)
from sidestep.netns.namespace import Netns
from sidestep.netns.port_filter import port_filter

_LOOPBACK_INDEX: Final = 1  # the loopback device is the first of every namespace (LOOPBACK_IFINDEX)


class ListenTable(msgspec.Struct, frozen=True):
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
    """Ask which sockets listen in `netns`, on these ports or on any. Raises KernelError (E2BIG: too many of them).

    The kernel leaves out sockets on other ports. A pod with too many on the steered ones has its ports left to the app.

    A question costs about 100 microseconds of CPU, 48 if the messages were encoded and decoded by hand; about all
    ports, 30 more for each socket that listens.
    """
    program = port_filter(ports)
    found: set[tuple[int, Family, Address | None]] = set()
    udp = transport is Transport.UDP
    # A UDP socket that takes datagrams from anybody is in the state that TCP calls closed.
    protocol, state = (socket.IPPROTO_UDP, SS_CLOSE) if udp else (socket.IPPROTO_TCP, SS_LISTEN)
    doing = f"listing the listening sockets of {netns.path}"
    for family in Family:
        request = list_sockets(family=family, protocol=protocol, state=state, program=program)
        try:
            for answer in dump(netns, NETLINK_SOCK_DIAG, request, answer=ListenerAnswer, doing=doing):
                found.update(_entries(answer, state))
        except KernelError as error:
            if error.errno == errno.ENOENT and (udp or family is Family.IPV6):
                continue  # a kernel without IPv6, or without udp_diag
            raise
    return ListenTable(listeners=frozenset(found))


def _entries(answer: dict[str, Any], wanted: int) -> list[tuple[int, Family, Address | None]]:
    if answer["idiag_state"] != wanted or answer["idiag_if"] == _LOOPBACK_INDEX:
        return []
    port: int = answer["idiag_sport"]
    address = address_of(answer["idiag_src"], answer["idiag_family"])
    if address.is_loopback:
        return []
    if not address.is_unspecified:
        return [(port, _family(address), address)]
    served = [_family(address)]
    if isinstance(address, IPv6Address) and not answer.get("INET_DIAG_SKV6ONLY"):
        served.append(Family.IPV4)
    return [(port, each, None) for each in served]


def _family(address: Address) -> Family:
    return Family.IPV4 if address.version == 4 else Family.IPV6
