"""A WebSocket on an HTTP/2 stream (RFC 8441) whose messages rules look at.

    asked     the app has not answered: what the client says waits, because the answer says how messages are compressed
    agreed    the app has accepted: each direction is judged message by message (`websocket_messages`)
    over      the app has not accepted, or the messages cannot be read: nothing more is judged

A stream that ends in the middle of a message has what has come of it judged (`close`). One that ends before the app has
answered is read as if without compression.

Bytes stay with whoever relays the stream. The methods say how many of the last bytes of the client may not go on yet.
After each call look at `judged.refusal`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.inspection.websocket_messages import WebSocketMessages
from sidestep.model.errors import PeerError
from sidestep.protocols.decoding import WINDOW
from sidestep.protocols.websocket import negotiated

if TYPE_CHECKING:
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.inspection.limits import InspectionLimits
    from sidestep.policy.route import Fields

EXTENSION: Final = "websocket-extension"
"""Why messages are not inspected: an extension is not known, and may change what frames mean."""


class InspectedWebSocket:
    """See the module."""

    __slots__ = ("_client", "_early", "_is_over", "_limits", "_peer", "judged")

    def __init__(self, judged: Judged, limits: InspectionLimits) -> None:
        self.judged = judged
        self._limits = limits
        self._client: WebSocketMessages | None = None
        self._peer: WebSocketMessages | None = None
        self._early = bytearray()
        """What the client has said before the app has answered."""
        self._is_over = False
        judged.switched(self)

    def answered(self, fields: Fields, status: int) -> int:
        """Take the head of the final answer, whose fields have lower-case names."""
        early = bytes(self._early)
        self._early.clear()
        if self._is_over or self._client is not None:
            return 0
        if not 200 <= status < 300:
            self._is_over = True
            return 0
        try:
            deflate = negotiated(value for name, value in fields if name == b"sec-websocket-extensions")
        except PeerError:
            return self._lose(EXTENSION)
        self._client = WebSocketMessages(self.judged, self._limits, deflate, from_client=True)
        self._peer = WebSocketMessages(self.judged, self._limits, deflate, from_client=False)
        return self.client_says(early)

    def client_says(self, data: bytes) -> int:
        """Take what the client says."""
        if self._client is not None:
            if not self._client.is_read:
                return 0
            self._client.read(data)
            return self._client.held
        if self._is_over:
            return 0
        self._early += data
        if len(self._early) > self._limits.window:
            return self._lose(WINDOW)
        return len(self._early)

    def client_ends(self) -> None:
        """Learn that the client has ended its direction."""
        if self._client is not None:
            self._client.end()

    def peer_says(self, data: bytes) -> None:
        """Take what the other side says."""
        if self._peer is not None and self._peer.is_read:
            self._peer.read(data)

    def peer_ends(self) -> None:
        """Learn that the other side has ended its direction."""
        if self._peer is not None:
            self._peer.end()

    def close(self) -> None:
        """Learn that nothing more is said in either direction."""
        if self._early:
            self.answered((), 200)
        self.client_ends()
        self.peer_ends()

    def _lose(self, reason: str) -> int:
        self._is_over = True
        self._early.clear()
        if self.judged.reads_request_messages:
            self.judged.request_message(b"", reason)
        elif self.judged.reads_response_messages:
            self.judged.response_message(b"", reason)
        return 0
