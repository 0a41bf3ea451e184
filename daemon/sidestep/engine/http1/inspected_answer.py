"""One HTTP/1 response on its way to the client, judged by inspection.

    held       head and body so far stay here: the response may still be blocked, is no stream, and no longer than the
               window
    waiting    the same, and it is whole: the firewall has yet to answer. Whoever drives it reads nothing further of the
               app until then, and calls `go_on`
    released   everything goes to the client as it comes

A response that is blocked while it is held is replaced whole; one that was released can only be broken off. A stream
(`protocols.media_types`) is never held, and a response without a length no longer than `response_seconds`. Whoever
drives it looks at `judged.refusal` after each call: once that is set, nothing more is written here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.leg import queue
from sidestep.protocols.chunked_data import ChunkedData
from sidestep.protocols.http1 import CHUNKED, HEAD, HTTP_1_0
from sidestep.protocols.http1_response_head import response_fields
from sidestep.protocols.media_types import is_stream

if TYPE_CHECKING:
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.inspection.limits import InspectionLimits
    from sidestep.engine.leg import Leg
    from sidestep.protocols.http1_response_head import ResponseHead


class InspectedAnswer:
    """See the module. `deadline` is when a held response without a length is released (monotonic seconds)."""

    __slots__ = ("_chunks", "_client", "_held", "_limits", "_size", "begun", "deadline", "is_waiting", "judged")

    def __init__(self, client: Leg, judged: Judged, limits: InspectionLimits) -> None:
        self._client = client
        self._limits = limits
        self.judged = judged
        self._chunks: ChunkedData | None = None
        self._held: list[bytes] | None = None
        self._size = 0
        self.begun = False
        """A part of the final response went to the client."""
        self.is_waiting = False
        self.deadline: float | None = None

    def head(self, head: bytes, response: ResponseHead | None, now: float) -> None:
        """Take the final head, or that of a switch of protocols."""
        fields = response_fields(head)
        self.judged.response_head(fields, 0 if response is None else response.status)
        if self.judged.refusal is not None:
            return
        self._held = [head]
        if response is not None and response.body == CHUNKED:
            self._chunks = ChunkedData()
        if not self.judged.holds_response or is_stream(fields):
            self.release()
        elif response is not None and response.body < 0:
            self.deadline = now + self._limits.response_seconds

    def body(self, piece: bytes) -> None:
        """Take the next bytes of the body, with its framing."""
        judged = self.judged
        if self._chunks is None:
            judged.response_body(piece)
        else:
            judged.response_body(self._chunks.read(piece))
            judged.response_trailers(self._chunks.trailers)
        if judged.refusal is not None:
            return
        if self._held is None:
            self._client.write(piece)
            return
        queue(self._held, piece)
        self._size += len(piece)
        if judged.keep(len(piece), "response"):
            return
        if self._size > self._limits.window or not judged.holds_response:
            self.release()

    def end(self) -> None:
        """Learn that the response is whole."""
        judged = self.judged
        judged.response_end()
        if judged.refusal is not None:
            return
        self.deadline = None
        self.is_waiting = self._held is not None and judged.awaits_response_verdict
        if not self.is_waiting:
            self.go_on()

    def go_on(self) -> None:
        """Give the client all of the response, which is whole."""
        self.release()
        self.judged.firewall_response.let_go()

    def release(self) -> None:
        """Give the client what is held; what follows goes to it as it comes."""
        held, self._held = self._held, None
        self.deadline = None
        self.is_waiting = False
        if held is not None:
            self.judged.keep(-self._size, "response")
        for piece in held or ():
            self.begun = True
            self._client.write(piece)


def refused(judged: Judged, flags: int, *, close: bool) -> bytes:
    """The answer to a refused request of these flags: a whole response."""
    body = f"{judged.refusal}\n".encode()
    return b"".join(
        (
            b"HTTP/1.1 503 Service Unavailable\r\n" if judged.is_unavailable else b"HTTP/1.1 403 Forbidden\r\n",
            b"Content-Type: text/plain; charset=utf-8\r\n",
            b"Content-Length: %d\r\n" % len(body),
            b"Connection: close\r\n" if close or flags & HTTP_1_0 else b"",
            b"\r\n",
            b"" if flags & HEAD else body,
        )
    )
