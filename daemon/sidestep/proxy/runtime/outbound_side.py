"""The connections that the pod makes, as the worker has them: absent until a policy or a session is about them.

    share       the daemon's table of original destinations
    configure   makes what is needed with the first policy, or session, and tells it of all later ones
    listen      accept; the table was shared before. `unlisten`: accept no more, and end nothing

What keeps it from accepting is reported as that of any listener (`control.readiness`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network

from sidestep.model.errors import PeerError
from sidestep.proxy.control import messages
from sidestep.proxy.control.readiness import EXHAUSTED, Readiness
from sidestep.proxy.egress.outbound import Outbound
from sidestep.proxy.egress.outbound_host import Process
from sidestep.proxy.egress.shared_table import SharedTable
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.runtime.listeners import CANNOT_ACCEPT
from sidestep.snapshots.egress import EgressSnapshot
from sidestep.snapshots.hindrance import Hindrance
from sidestep.snapshots.ports import PortSnapshot
from sidestep.snapshots.waf import PortWaf


class OutboundSide:
    """See the module. `has_room` and `retired` are those of `Outbound`."""

    def __init__(
        self,
        loop: Loop,
        process: Process,
        readiness: Readiness,
        *,
        has_room: Callable[[], bool],
        retired: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._process = process
        self._readiness = readiness
        self._has_room = has_room
        self._retired = retired
        self._present: Outbound | None = None
        self._table: SharedTable | None = None

    def share(self, fd: int, *, network: str, entries: int) -> None:
        """Take the descriptor of the table. Raises OSError, ValueError."""
        self._table = SharedTable(fd, network=IPv4Network(network), entries=entries)

    def configure(self, snapshots: Sequence[EgressSnapshot], listened: PortSnapshot | None) -> None:
        """Replace the policies, and who listens. Raises ConfigurationError, and changes nothing then."""
        if snapshots or listened is not None or self._present is not None:
            self._made().configure(snapshots, listened)

    def listen(self, listener: socket.socket) -> None:
        """Accept on a listener, which is closed if that cannot be. Raises PeerError."""
        if self._table is None:
            listener.close()
            raise PeerError("the table of destinations was not sent")
        self._made().serve(listener, self._table)

    def unlisten(self) -> None:
        """Accept no more, and withdraw what was reported."""
        if self._present is not None:
            self._present.retire()
            self._outcome(0)

    def retire(self) -> None:
        """Accept no more."""
        if self._present is not None:
            self._present.retire()

    def close_retired(self) -> None:
        """As `Outbound.close_retired`."""
        if self._present is not None:
            self._present.close_retired()

    @property
    def firewalls(self) -> tuple[PortWaf, ...]:
        """As `Outbound.firewalls`."""
        return () if self._present is None else self._present.firewalls

    @property
    def is_retiring(self) -> bool:
        """Whether a listener that was given up is not closed yet."""
        return self._present is not None and self._present.is_retiring

    @property
    def counters(self) -> Mapping[str, int]:
        """What was counted of these connections; empty if there are none."""
        return {} if self._present is None else self._present.port.counters

    def _made(self) -> Outbound:
        if self._present is None:
            self._present = Outbound(
                self._loop, self._process, has_room=self._has_room, outcome=self._outcome, retired=self._retired
            )
        return self._present

    def _outcome(self, error: int) -> None:
        """Accepting them works (0), or does not (an errno)."""
        if error in EXHAUSTED:
            self._readiness.exhausted(error)
        elif error:
            self._readiness.hinder(Hindrance(CANNOT_ACCEPT, messages.OUTBOUND, error=error))
        else:
            self._readiness.clear(Hindrance(CANNOT_ACCEPT, messages.OUTBOUND))
