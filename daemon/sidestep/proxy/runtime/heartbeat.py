"""Tells the daemon how many connections there are and what was counted, when it has changed."""

from __future__ import annotations

from collections.abc import Mapping

from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_link import DaemonLink

Counters = dict[str, int]


class Heartbeat:
    """What the daemon was told last. A heartbeat that cannot be sent whole is sent again next time."""

    def __init__(self, link: DaemonLink) -> None:
        self._link = link
        self._told: tuple[int, dict[int, Counters], Counters] | None = None

    def beat(self, connections: int, ports: Mapping[int, Mapping[str, int]], anomalies: Mapping[str, int]) -> None:
        """Tell what there is: open connections, counters of each port, reasons of anomalies."""
        state = connections, {port: dict(counters) for port, counters in ports.items()}, dict(anomalies)
        if state != self._told and self._tell(*state):
            self._told = state

    def _tell(self, connections: int, ports: dict[int, Counters], anomalies: Counters) -> bool:
        """Send it, in parts of at most MAX_PORTS ports; return whether all were sent."""
        numbers = list(ports)
        for at in range(0, max(1, len(numbers)), messages.MAX_PORTS):
            part = {number: ports[number] for number in numbers[at : at + messages.MAX_PORTS]}
            beat = messages.Heartbeat(self._link.next_seq(), connections, part, anomalies)
            if not self._link.send(beat, droppable=True):
                return False
        return True
