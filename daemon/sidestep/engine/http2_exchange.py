"""One diverted stream: what the client sent and nobody has taken yet, what was answered and could not be sent yet.

Two half-streams with a buffer each, between two connections:

    client --body--> Exchange --> link (the handler, or the app's second connection)
    client <-- Exchange <--response-- link

The request side is bounded by the stream window that the app's SETTINGS give the client (it is credited only as the
link takes the body) and by `stream_buffer`; the response side by the window that the link gives its peer. Until the
first byte of the body has been taken, and unless a byte of response has come, the whole request is still here and can
go to somebody else.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from sidestep.engine.relay import queue

if TYPE_CHECKING:
    from sidestep.engine.http2_head import Head
    from sidestep.engine.http2_link import Link
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block


class Exchange:
    """A diverted stream. `stream` is its id with the client, `link_stream` its id on `link` (0: not sent yet)."""

    __slots__ = (
        "answered",
        "block",
        "body",
        "body_size",
        "consumed",
        "credit",
        "final",
        "head",
        "link",
        "link_room",
        "link_stream",
        "link_window",
        "request_ended",
        "request_sent",
        "reset_after",
        "response",
        "response_ended",
        "response_size",
        "response_started",
        "rule",
        "stream",
        "trailers",
        "window",
    )

    def __init__(self, stream: int, head: Head, block: Block, rule: Rule, *, window: int) -> None:
        self.stream = stream
        self.head = head
        self.block = block
        self.rule = rule
        # the request
        self.body: deque[bytes] = deque()
        self.body_size = 0
        self.trailers: Block | None = None
        self.request_ended = False
        """The client has sent END_STREAM."""
        self.request_sent = False
        """The link has been sent END_STREAM."""
        self.consumed = False
        """Body bytes have gone to the link: the request cannot go to anybody else."""
        # the response
        self.response: deque[Block | bytes] = deque()
        self.response_size = 0
        self.response_started = False
        """A header block has come, an informational one included."""
        self.final = False
        """The header block of the final response has come."""
        self.response_ended = False
        """The link has sent END_STREAM."""
        self.reset_after: int | None = None
        """Error code of a reset that follows the complete response."""
        self.answered = False
        """The client has been sent END_STREAM."""
        self.window = window
        """The client's window of this stream: what may be sent to it (bytes; SETTINGS can make it negative)."""
        # the other end
        self.link: Link | None = None
        self.link_stream = 0
        self.link_window = 0
        """The link's peer's window of this stream: what may be sent to it."""
        self.link_room = 0
        """What the peer may still send by the window we gave it."""
        self.credit = 0
        """Response bytes passed on and not yet given back to the peer's window."""

    @property
    def movable(self) -> bool:
        """Whether somebody else can still answer the whole request."""
        return not self.consumed and not self.response_started

    def add_response(self, data: bytes) -> None:
        """Data of the response has come."""
        queue(self.response, data)
        self.response_size += len(data)

    def detach(self) -> None:
        """Forget the link: the request is as new."""
        self.link = None
        self.link_stream = 0
        self.request_sent = False

    def drop_body(self) -> None:
        """Throw away what is buffered of the request."""
        self.body.clear()
        self.body_size = 0

    def drop_response(self) -> int:
        """Throw away what is buffered of the response; how many bytes that were."""
        size = self.response_size
        self.response.clear()
        self.response_size = 0
        return size
