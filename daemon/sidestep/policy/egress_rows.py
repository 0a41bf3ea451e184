"""The `egress` of inspection policies as snapshots for pod proxies, and back."""

from __future__ import annotations

from ipaddress import ip_network

from sidestep.model.egress import Destination, EgressMode, Quic
from sidestep.model.errors import ConfigurationError
from sidestep.model.inspection import Egress, InspectionPolicy
from sidestep.policy.inspection_rows import from_snapshot, to_snapshot
from sidestep.snapshots.egress import DestinationSnapshot, EgressSnapshot


def to_egress_snapshot(policy: InspectionPolicy) -> EgressSnapshot | None:
    """What a policy says of connections that pods make, without what it selects; None if it says nothing of them.

    The planner adds the names of credentials, which depend on what is in the policy's Secrets.
    """
    outward, egress = policy.outward, policy.egress
    if outward is None or egress is None:
        return None
    return EgressSnapshot(
        to_snapshot(outward), tuple(map(_destination_snapshot, egress.destinations)), egress.quic is Quic.BLOCK
    )


def from_egress_snapshot(snapshot: EgressSnapshot) -> tuple[InspectionPolicy, Egress]:
    """The policy of connections that `to_egress_snapshot` described, and its block without Secrets.

    Raises ConfigurationError for a snapshot that it cannot have made.
    """
    policy = from_snapshot(snapshot.policy)
    try:
        destinations = tuple(map(_destination, snapshot.destinations))
    except ValueError as error:
        raise ConfigurationError("an egress policy that cannot be read", value=str(error)[:100]) from None
    quic = Quic.BLOCK if snapshot.blocks_quic else Quic.ALLOW
    return policy, Egress(destinations, policy.rules, policy.failure_policy, quic)


def _destination_snapshot(each: Destination) -> DestinationSnapshot:
    return DestinationSnapshot(each.name, each.mode.value, each.names, tuple(map(str, each.networks)), each.ports)


def _destination(snapshot: DestinationSnapshot) -> Destination:
    networks = tuple(map(ip_network, snapshot.networks))
    return Destination(snapshot.name, EgressMode(snapshot.mode), snapshot.names, networks, snapshot.ports)
