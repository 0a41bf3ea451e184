"""A wire that is a WebSocket whose messages rules look at.

It is the wire of a connection whose app, or handler, has answered 101 to a request to which rules may apply beyond the
head (`InspectedWire`). Each direction in which they do is read and held by `engine.inspection.websocket_messages`. A
message that is refused breaks the connection off: both ends are reset, and no byte of the message was passed on.

Invariant: while a direction is read the legs are not `joined`, so that the bytes come through here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.inspection.websocket_messages import WebSocketMessages
from sidestep.engine.leg import Ending, Leg
from sidestep.engine.passthrough import Wire

if TYPE_CHECKING:
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.inspection.limits import InspectionLimits
    from sidestep.engine.relay import Relay
    from sidestep.protocols.http1 import Http1Limits
    from sidestep.protocols.websocket import Deflate


class WebSocketWire(Wire):
    """See the module."""

    __slots__ = ("_from_client", "_from_peer", "_judged")

    def __init__(
        self,
        relay: Relay,
        peer: Leg,
        judged: Judged,
        deflate: Deflate | None,
        *,
        inspection_limits: InspectionLimits,
        limits: Http1Limits,
        exchange: int = 0,
    ) -> None:
        self._judged = judged
        self._from_client = WebSocketMessages(judged, inspection_limits, deflate, from_client=True)
        self._from_peer = WebSocketMessages(judged, inspection_limits, deflate, from_client=False)
        super().__init__(relay, peer, limits=limits, exchange=exchange)
        judged.switched(self)

    def close(self) -> None:
        """Learn that the connection is over: judge what has come of messages that have not ended."""
        self._from_client.end()
        self._from_peer.end()

    @property
    def _is_read(self) -> bool:
        """Whether some rule still looks at a direction."""
        return self._from_client.is_read or self._from_peer.is_read

    def join(self) -> None:
        """As `Wire.join`."""
        super().join()
        if self._is_read:
            self._relay.joined = None

    def sent_early(self, data: bytes) -> None:
        """Take what the client has said that was passed on before the other side agreed."""
        self._from_client.passed(data)
        self.mirror_client(data)
        self._look()

    def receive(self, leg: Leg, data: bytes) -> None:
        """As `Wire.receive`, of what may be passed on."""
        messages = self._of(leg)
        if messages is None or not messages.is_read:
            super().receive(leg, data)
            return
        passed = messages.read(data)
        if not self._look():
            return
        if passed:
            super().receive(leg, passed)
        if not self._is_read:
            self.join()

    def receive_eof(self, leg: Leg) -> None:
        """As `Wire.receive_eof`, once what is held is passed on or refused."""
        messages = self._of(leg)
        if messages is not None:
            left = messages.end()
            if not self._look():
                return
            if left:
                super().receive(leg, left)
        super().receive_eof(leg)

    def _of(self, leg: Leg) -> WebSocketMessages | None:
        if leg is self._relay.client:
            return self._from_client
        return self._from_peer if leg is self.peer else None

    def _look(self) -> bool:
        """Break the connection off if it is refused; returns whether it goes on."""
        relay = self._relay
        if self._judged.refusal is not None and not relay.done:
            if self._exchange:
                self._mirror.cut(self._exchange, at=relay.now)
            relay.client.end(Ending.ABORT)
            self.peer.end(Ending.ABORT)
            relay.done = True
        return not relay.done
