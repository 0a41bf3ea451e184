"""The policies about connections that the pod makes, as one pod proxy holds them, and who listens to them.

Counters and rules of sessions are those of a port that stands for all such connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sidestep.policy.egress import EgressPolicies, EgressPolicy, compile_egress
from sidestep.policy.egress_rows import from_egress_snapshot
from sidestep.protocols.eve_redaction import Redaction
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.control.messages import OUTBOUND
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot

_UNHEARD: Final = PortSnapshot(OUTBOUND, "tcp", tls="never", http2="never", rules=())
"""Nobody listens."""


class OutboundPolicies:
    """`port` stands where a relayed connection has its port: its counters are those of all connections that the pod
    makes, and its rules those of the sessions that listen.
    """

    def __init__(self) -> None:
        self._compiled: dict[EgressSnapshot, EgressPolicy] = {}
        self.current = EgressPolicies(())
        self.port = LivePort(_UNHEARD)
        self.redaction = Redaction()
        """What all policies together keep out of records."""

    def configure(self, snapshots: Sequence[EgressSnapshot], listened: PortSnapshot | None = None) -> None:
        """Replace the policies, and who listens; new connections are judged by them, and told.

        Raises ConfigurationError, and changes nothing then.
        """
        compiled = {each: self._compiled.get(each) or compile_egress(*from_egress_snapshot(each)) for each in snapshots}
        self.port.replace(listened or _UNHEARD)
        if [*compiled] != [*self._compiled]:
            before = self.current
            self.current = EgressPolicies([*compiled.values()], thresholds=before.thresholds, limits=before.limits)
            self._compiled = compiled
            wanted = [each.policy.redaction for each in compiled.values()]
            self.redaction = Redaction(
                any(each.query_values for each in wanted) or not wanted,
                frozenset(name.encode() for each in wanted for name in each.headers),
            )
