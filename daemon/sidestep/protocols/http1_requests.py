"""Follows the requests of one connection (see `http1_messages`).

The framing of a request is decided by whoever reads its head, so the reader stops at HEADED until `begin` is called;
`begin` with no body means COMPLETE without a call of `read`.
"""

from __future__ import annotations

from sidestep.protocols.http1 import REQUEST_LINE
from sidestep.protocols.http1_messages import HEAD, MessageReader


class RequestReader(MessageReader):
    """One per client connection."""

    __slots__ = ()

    START_LINE = REQUEST_LINE
    ANOMALY = "h1-"

    def read(self, data: bytes, at: int) -> int:
        """Consume `data[at:]`, set `event` (MORE, HEADED, COMPLETE or BROKEN), return the offset reached."""
        return self._read_head(data, at) if self.state <= HEAD else self._read_body(data, at)
