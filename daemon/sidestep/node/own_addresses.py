"""The node's own addresses, from which the kubelet's probes come."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from sidestep.netns import Netns, addresses


def own_addresses(*, in_pod: bool) -> frozenset[IPv4Address | IPv6Address]:
    """Addresses of the node without loopback. A daemon in a pod reads them in the namespace of process 1 (hostPID).

    Raises KernelError, ConfigurationError.
    """
    with Netns.open("/proc/1/ns/net" if in_pod else "/proc/self/ns/net") as netns:
        return frozenset(address for address in addresses(netns) if not address.is_loopback)
