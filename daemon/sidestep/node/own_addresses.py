"""The node's own addresses: where its kubelet listens, and from which the kubelet's probes come.

Services' addresses are not among them, although a proxy of Services that uses IPVS puts them on an interface of the
node, for the kernel to take the packets (`SERVICE_INTERFACES`). Nobody's connections come from there, and one to such
an address leads to the Service's endpoints; the same proxy's rules reject the ports that no Service has (kube-proxy:
chain KUBE-IPVS-FILTER), where the node's own listeners would answer.

The interface of a node-local DNS cache (`nodelocaldns`) stays: it has the address of the cluster's DNS Service, but
nothing rejects its other ports, so the kubelet answers there. Pods' look-ups of names do not depend on it
(`proxy.access.resolving` asks the pod's name servers, wherever they are). Proxies that use iptables, nftables or eBPF
(Cilium) put Services' addresses on no interface.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sidestep.netns import Netns, addresses

SERVICE_INTERFACES: Final = (
    "kube-ipvs0",  # kube-proxy: pkg/proxy/ipvs/proxier.go, defaultDummyDevice
    "kube-dummy-if",  # kube-router: the service proxy's KubeDummyIf
)
"""Interfaces that have the addresses of Services, and none of the node."""


def own_addresses(*, in_pod: bool) -> frozenset[IPv4Address | IPv6Address]:
    """Addresses of the node without loopback and Services. A daemon in a pod reads them in the namespace of process 1
    (hostPID).

    Raises KernelError, ConfigurationError.
    """
    with Netns.open("/proc/1/ns/net" if in_pod else "/proc/self/ns/net") as netns:
        found = addresses(netns, without=SERVICE_INTERFACES)
    return frozenset(address for address in found if not address.is_loopback)
