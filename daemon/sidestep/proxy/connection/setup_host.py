"""What the setup of a connection asks of the process around it."""

from __future__ import annotations

from typing import Protocol

from sidestep.engine.mirror.ledger import Ledger
from sidestep.model.condition import ConditionType
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.host import ConnectionHost, RelayedConnection
from sidestep.proxy.connection.inspector_link import InspectorLink
from sidestep.proxy.connection.kept_hellos import KeptHellos
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.control.record_queue import RecordQueue
from sidestep.proxy.mirror.ids_feeds import IdsFeeds
from sidestep.proxy.tls.credentials import ConnectionCredentials


class PendingConnection(Protocol):
    """A connection while it is set up."""

    def abandon(self) -> None:
        """Reset the connection."""


class SetupHost(ConnectionHost, Protocol):
    """What a setup asks, besides what the relay that follows asks."""

    detection_timeout: float
    hellos: KeptHellos
    """ClientHellos of connections whose requests are shown."""
    ledger: Ledger
    records: RecordQueue
    """Where records of inspection go."""
    ids: IdsFeeds
    """Where packets for an IDS go."""
    inspector: InspectorLink
    """Who judges whole requests."""

    @property
    def credentials(self) -> ConnectionCredentials:
        """What the handshakes of the connection take."""

    def opened(self, connection: RelayedConnection) -> None:
        """A connection is relayed from now on."""

    def setup_over(self, setup: PendingConnection) -> None:
        """A setup is over, whatever came of it."""

    def release_names(self, endpoints: Endpoints) -> None:
        """A connection ended, or its dial to the app did, before it was relayed."""

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """A connection of this port met a condition or, with an empty text, found that it does not hold any more."""

    def late_client_auth_seen(self, port: LivePort) -> None:
        """The app has asked for a client's certificate after the handshake."""

    def observe_protocol(self, port: LivePort, endpoints: Endpoints, *, tls: bool) -> None:
        """A connection began with a ClientHello, or with HTTP in clear."""
