"""What the readers of HTTP/1 requests and responses share: where heads end, and where bodies end.

States: FRESH (between messages), HEAD (inside a head), LENGTH and CHUNKS (inside a body); responses also have CLOSE (a
body that ends with the connection) and EMPTY (no body; COMPLETE is due). `read` of a reader consumes bytes up to the
next thing worth knowing and names it in `event`:

    MORE      all bytes are consumed; inside a head they are kept, in a body the caller has them
    HEADED    a request head is complete: `head`. The caller calls `begin`, or gives up on framing
    INTERIM   a 1xx response head is complete: `head`
    SWITCH    101, or 2xx to CONNECT: the same, and the rest of the connection is no longer HTTP/1
    FINAL     a final response head is complete; its body, if any, follows
    COMPLETE  the message is complete, body and all
    BROKEN    `anomaly` says why nothing more can be read; the bytes of this call are not consumed

Invariants: what is kept of a head is bounded by the head limit and one read; a head that can no longer become a good
one is refused when its bytes arrive; after BROKEN only `take_kept` is called.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

from sidestep.protocols.chunked import BROKEN as BODY_BROKEN
from sidestep.protocols.chunked import ChunkedBody
from sidestep.protocols.http1 import CHUNKED, END_OF_HEAD, LIMITS, Http1Limits, check_prefix

MORE: Final = 0
HEADED: Final = 1
INTERIM: Final = 2
SWITCH: Final = 3
FINAL: Final = 4
COMPLETE: Final = 5
BROKEN: Final = 6

# Readers compare: up to HEAD there is no body, up to CHUNKS it has an end of its own.
FRESH: Final = 0
HEAD: Final = 1
LENGTH: Final = 2
CHUNKS: Final = 3
CLOSE: Final = 4
EMPTY: Final = 5


class MessageReader:
    """Base of `RequestReader` and `ResponseReader`. `left` is there for the hot path of the relay."""

    __slots__ = ("_checked", "_chunks", "_kept", "_limits", "anomaly", "event", "head", "left", "state")

    START_LINE: ClassVar[re.Pattern[bytes]]
    """What the first line of a head matches."""
    ANOMALY: ClassVar[str]
    """How the anomalies of this kind of message begin, in the place of `h1-`."""

    def __init__(self, limits: Http1Limits = LIMITS) -> None:
        self._limits = limits
        self._kept = bytearray()
        """The beginning of a head."""
        self._checked = 0
        """Bytes of it that are whole lines and were found good."""
        self._chunks: ChunkedBody
        """There is one in the state CHUNKS (a connection is made faster without)."""
        self.state = FRESH
        self.event = MORE
        self.head = b""
        self.left = 0
        """Bytes of a LENGTH body still to come."""
        self.anomaly = ""

    @property
    def in_head(self) -> bool:
        """Whether what was consumed last is the beginning of a head."""
        return self.state == HEAD

    def take_kept(self) -> bytes:
        """Give up the beginning of a head that was kept."""
        kept = bytes(self._kept)
        self._kept.clear()
        self.state = FRESH
        return kept

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

    def _read_body(self, data: bytes, at: int) -> int:
        """Consume `data[at:]` in one of the states LENGTH and CHUNKS."""
        if self.state == LENGTH:
            available = len(data) - at
            if available < self.left:
                self.left -= available
                self.event = MORE
                return len(data)
            at += self.left
            self.left = 0
            return self._complete(at)
        end = self._chunks.read(data, at)
        if end >= 0:
            return self._complete(end)
        if end == BODY_BROKEN:
            return self._broken("h1-chunk", at)
        self.event = MORE
        return len(data)

    def _complete(self, at: int) -> int:
        self.state = FRESH
        self.event = COMPLETE
        return at

    def _broken(self, anomaly: str, at: int) -> int:
        self.event = BROKEN
        self.anomaly = anomaly if anomaly.startswith(self.ANOMALY) else anomaly.replace("h1-", self.ANOMALY, 1)
        return at

    def _read_head(self, data: bytes, at: int) -> int:
        """Consume `data[at:]` up to the end of a head: HEADED, MORE or BROKEN. The state is FRESH or HEAD."""
        kept = self._kept
        if not kept:
            end = data.find(END_OF_HEAD, at) + 4
            if end >= 4:
                self.head = data[at:end]
                self.event = HEADED
                return end
        known = len(kept)
        kept += data[at:]
        end = kept.find(END_OF_HEAD, max(0, known - 3)) + 4
        if end >= 4:
            self.head = bytes(kept[:end])
            kept.clear()
            self._checked = 0
            self.state = FRESH
            self.event = HEADED
            return at + end - known
        self.state = HEAD
        return self._check(known, data, at)

    def _check(self, known: int, data: bytes, at: int) -> int:
        """See whether the kept beginning may still become a good head; its bytes from `known` on are new."""
        kept = self._kept
        checked: int | str = "h1-head-too-large"
        if len(kept) <= self._limits.head:
            checked = check_prefix(kept, self._checked, known, self.START_LINE)
        if isinstance(checked, str):
            del kept[known:]
            return self._broken(checked, at)
        self._checked = checked
        self.event = MORE
        return len(data)
