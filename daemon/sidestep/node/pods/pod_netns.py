"""Opens a pod's network namespace and verifies that it is this pod's, before anything is attached to it.

The host's own namespace is refused, whatever path led there, and so is a namespace that has none of the addresses that
are stated for the pod. In local mode a manifest may state none: the pod's addresses are then those found inside,
without loopback and link-local ones.

Where pods are found by their processes, a pod that starts or ends has none for a while. `AbsentError` tells this case
from a mistake.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import msgspec

from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.model.pod import Location, Pod
from sidestep.netns import Netns, addresses, host_netns_id

Address = IPv4Address | IPv6Address

_NO_PROCESS = "none of its processes is found on this node"


class AbsentError(ConfigurationError):
    """No process of the pod is there now."""


class PodNetns(msgspec.Struct, frozen=True):
    """A verified namespace, the caller's to close, and the pod's addresses."""

    netns: Netns
    addresses: frozenset[Address]


def netns_path(location: Location) -> str:
    """Where the namespace is to be found; empty when the location names neither a path nor a process."""
    if location.netns:
        return location.netns
    pid = next((location.pids[name] for name in sorted(location.pids)), None)
    return "" if pid is None else f"/proc/{pid}/ns/net"


def open_pod_netns(pod: Pod) -> PodNetns:
    """Open and verify. Raises ConfigurationError (nothing there; AbsentError where that may pass), RefusedError (not
    this pod's), KernelError."""
    path = netns_path(pod.location)
    if not path and pod.location.searched:
        raise AbsentError(_NO_PROCESS)
    if not path:
        raise ConfigurationError(
            "no process of it is known here (a manifest says where it lives: sidestep.dev/netns or sidestep.dev/pid)",
            subject=f"pod {pod.key}",
        )
    try:
        netns = Netns.open(path)
    except ConfigurationError as error:
        if pod.location.searched:
            raise AbsentError(_NO_PROCESS) from error
        raise
    try:
        if netns.id == host_netns_id():
            raise RefusedError(f"{path} is the host's own network namespace; Sidestep never steers there")
        found = frozenset(address for address in addresses(netns) if not address.is_loopback)
        stated = frozenset(pod.ips)
        if stated and not stated & found:
            raise RefusedError(
                f"the network namespace {path} carries none of the pod's addresses ({_listed(stated)}); it has: "
                f"{_listed(found) or 'none'}"
            )
    except BaseException:
        netns.close()
        raise
    return PodNetns(netns, stated or frozenset(address for address in found if not address.is_link_local))


def _listed(some: frozenset[Address]) -> str:
    return ", ".join(sorted(str(address) for address in some)[:8])
