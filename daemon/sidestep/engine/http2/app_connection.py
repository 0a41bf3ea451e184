"""The life of the relayed connection to the app.

    unproven   nothing shows yet that the app speaks HTTP/2: its first SETTINGS have not come
    open       frames pass
    retired    the app ended the connection while it was idle only because handlers answer the client. The client is not
               told: its PINGs and SETTINGS are answered here, requests for the app go to the app's second connection
    over       the app ended it in any other case, or cannot be reached any more when a request is for it. The client
               has been told with GOAWAY, and its connection ends with the last diverted stream

`TRANSITIONS` lists every change of state. SETTINGS, the idle GOAWAY and the end come from the relayed connection,
UNREACHABLE from the pool of second connections.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from sidestep.engine.leg import Ending
from sidestep.protocols.http2 import SETTINGS_ACK, ErrorCode, goaway

if TYPE_CHECKING:
    from sidestep.engine.http2.pending_settings import PendingSettings
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.http2.to_client import ToClient
    from sidestep.engine.leg import Leg


class AppState(enum.IntEnum):
    """See the module."""

    UNPROVEN = 0
    OPEN = 1
    RETIRED = 2
    OVER = 3


class AppEvent(enum.IntEnum):
    """What happens to the app's connection."""

    SETTINGS = 0
    """SETTINGS of the app have come."""
    LEFT_IDLE = 1
    """The app ends a connection that only looks idle."""
    ENDED = 2
    """The app has finished sending in any other case, or is lost."""
    UNREACHABLE = 3
    """A second connection to the app cannot be opened."""


TRANSITIONS: Final = {
    (AppState.UNPROVEN, AppEvent.SETTINGS): AppState.OPEN,
    (AppState.UNPROVEN, AppEvent.ENDED): AppState.OVER,
    (AppState.OPEN, AppEvent.SETTINGS): AppState.OPEN,
    (AppState.OPEN, AppEvent.LEFT_IDLE): AppState.RETIRED,
    (AppState.OPEN, AppEvent.ENDED): AppState.OVER,
    (AppState.RETIRED, AppEvent.UNREACHABLE): AppState.OVER,
}
"""(state, event) -> the state that follows. Any other event leaves the state as it is."""


class AppConnection:
    """See the module."""

    __slots__ = ("_connection", "_leg", "_settings", "_to_client", "state")

    def __init__(self, leg: Leg, connection: ConnectionState, settings: PendingSettings, to_client: ToClient) -> None:
        self._leg = leg
        self._connection = connection
        self._settings = settings
        self._to_client = to_client
        self.state = AppState.UNPROVEN

    def on(self, event: AppEvent) -> None:
        """Change the state as `TRANSITIONS` says."""
        self.state = TRANSITIONS.get((self.state, event), self.state)

    @property
    def has_ended(self) -> bool:
        """Whether the app has finished sending, or is lost."""
        return self.state >= AppState.RETIRED

    @property
    def only_looks_idle(self) -> bool:
        """Whether nothing is asked of the app because handlers answer its client: the last new stream was diverted."""
        connection = self._connection
        streams = connection.streams
        to_client = self._to_client
        return (
            connection.mixed
            and self.state is AppState.OPEN
            and not (self._leg.ending or to_client.leg.ending)
            and not (streams.relayed or to_client.middle or to_client.queue)
            and 0 < streams.highest == streams.highest_diverted
            and streams.goaway is None
        )

    def retire(self) -> None:
        """End a connection that only looks idle, unseen by the client. Raises Http2Error on a window overflow."""
        self.on(AppEvent.LEFT_IDLE)
        self._leg.end(Ending.CLOSE)
        while self._settings.await_app:
            self.acknowledge_for_app()

    def acknowledge_for_app(self) -> None:
        """Acknowledge the client's oldest SETTINGS in the app's place. Raises Http2Error on a window overflow."""
        self._to_client.control(SETTINGS_ACK)
        self._to_client.app_acknowledged()

    def second_is_unreachable(self) -> None:
        """Tell the client to go elsewhere when there is no other connection to the app either."""
        if self.state is AppState.RETIRED:
            streams = self._connection.streams
            if streams.goaway is None:
                streams.goaway = streams.highest
                self._to_client.control(goaway(streams.highest, ErrorCode.NO_ERROR))
        self.on(AppEvent.UNREACHABLE)
