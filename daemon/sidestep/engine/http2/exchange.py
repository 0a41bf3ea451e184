"""One diverted stream: what the client sent and nobody has taken yet, what was answered and could not be sent yet.

Two half-streams with a buffer each, between two connections:

    client --body--> Exchange --> link (the handler, or the app's second connection)
    client <-- Exchange <--response-- link

The request side is bounded by the stream window that the client has (`room`: the app's SETTINGS, then what is credited
as the link takes the body) and by the connection's share of the budget; the response side by the window that the link
gives its peer. Who else can still answer the request:

    `movable`     not a byte of the body has been taken and no byte of response has come: anybody
    `replayable`  no byte of response has come and what was taken of the body is still kept (`kept`, up to `replay`
                  bytes): anybody, if the link's peer guarantees that it has processed nothing (`rewind`)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from sidestep.engine.relay import queue

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.memory_budget import Account
    from sidestep.engine.relay import Leg
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block

OBJECTS: Final = 3 * 1024
"""Bytes that an open exchange costs in objects, measured roughly, beyond its strings."""


class ExchangeLink(Protocol):
    """The connection that carries an exchange (`link.Link`), as its users see it."""

    leg: Leg

    def pump(self) -> None:
        """Send what may be sent now."""

    def wake(self, exchange: Exchange) -> None:
        """Learn that the exchange has more to send."""

    def cancel(self, exchange: Exchange, code: int) -> None:
        """Reset the exchange's stream with this error code: nobody wants the answer any more."""

    def passed_on(self, exchange: Exchange, size: int) -> None:
        """Learn that `size` bytes of the response have gone to the client."""

    def discarded(self, size: int) -> None:
        """Learn that `size` bytes of DATA are not in memory any more."""


class Exchange:
    """A diverted stream. `stream` is its id with the client, `link_stream` its id on `link` (0: not sent yet)."""

    __slots__ = (
        "_account",
        "_charged",
        "_fixed",
        "answered",
        "attempts",
        "block",
        "body",
        "body_size",
        "consumed",
        "credit",
        "final",
        "head",
        "kept",
        "kept_size",
        "link",
        "link_room",
        "link_stream",
        "link_window",
        "prepaid",
        "replay",
        "request_ended",
        "request_sent",
        "reset_after",
        "response",
        "response_ended",
        "response_size",
        "response_started",
        "room",
        "rule",
        "stream",
        "to_app",
        "trailers",
        "window",
    )

    def __init__(self, stream: int, head: Head, block: Block, rule: Rule | None, *, window: int) -> None:
        self.stream = stream
        self.head = head
        self.block = block
        self.rule = rule
        """None: no rule wants it, it is for the app's second connection (`to_app`)."""
        # the request
        self.body: deque[bytes] = deque()
        self.body_size = 0
        self.trailers: Block | None = None
        self.room = 0
        """What the client may still send by the window it has of this stream (bytes)."""
        self.request_ended = False
        """The client has sent END_STREAM."""
        self.request_sent = False
        """The link has been sent END_STREAM."""
        self.consumed = False
        """Body bytes have gone to the link."""
        self.replay = 0
        """Bytes of the body that may be kept after they have gone to the link; 0: none is kept."""
        self.kept: deque[bytes] = deque()
        self.kept_size = 0
        self.prepaid = 0
        """Bytes of the body that go to a link for a second time: the client has been given window for them."""
        self.attempts = 0
        """How often somebody refused it without having done anything else."""
        self.to_app = False
        """No handler will answer it; the app's second connection does."""
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
        self.link: ExchangeLink | None = None
        self.link_stream = 0
        self.link_window = 0
        """The link's peer's window of this stream: what may be sent to it."""
        self.link_room = 0
        """What the peer may still send by the window we gave it."""
        self.credit = 0
        """Response bytes passed on and not yet given back to the peer's window."""
        # memory
        self._account: Account | None = None
        self._fixed = 0
        self._charged = 0

    # --- memory -----------------------------------------------------------------------------------------------------

    def charge(self, account: Account) -> None:
        """Count what this exchange holds there from now on."""
        self._account = account
        self._fixed = OBJECTS + len(self.block.literal)
        self.reckon()

    def reckon(self) -> None:
        """Bring the account in line with what is held."""
        if self._account is not None:
            held = self._fixed + self.body_size + self.kept_size + self.response_size
            if held != self._charged:
                self._account.change(held - self._charged)
                self._charged = held

    def settle(self) -> None:
        """The client is done with the stream: what is left goes to the link, or is thrown away."""
        self._fixed = 0
        self.forget_kept()

    # --- the request ------------------------------------------------------------------------------------------------

    @property
    def movable(self) -> bool:
        """Whether somebody else can still answer the whole request."""
        return not self.consumed and not self.response_started

    @property
    def replayable(self) -> bool:
        """Whether somebody else can, once the link's peer says that it has processed nothing."""
        return self.movable or (self.replay > 0 and not self.response_started)

    def add_body(self, data: bytes) -> None:
        """Data of the request has come."""
        queue(self.body, data)
        self.body_size += len(data)

    def sent(self, piece: bytes) -> None:
        """A piece of the body, which `body` does not hold any more, has gone to the link."""
        self.body_size -= len(piece)
        self.consumed = True
        if self.replay:
            queue(self.kept, piece)
            self.kept_size += len(piece)
            if self.kept_size > self.replay:
                self.forget_kept()

    def forget_kept(self) -> None:
        """Drop the kept part of the body: the request is not sent to anybody else any more."""
        self.replay = 0
        self.kept.clear()
        self.kept_size = 0
        self.reckon()

    def rewind(self) -> None:
        """The peer has processed nothing (`replayable`): the request is as new."""
        self.body.extendleft(reversed(self.kept))
        self.body_size += self.kept_size
        self.prepaid += self.kept_size
        self.kept.clear()
        self.kept_size = 0
        self.consumed = False
        self.detach()

    def owed(self, size: int) -> int:
        """How much of `size` bytes that went to the link the client is to be given window for."""
        prepaid = min(size, self.prepaid)
        self.prepaid -= prepaid
        return size - prepaid

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
        self.forget_kept()

    def drop_response(self) -> int:
        """Throw away what is buffered of the response; how many bytes that were."""
        size = self.response_size
        self.response.clear()
        self.response_size = 0
        self.reckon()
        return size
