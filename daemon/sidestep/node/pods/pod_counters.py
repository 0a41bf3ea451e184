"""What the present process of a pod proxy has counted, as its last heartbeats said."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from sidestep.proxy.control.messages import OUTBOUND

if TYPE_CHECKING:
    from sidestep.proxy.control.messages import Heartbeat


class PodCounters:
    """The totals of one pod's proxy since its process began."""

    def __init__(self) -> None:
        self.ports: dict[int, dict[str, int]] = {}
        """By TCP port, counter name to total."""
        self.datagrams: dict[str, int] = {}
        """Of all UDP ports together."""
        self.outbound: dict[str, int] = {}
        """Of connections that the pod makes."""
        self.anomalies: dict[str, int] = {}
        """Connections that were passed through, by reason."""
        self.connections = 0
        """Open client connections."""

    def of_engine(self, prefix: str) -> dict[str, int]:
        """The counters that are called PREFIX_WORD, of ports and of connections that the pod makes, by WORD."""
        found: dict[str, int] = {}
        for counts in (*self.ports.values(), self.outbound):
            for name, total in counts.items():
                if name.startswith(f"{prefix}_"):
                    word = name.removeprefix(f"{prefix}_")
                    found[word] = found.get(word, 0) + total
        return found

    def update(self, beat: Heartbeat, *, ports: Container[int]) -> bool:
        """Take a heartbeat; counters of other ports than these are dropped. Returns True once something arrived."""
        self.connections = beat.connections
        self.anomalies = beat.anomalies
        told = {0: self.datagrams, OUTBOUND: self.outbound, **self.ports, **beat.ports}
        self.datagrams, self.outbound = told.pop(0), told.pop(OUTBOUND)
        self.ports = {number: counts for number, counts in told.items() if number in ports}
        accepted = any(counts.get("accepted", 0) > 0 for counts in self.ports.values())
        return accepted or self.datagrams.get("flows", 0) > 0 or self.outbound.get("outbound", 0) > 0
