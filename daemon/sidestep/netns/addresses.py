"""Lists the addresses of a network namespace, loopback included (rtnetlink(7), RTM_GETADDR).

A namespace is accepted as a pod's only if it has one of the pod's addresses. One with more than
`exchange.MAX_ANSWERS` is not accepted, and its pod stays unsteered.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from sidestep.netns.exchange import dump
from sidestep.netns.messages import NETLINK_ROUTE, ifaddrmsg, list_addresses
from sidestep.netns.namespace import Netns


def addresses(netns: Netns) -> frozenset[IPv4Address | IPv6Address]:
    """Every address of every interface. Raises KernelError (E2BIG: too many)."""
    found: set[IPv4Address | IPv6Address] = set()
    doing = f"listing the addresses of {netns.path}"
    try:
        for answer in dump(netns, NETLINK_ROUTE, list_addresses(), answer=ifaddrmsg, doing=doing):
            # On a point-to-point link IFA_ADDRESS is the peer's.
            address = answer.get("IFA_LOCAL") or answer.get("IFA_ADDRESS")
            if address:
                found.add(ip_address(address))
    finally:
        netns.forget(NETLINK_ROUTE)
    return frozenset(found)
