"""Follows the requests of one connection: where heads end, and, once told the framing, where bodies end.

States: FRESH (between requests), HEAD (inside a head), LENGTH, CHUNKS. `read` consumes bytes up to the next thing worth
knowing and names it in `event`:

    MORE      all bytes consumed; inside a head they are kept (`pending`), in a body the caller has them
    HEADED    a head is complete: `head`. The caller judges it and calls `begin`, or gives up on framing
    COMPLETE  the body is complete; `begin` with no body means the same without a call of `read`
    BROKEN    `anomaly` says why; what was kept of a head is still in `pending`, the bytes of this call are not consumed

Invariants: `pending` is bounded by the head limit and one read; after BROKEN the reader is not used again, except that
`take` hands out what it kept.
"""

from __future__ import annotations

from sidestep.protocols.chunked import BROKEN as BODY_BROKEN
from sidestep.protocols.chunked import ChunkedBody
from sidestep.protocols.http1 import CHUNKED, END_OF_HEAD, LIMITS, REQUEST_LINE, Http1Limits, check_prefix

MORE, HEADED, COMPLETE, BROKEN = range(4)

FRESH, HEAD, LENGTH, CHUNKS = range(4)


class RequestReader:
    """One per client connection."""

    __slots__ = ("_checked", "_chunks", "_limits", "_pending", "anomaly", "event", "head", "left", "state")

    def __init__(self, limits: Http1Limits = LIMITS) -> None:
        self._limits = limits
        self._checked = 0
        self._chunks = ChunkedBody(limits)
        self._pending = bytearray()
        self.state = FRESH
        self.event = MORE
        self.head = b""
        self.left = 0
        """Bytes of a LENGTH body still to come."""
        self.anomaly = ""

    def take(self) -> bytes:
        """Give up the beginning of a head that was kept."""
        pending = bytes(self._pending)
        self._pending.clear()
        self.state = FRESH
        return pending

    def begin(self, body: int) -> None:
        """The head just read has a body of this many bytes, or CHUNKED."""
        if body == CHUNKED:
            self.state = CHUNKS
            self._chunks = ChunkedBody(self._limits)
        elif body:
            self.state = LENGTH
            self.left = body
        else:
            self.state = FRESH

    def read(self, data: bytes, at: int) -> int:
        """Consume `data[at:]`, set `event`, return the offset reached."""
        state = self.state
        if state == LENGTH:
            available = len(data) - at
            if available < self.left:
                self.left -= available
                self.event = MORE
                return len(data)
            at += self.left
            self.left = 0
            return self._complete(at)
        if state == CHUNKS:
            end = self._chunks.read(data, at)
            if end >= 0:
                return self._complete(end)
            if end == BODY_BROKEN:
                return self._broken("h1-chunk", at)
            self.event = MORE
            return len(data)
        return self._read_head(data, at)

    def _complete(self, at: int) -> int:
        self.state = FRESH
        self.event = COMPLETE
        return at

    def _broken(self, anomaly: str, at: int) -> int:
        self.event = BROKEN
        self.anomaly = anomaly
        return at

    def _read_head(self, data: bytes, at: int) -> int:
        pending = self._pending
        if not pending:
            end = data.find(END_OF_HEAD, at) + 4
            if end >= 4:
                self.head = data[at:end]
                self.event = HEADED
                return end
        known = len(pending)
        pending += data[at:]
        end = pending.find(END_OF_HEAD, max(0, known - 3)) + 4
        if end >= 4:
            self.head = bytes(pending[:end])
            pending.clear()
            self.state = FRESH
            self._checked = 0
            self.event = HEADED
            return at + end - known
        self.state = HEAD
        return self._check(known, data, at)

    def _check(self, known: int, data: bytes, at: int) -> int:
        """Whether the kept beginning may still become a head that can be read."""
        pending = self._pending
        checked: int | str = "h1-head-too-large"
        if len(pending) <= self._limits.head:
            checked = check_prefix(pending, self._checked, known, REQUEST_LINE)
        if isinstance(checked, str):
            del pending[known:]
            return self._broken(checked, at)
        self._checked = checked
        self.event = MORE
        return len(data)
