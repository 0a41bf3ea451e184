"""What a pod proxy has to know of the connections that its pod makes, where inspection policies are about them.

`policy.egress_rows` translates the policies' blocks to these structs and back. A pod without one has no snapshot.
"""

from __future__ import annotations

import msgspec

from sidestep.snapshots.inspection import PolicySnapshot


class DestinationSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One destination (`model.egress.Destination`)."""

    name: str
    mode: str
    names: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    """As text; none means every external address."""
    ports: tuple[int, ...] = ()


class EgressSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The `egress` of one policy. `policy` has its rules, in the form of `InspectionPolicy.outward`."""

    policy: PolicySnapshot
    destinations: tuple[DestinationSnapshot, ...]
    blocks_quic: bool = False
