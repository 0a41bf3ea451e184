"""Resets connections in accept queues that no proxy empties, so that their clients connect again and reach the app, or
are refused where a policy closes the port.

Only ports that are not steered are swept, so that their queues do not fill again: all of them while no proxy is there,
and those that the proxy reports it cannot serve, GRACE seconds after the report, since it may empty the queue itself. A
proxy that is slow, or hangs and is about to be replaced, keeps its queue.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from sidestep.netns import reset_waiting
from sidestep.observability.logs import get_logger

if TYPE_CHECKING:
    from sidestep.model.pod import PodKey
    from sidestep.node.pods.listening_port import ListeningPort

GRACE = 0.4
"""Seconds for which a proxy that says it cannot serve a port may still empty its queue."""

MOST = 4096
"""Connections reset at once; an accept queue holds no more (`stream_ports.BACKLOG`)."""


class Sweeper:
    """Resets waiting connections in the accept queues of one pod's ports."""

    def __init__(self, pod: PodKey, *, now: Callable[[], float]) -> None:
        self._now = now
        self._hindered_since: dict[int, float] = {}
        self._log = get_logger("target").bind(pod=str(pod))

    def hindered(self, numbers: Collection[int]) -> None:
        """Set which ports the proxy cannot serve now."""
        now = self._now()
        self._hindered_since = {number: self._hindered_since.get(number, now) for number in numbers}

    def sweep_all(self, ports: Iterable[ListeningPort]) -> None:
        """Reset what waits at all ports: there is no proxy."""
        for port in ports:
            self._sweep(port)

    def sweep_hindered(self, ports: Mapping[int, ListeningPort]) -> None:
        """Reset what waits at ports that the proxy has been unable to serve for GRACE seconds."""
        if self._hindered_since:
            late = self._now() - GRACE
            for number, since in self._hindered_since.items():
                if since <= late and number in ports:
                    self._sweep(ports[number])

    def _sweep(self, port: ListeningPort) -> None:
        if port.steered:
            return
        count = reset_waiting(port.listener, most=MOST)
        if count:
            self._log.info("connections that nobody took were reset", port=port.plan.number, count=count)
