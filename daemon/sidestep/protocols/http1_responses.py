"""Follows the responses of one connection: where heads, bodies and messages end.

States: FRESH (before a response), HEAD (inside a head), then LENGTH, CHUNKS, CLOSE (a body that ends with the
connection) or EMPTY (no body; COMPLETE is due). `read` consumes bytes up to the next thing worth knowing and names it
in `event`:

    MORE      all bytes consumed, nothing ended; inside a head they are kept in `_held`, in a body they are gone
    INTERIM   a 1xx head is complete: `head`, `response`
    SWITCH    101, or 2xx to CONNECT: the same, and the rest of the connection is no longer HTTP/1
    FINAL     a final head is complete; its body, if any, follows
    COMPLETE  the response is complete, body and all
    BROKEN    `anomaly` says why no further message can be found

Invariants: FINAL is always followed by COMPLETE (at once when there is no body, so call again), or by BROKEN, or the
connection ends first. `_held` is bounded by the head limit. Heads seen before are remembered by their bytes, bounded in
entries and bytes: framing depends on nothing else.
"""

from __future__ import annotations

from typing import Final

from sidestep.protocols.chunked import BROKEN as BODY_BROKEN
from sidestep.protocols.chunked import ChunkedBody
from sidestep.protocols.http1 import (
    CHUNKED,
    CONNECT,
    END_OF_HEAD,
    HEAD,
    LIMITS,
    STATUS_LINE,
    UNTIL_CLOSE,
    Http1Limits,
    ResponseHead,
    check_prefix,
    parse_response,
)

MORE, INTERIM, SWITCH, FINAL, COMPLETE, BROKEN = range(6)

FRESH, LENGTH, _HEAD, _CHUNKS, _CLOSE, _EMPTY = range(6)

TOO_LARGE: Final = "h1-response-head-too-large"
"""The anomaly of a head above `Http1Limits.head`."""

_remembered: dict[bytes, ResponseHead] = {}


def recall(head: bytes, limits: Http1Limits = LIMITS) -> ResponseHead | str:
    """`parse_response` with a memo: under load most heads repeat until their Date changes."""
    response: ResponseHead | str | None = _remembered.get(head)
    if response is None:
        response = parse_response(head)
        if isinstance(response, ResponseHead) and len(head) <= limits.memo_head:
            if len(_remembered) >= limits.memo_entries:
                _remembered.clear()
            _remembered[head] = response
    return response


class ResponseReader:
    """One per answering leg. `state` and `left` (bytes of a LENGTH body still to come) are there for the hot path of
    the relay, which reads the commonest responses itself.
    """

    __slots__ = ("_checked", "_chunks", "_held", "_limits", "anomaly", "event", "head", "left", "response", "state")

    def __init__(self, limits: Http1Limits = LIMITS) -> None:
        self._limits = limits
        self.state = FRESH
        self._chunks = ChunkedBody(limits)
        self._held = bytearray()
        self._checked = 0
        self.left = 0
        self.event = MORE
        self.head = b""
        self.response: ResponseHead | None = None
        self.anomaly = ""

    @property
    def in_head(self) -> bool:
        """Whether what was consumed last is the beginning of a head."""
        return self.state == _HEAD

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body being read is whole when its connection ends."""
        return self.state == _CLOSE

    def begin_length(self, response: ResponseHead, left: int) -> None:
        """Go on inside a body of which `left` bytes (more than 0) are to come; the head was read by the caller."""
        self.response = response
        self.state = LENGTH
        self.left = left

    def read(self, data: bytes, at: int, flags: int) -> int:
        """Consume `data[at:]`, set `event`, return the offset reached. `flags` are those of the request answered."""
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
        if state in (FRESH, _HEAD):
            return self._read_head(data, at, flags)
        if state == _EMPTY:
            return self._complete(at)
        if state == _CHUNKS:
            end = self._chunks.read(data, at)
            if end >= 0:
                return self._complete(end)
            if end == BODY_BROKEN:
                return self._broken("h1-response-chunk", len(data))
        self.event = MORE
        return len(data)

    def _complete(self, at: int) -> int:
        self.state = FRESH
        self.event = COMPLETE
        return at

    def _broken(self, anomaly: str, at: int) -> int:
        self.event = BROKEN
        self.anomaly = anomaly
        return at

    def _read_head(self, data: bytes, at: int, flags: int) -> int:
        held = self._held
        if held:
            known = len(held)
            held += data[at:]
            end = held.find(END_OF_HEAD, max(0, known - 3)) + 4
            if end < 4:
                return self._check(known, len(data))
            head = bytes(held[:end])
            at += end - known
            held.clear()
            self._checked = 0
        else:
            end = data.find(END_OF_HEAD, at) + 4
            if end < 4:
                held += data[at:]
                self.state = _HEAD
                return self._check(0, len(data))
            head = data[at:end]
            at = end
        if len(head) > self._limits.head:
            return self._broken(TOO_LARGE, at)
        response = recall(head, self._limits)
        if isinstance(response, str):
            return self._broken(response, at)
        self.head = head
        self.response = response
        return self._begin(response, at, flags)

    def _check(self, new: int, at: int) -> int:
        if len(self._held) > self._limits.head:
            return self._broken(TOO_LARGE, at)
        checked = check_prefix(self._held, self._checked, new, STATUS_LINE)
        if isinstance(checked, str):
            return self._broken(checked.replace("h1-", "h1-response-", 1), at)
        self._checked = checked
        self.event = MORE
        return at

    def _begin(self, response: ResponseHead, at: int, flags: int) -> int:
        status = response.status
        self.state = FRESH
        if status == 101 or (flags & CONNECT and 200 <= status < 300):
            self.event = SWITCH
        elif status < 200:
            self.event = INTERIM
        else:
            self.event = FINAL
            body = 0 if flags & HEAD else response.body
            if body == UNTIL_CLOSE:
                self.state = _CLOSE
            elif body == CHUNKED:
                self.state = _CHUNKS
                self._chunks = ChunkedBody(self._limits)
            else:
                self.state = LENGTH if body else _EMPTY
                self.left = body
        return at
