"""The connections of a pod proxy: those that are being set up, and those that are relayed.

A connection is in `setups` from its accept until its setup is over, then in `relayed` until it is closed. `changed` is
called whenever one has left either set: a draining process may end then.
"""

from __future__ import annotations

from collections.abc import Callable

from sidestep.proxy.connection.host import RelayedConnection
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.setup_host import PendingConnection


class LiveConnections:
    """Both sets."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.setups: set[PendingConnection] = set()
        self.relayed: set[RelayedConnection] = set()

    @property
    def count(self) -> int:
        """The number of all connections."""
        return len(self.setups) + len(self.relayed)

    def begin(self, setup: PendingConnection) -> None:
        """Note that a setup begins."""
        self.setups.add(setup)

    def setup_over(self, setup: PendingConnection) -> None:
        """Note that a setup is over."""
        self.setups.discard(setup)
        self._changed()

    def opened(self, connection: RelayedConnection) -> None:
        """Note that a connection is relayed."""
        self.relayed.add(connection)

    def closed(self, connection: RelayedConnection) -> None:
        """Note that a connection is closed."""
        self.relayed.discard(connection)
        self._changed()

    def retire_idle(self, latest: float) -> None:
        """End connections that are idle and got no bytes after `latest` (monotonic seconds)."""
        for connection in [*self.relayed]:
            if connection.active <= latest and connection.relay.idle:
                connection.retire()

    def retire_orphaned(self, latest: float) -> None:
        """End connections that got no bytes after `latest` (monotonic seconds), and that nobody else would ever end."""
        for connection in [*self.relayed]:
            if connection.active <= latest and connection.relay.is_orphaned:
                connection.retire()

    def retire_late_auth(self, port: LivePort) -> None:
        """End idle connections of a port whose app may ask their clients for certificates after the handshake."""
        for connection in [*self.relayed]:
            is_opened = connection.port is port and connection.app_tls is not None
            if is_opened and connection.relay.idle and connection.allows_late_auth:
                connection.retire()

    def reset(self, port: LivePort) -> None:
        """Reset the relayed connections of a port. What is being set up will have the port's present policies."""
        for connection in [*self.relayed]:
            if connection.port is port:
                connection.abandon()

    def abandon(self) -> None:
        """Reset all."""
        for setup in [*self.setups]:
            setup.abandon()
        for connection in [*self.relayed]:
            connection.abandon()
