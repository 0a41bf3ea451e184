"""The connections that this proxy makes for sessions with access to the pod, as the worker has them.

The daemon asks for each one (`Dial`), and says before what holds for all (`UseNetwork`). There is no message with which
a proxy could ask for one, or for anything else of a session.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from sidestep.model.errors import PeerError, RefusedError
from sidestep.policy.destinations import Destinations, networks_of
from sidestep.protocols.resolver_files import parse_hosts, parse_resolv_conf
from sidestep.proxy.access.connecting import PodNetwork
from sidestep.proxy.access.outgoing import KINDS, Outgoing
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.messages import Dial, Dialed, UseNetwork
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.splice import Pipes

MAX_CONNECTIONS: Final = 4096
"""Connections of all sessions together."""


class AccessSide:
    """See the module. `has_room` says whether descriptors can be spared; `retired` is called when none is left."""

    def __init__(
        self,
        loop: Loop,
        link: DaemonLink,
        pipes: Pipes,
        *,
        has_room: Callable[[], bool],
        retired: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.pipes = pipes
        self._link = link
        self._has_room = has_room
        self._retired = retired
        self._network: PodNetwork | None = None
        self._present: set[Outgoing] = set()

    def obey(self, message: UseNetwork | Dial, fd: int | None) -> None:
        """Carry a message out, with its descriptor. Raises PeerError, RefusedError, ValueError, OSError."""
        if isinstance(message, UseNetwork):
            self.use(message)
        elif fd is None:
            raise RefusedError("the pod's proxy cannot hold another connection")
        else:
            self.dial(message, fd)

    def use(self, message: UseNetwork) -> None:
        """Replace what holds for connections from now on. Raises ValueError."""
        self._network = PodNetwork(
            settings=parse_resolv_conf(message.resolv_conf),
            hosts=parse_hosts(message.hosts),
            destinations=Destinations(networks_of(message.denied), frozenset(map(ip_address, message.node))),
        )

    def dial(self, message: Dial, fd: int) -> None:
        """Begin to connect; takes over the descriptor. Raises PeerError, RefusedError, OSError."""
        sock = socket.socket(fileno=fd)
        try:
            sock.setblocking(False)
            if self._network is None or message.protocol not in KINDS:
                raise PeerError("a connection was asked for before its network was told")
            if len(self._present) >= MAX_CONNECTIONS or not self._has_room():
                raise RefusedError("the pod's proxy has as many connections open as it may; try again later")
            outgoing = Outgoing(self, message, sock, self._network)
            self._present.add(outgoing)
            try:
                outgoing.begin()
            except OSError:
                self._present.discard(outgoing)
                raise
        except BaseException:
            sock.close()
            raise

    def __len__(self) -> int:
        """The number of connections, those that are being made included."""
        return len(self._present)

    def abandon(self) -> None:
        """End all."""
        for outgoing in list(self._present):
            outgoing.abandon()

    # --- OutgoingOwner ----------------------------------------------------------------------------------------------

    def dialed(self, stream: int, error: str, address: str = "") -> None:
        """As OutgoingOwner.dialed."""
        self._link.send(Dialed(self._link.next_seq(), stream, error, address))

    def over(self, outgoing: Outgoing) -> None:
        """As OutgoingOwner.over."""
        self._present.discard(outgoing)
        if not self._present:
            self._retired()
