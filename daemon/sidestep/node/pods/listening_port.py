"""A port of a target pod together with the listener that its steered connections arrive at."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from sidestep.model.pod import Family
from sidestep.node.planning.port_state import PortState


def families_of(sock: socket.socket) -> tuple[Family, ...]:
    """The address families that a socket receives; an IPv6 socket of ours is dual-stack."""
    return tuple(Family) if sock.family == socket.AF_INET6 else (Family.IPV4,)


@dataclass(slots=True, eq=False, kw_only=True)
class ListeningPort(PortState):
    """The state of a port, and its listener: the daemon's own descriptor, of which the proxy has a duplicate."""

    listener: socket.socket

    def __post_init__(self) -> None:
        self.families = families_of(self.listener)

    def replace_listener(self, listener: socket.socket) -> None:
        """Close the listener, which has died, and use this one."""
        self.listener.close()
        self.listener = listener
        self.families = families_of(listener)
        self.replacement.renewed()
