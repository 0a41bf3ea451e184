"""Follows the responses of one connection (see `http1_messages`), and remembers heads.

FINAL is always followed by COMPLETE (at once when there is no body, so call again), or by BROKEN, or the connection
ends first. Heads seen before are remembered by their bytes, bounded in entries and bytes: framing depends on nothing
else.
"""

from __future__ import annotations

from typing import Final

from sidestep.protocols.http1 import (
    CONNECT,
    HEAD,
    LIMITS,
    STATUS_LINE,
    Http1Limits,
)
from sidestep.protocols.http1_messages import (
    CHUNKS,
    CLOSE,
    EMPTY,
    FINAL,
    HEADED,
    INTERIM,
    LENGTH,
    MORE,
    SWITCH,
    MessageReader,
)
from sidestep.protocols.http1_messages import HEAD as IN_HEAD
from sidestep.protocols.http1_response_head import UNTIL_CLOSE, ResponseHead, parse_response

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


class ResponseReader(MessageReader):
    """One per answering leg. `response` is the head read last."""

    __slots__ = ("response",)

    START_LINE = STATUS_LINE
    ANOMALY = "h1-response-"

    def __init__(self, limits: Http1Limits = LIMITS) -> None:
        super().__init__(limits)
        self.response: ResponseHead | None = None

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body being read is whole when its connection ends."""
        return self.state == CLOSE

    @property
    def chunked_size(self) -> int:
        """Bytes of the chunked body that is complete, without framing."""
        return self._chunks.size

    def begin_length(self, response: ResponseHead, left: int) -> None:
        """Go on inside a body of which `left` bytes (more than 0) are to come; the head was read by the caller."""
        self.response = response
        self.state = LENGTH
        self.left = left

    def read(self, data: bytes, at: int, flags: int) -> int:
        """Consume `data[at:]`, set `event` (any but HEADED), return the offset reached.

        `flags` are those of the request answered.
        """
        state = self.state
        if state <= IN_HEAD:
            at = self._read_head(data, at)
            return self._headed(at, flags) if self.event == HEADED else at
        if state <= CHUNKS:
            return self._read_body(data, at)
        if state == EMPTY:
            return self._complete(at)
        self.event = MORE
        return len(data)

    def _headed(self, at: int, flags: int) -> int:
        """A head is complete: say which kind it is, and what follows it."""
        if len(self.head) > self._limits.head:
            return self._broken("h1-head-too-large", at)
        response = recall(self.head, self._limits)
        if isinstance(response, str):
            return self._broken(response, at)
        self.response = response
        status = response.status
        if status == 101 or (flags & CONNECT and 200 <= status < 300):
            self.event = SWITCH
        elif status < 200:
            self.event = INTERIM
        else:
            self.event = FINAL
            body = 0 if flags & HEAD else response.body
            if body == UNTIL_CLOSE:
                self.state = CLOSE
            elif body:
                self.begin(body)
            else:
                self.state = EMPTY
        return at
