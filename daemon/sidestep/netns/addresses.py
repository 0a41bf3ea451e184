"""Lists the addresses of a network namespace, loopback included (rtnetlink(7), RTM_GETADDR).

A namespace is accepted as a pod's only if it has one of the pod's addresses. One with more than
`exchange.MAX_ANSWERS` is not accepted, and its pod stays unsteered.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from sidestep.netns.exchange import dump
from sidestep.netns.messages import NETLINK_ROUTE, ifaddrmsg, list_addresses
from sidestep.netns.namespace import Netns

_SIOCGIFINDEX: Final = 0x8933  # netdevice(7); sockets of every family answer it
_IFREQ: Final = struct.Struct("=16si20x")
"""`struct ifreq` with its name and `ifr_ifindex`."""


def addresses(netns: Netns, *, without: Iterable[str] = ()) -> frozenset[IPv4Address | IPv6Address]:
    """Every address of every interface, those named `without` excepted. Raises KernelError (E2BIG: too many)."""
    found: set[IPv4Address | IPv6Address] = set()
    doing = f"listing the addresses of {netns.path}"
    try:
        left_out = _indexes(netns.netlink(NETLINK_ROUTE), without)
        for answer in dump(netns, NETLINK_ROUTE, list_addresses(), answer=ifaddrmsg, doing=doing):
            if answer["index"] in left_out:
                continue
            # On a point-to-point link IFA_ADDRESS is the peer's.
            address = answer.get("IFA_LOCAL") or answer.get("IFA_ADDRESS")
            if address:
                found.add(ip_address(address))
    finally:
        netns.forget(NETLINK_ROUTE)
    return frozenset(found)


def _indexes(sock: socket.socket, names: Iterable[str]) -> frozenset[int]:
    """Return the indexes of those interfaces that are there, in the namespace of the socket."""
    found = set()
    for name in names:
        with contextlib.suppress(OSError):  # ENODEV
            found.add(_IFREQ.unpack(fcntl.ioctl(sock, _SIOCGIFINDEX, _IFREQ.pack(name.encode(), 0)))[1])
    return frozenset(found)
