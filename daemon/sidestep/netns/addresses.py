"""Lists the addresses of a network namespace, loopback included (rtnetlink(7), RTM_GETADDR).

A namespace is accepted as a pod's only if it has one of the pod's addresses.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from sidestep.netns.namespace import Netns
from sidestep.netns.netlink import attributes, dump

NETLINK_ROUTE: Final = 0
_RTM_GETADDR: Final = 22
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2


def addresses(netns: Netns) -> frozenset[IPv4Address | IPv6Address]:
    """Every address of every interface. Raises KernelError."""
    found: set[IPv4Address | IPv6Address] = set()
    doing = f"listing the addresses of {netns.path}"
    try:
        for body in dump(netns.netlink(NETLINK_ROUTE), _RTM_GETADDR, _IFADDRMSG.pack(0, 0, 0, 0, 0), doing=doing):
            fields = attributes(body, _IFADDRMSG.size)
            raw = fields.get(_IFA_LOCAL) or fields.get(_IFA_ADDRESS)  # on a point-to-point link ADDRESS is the peer's
            if raw and len(raw) in {4, 16}:
                found.add(ip_address(raw))
    finally:
        netns.forget(NETLINK_ROUTE)
    return frozenset(found)
