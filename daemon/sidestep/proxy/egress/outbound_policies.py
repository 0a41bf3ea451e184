"""The policies about connections that the pod makes, as one pod proxy holds them; counters and names go with them."""

from __future__ import annotations

from collections.abc import Sequence

from sidestep.policy.egress import EgressPolicies, EgressPolicy, compile_egress
from sidestep.policy.egress_rows import from_egress_snapshot
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.control.messages import OUTBOUND
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.ports import PortSnapshot


class OutboundPolicies:
    """`port` stands where a relayed connection has its port: its counters are those of all connections that the pod
    makes.
    """

    def __init__(self) -> None:
        self._compiled: dict[EgressSnapshot, EgressPolicy] = {}
        self.current = EgressPolicies(())
        self.port = LivePort(PortSnapshot(OUTBOUND, "tcp", tls="never", http2="never", rules=()))

    def configure(self, snapshots: Sequence[EgressSnapshot]) -> None:
        """Replace the policies; new connections are judged by them. Raises ConfigurationError, and changes nothing."""
        compiled = {each: self._compiled.get(each) or compile_egress(*from_egress_snapshot(each)) for each in snapshots}
        if [*compiled] != [*self._compiled]:
            before = self.current
            self.current = EgressPolicies([*compiled.values()], thresholds=before.thresholds, limits=before.limits)
            self._compiled = compiled
