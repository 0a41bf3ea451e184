"""A connection, as what mirrors it sees it (`proxy.mirror`): copies are opened and logged through it.

Made only for connections that somebody listens to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.relay import Relay
from sidestep.proxy.connection.endpoints import ConnectionInfo
from sidestep.proxy.connection.host import ConnectionHost, RelayedConnection
from sidestep.proxy.io.stream import PlainStream


class Mirrorable(RelayedConnection, Protocol):
    """A conductor."""

    host: ConnectionHost
    protocol: str

    @property
    def is_apart(self) -> bool:
        """Whether nothing more is relayed by the engine: the connection is closed, or the kernel moves its bytes."""

    def info(self, protocol: str) -> ConnectionInfo:
        """What a handler is told of the connection."""

    def apply_again(self) -> None:
        """Carry out everything that the relay wants; ends the connection if that raises."""


class MirroredConnection:
    """Implements `proxy.mirror.copy_connection.MirroredConnection` for one conductor."""

    __slots__ = ("_conductor",)

    def __init__(self, conductor: Mirrorable) -> None:
        self._conductor = conductor

    @property
    def relay(self) -> Relay:
        """The relay that goes on with the connection."""
        return self._conductor.relay

    def ask_for_copy(self, leg: CopyLeg, done: Callable[[PlainStream | None], None]) -> Callable[[], None]:
        """Ask for a connection to the handler of a copy; returns a function that cancels."""
        conductor = self._conductor
        return conductor.host.open_stream(conductor.info(leg.protocol or conductor.protocol), leg, done)

    def mirrored(self) -> None:
        """Some events were consumed: bring copies in line, and see whether the connection can be spliced now."""
        self._conductor.apply_again()

    def sink_told(self) -> None:
        """A sink was told something about one of its legs: log it, and see whether the connection can be spliced."""
        conductor = self._conductor
        notes = conductor.relay.mirror.notes
        if conductor.is_apart:
            if notes:
                conductor.host.log_requests(conductor)
        elif notes or conductor.relay.wired is not None:
            conductor.apply_again()
