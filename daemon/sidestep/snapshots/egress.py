"""What a pod proxy has to know of the connections that its pod makes, where inspection policies are about them.

`policy.egress_rows` translates the policies' blocks to these structs and back. A pod without one has no snapshot.
"""

from __future__ import annotations

import msgspec

from sidestep.snapshots.inspection import PolicySnapshot
from sidestep.snapshots.waf import PortWaf


class DestinationSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """One destination (`model.egress.Destination`)."""

    name: str
    mode: str
    names: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    """As text; none means every external address."""
    ports: tuple[int, ...] = ()


class EgressSnapshot(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """The `egress` of one policy. `policy` has its rules, in the form of `InspectionPolicy.outward`.

    `issuer` and `trust` are the names of credentials: the CA whose certificates apps are shown, "" if it cannot be had,
    and the authorities of servers, "" for the system's. Without `opens` a credential that is needed cannot be had, and
    no connection is opened for this policy. `waf` is what the policy alone says of a firewall; the ids of its custom
    rules are not those of any other policy of the pod.
    """

    policy: PolicySnapshot
    destinations: tuple[DestinationSnapshot, ...]
    blocks_quic: bool = False
    issuer: str = ""
    trust: str = ""
    opens: bool = True
    waf: PortWaf | None = None

    @property
    def credentials(self) -> dict[str, str]:
        """The names of the credentials, with their kinds."""
        kinds = {self.issuer: "issuer", self.trust: "trust"}
        kinds.pop("", None)
        return kinds

    def without_credentials(self) -> EgressSnapshot:
        """The policy as it is carried out when one of its credentials cannot be used."""
        return msgspec.structs.replace(self, issuer="", trust="", opens=False)
