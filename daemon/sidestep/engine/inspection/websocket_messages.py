"""One direction of a WebSocket whose messages rules look at: what of it may be passed on.

    bytes -> held until the message that they belong to has ended and was judged -> passed on

Nothing is held in a direction in which no rule can block (any more): its bytes are read as they go by. Control frames
are judged as messages, because their payload goes to the app as well; those within a message wait with it.

A message that is longer than the window or cannot be decompressed, one whose sender ends in the middle of it, and a
stream that breaks the protocol, are not inspected: they are refused where a policy closes, and otherwise counted and
passed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.protocols.decoding import WINDOW, Bounds
from sidestep.protocols.websocket import Reader

if TYPE_CHECKING:
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.inspection.limits import InspectionLimits
    from sidestep.protocols.websocket import Deflate

INCOMPLETE: Final = "incomplete"
"""Why a message is not inspected: its sender ended in the middle of it."""


class WebSocketMessages:
    """See the module. After each call look at `judged.refusal`: once that is set, nothing more may be passed on."""

    __slots__ = ("_counted", "_from_client", "_has_ended", "_held", "_judged", "_passed", "_reader", "_window")

    def __init__(self, judged: Judged, limits: InspectionLimits, deflate: Deflate | None, *, from_client: bool) -> None:
        self._judged = judged
        self._from_client = from_client
        self._window = limits.window
        self._reader = Reader(from_client=from_client, bounds=Bounds(limits.window), deflate=deflate)
        self._held = bytearray()
        self._passed = 0
        """Offset in the stream of the first byte of `_held`."""
        self._counted: int | None = None
        """Where a message begins that was counted as not inspected before it had ended: it is not held."""
        self._has_ended = False

    @property
    def is_read(self) -> bool:
        """Whether some rule still looks at this direction."""
        judged = self._judged
        reads = judged.reads_request_messages if self._from_client else judged.reads_response_messages
        return reads and self._reader.reason is None

    @property
    def _holds(self) -> bool:
        judged = self._judged
        return self.is_read and (judged.holds_request if self._from_client else judged.holds_response)

    @property
    def held(self) -> int:
        """How many of the last bytes may not be passed on yet."""
        return len(self._held)

    def read(self, data: bytes) -> bytes:
        """Take the next bytes; returns what may be passed on."""
        reader, judged = self._reader, self._judged
        self._held += data
        for message in reader.feed(data):
            self._judge(message.data, None if message.start == self._counted else message.reason)
            if judged.refusal is not None:
                return b""
        complete = max(0, reader.complete - self._passed)
        if reader.reason is not None:
            self._judge(reader.partial, reader.reason)
        elif self._holds and len(self._held) - complete > self._window and self._counted != reader.begun:
            self._counted = reader.begun
            self._judge(b"", WINDOW)
        if judged.refusal is not None:
            return b""
        if not self._holds or (reader.begun is not None and reader.begun == self._counted):
            complete = len(self._held)
        return self._take(complete)

    def passed(self, data: bytes) -> None:
        """Take bytes that have been passed on before."""
        self.read(data)
        self._passed += len(self._held)
        self._held.clear()

    def end(self) -> bytes:
        """Learn that nothing more comes; returns what may be passed on of what was held.

        What has come of a message that has not ended is judged, once.
        """
        begun, has_ended, self._has_ended = self._reader.begun, self._has_ended, True
        if self.is_read and (self._held or begun is not None) and not has_ended:
            is_counted = begun is not None and begun == self._counted
            self._judge(self._reader.partial, None if is_counted else INCOMPLETE)
        return self._take(len(self._held)) if self._judged.refusal is None else b""

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        self._passed += count
        return taken

    def _judge(self, data: bytes, reason: str | None) -> None:
        if self._from_client:
            self._judged.request_message(data, reason)
        else:
            self._judged.response_message(data, reason)
