"""One diverted stream: what the client sent and the link has not taken yet, and the response that waits for the client.

    client --body--> Exchange --> link (the handler, or the app's second connection)
    client <-- Exchange <--response-- link

Each direction is a half-stream with a state and a buffer. `request_state`:

    OPEN           the client may send more
    ENDED          the client has sent END_STREAM
    SENT           the link has been sent END_STREAM

    OPEN -- END_STREAM of the client --> ENDED -- END_STREAM to the link --> SENT
                                           ^-- the request goes to another link --'

`response_state`, which only moves forward:

    NONE           nothing has come
    INFORMATIONAL  a header block with status 1xx has come
    FINAL          the header block of the final response has come
    ENDED          the link has sent END_STREAM, or the relay has written the response itself
    DELIVERED      the client has been sent END_STREAM

The exchange is over, and leaves `Streams.exchanges`, when the request is ENDED or SENT and the response DELIVERED, or
when either side has reset the stream.

Whether somebody else can still answer the request:

    `movable`      not a byte of the body has been taken and no byte of the response has come: anybody can
    `replayable`   no byte of the response has come and what was taken of the body is still kept (`kept`, up to `replay`
                   bytes): anybody can, if the link's peer guarantees that it has processed nothing (`rewind`)

Windows, in bytes. `room` and `link_room` bound what is received from client and link, `window` and `link_window` what
is sent to them. So the request's buffer is bounded by `room` (the app's SETTINGS, then what is given back as the link
takes the body) and by the connection's share of the memory budget, the response's by `link_room`.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from sidestep.engine.leg import queue

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.leg import Leg
    from sidestep.engine.memory_budget import Account
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block

OBJECTS: Final = 3 * 1024
"""Bytes that the objects of an open exchange take, without their strings; measured roughly."""


class RequestState(enum.IntEnum):
    """See the module."""

    OPEN = 0
    ENDED = 1
    SENT = 2


class ResponseState(enum.IntEnum):
    """See the module."""

    NONE = 0
    INFORMATIONAL = 1
    FINAL = 2
    ENDED = 3
    DELIVERED = 4


_REQUEST_ENDED: Final = RequestState.ENDED
_REQUEST_SENT: Final = RequestState.SENT
_INFORMATIONAL: Final = ResponseState.INFORMATIONAL
_FINAL: Final = ResponseState.FINAL
_RESPONSE_ENDED: Final = ResponseState.ENDED


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
        "attempts",
        "block",
        "body",
        "body_held",
        "body_size",
        "consumed",
        "credit",
        "head",
        "kept",
        "kept_size",
        "lingers",
        "link",
        "link_room",
        "link_stream",
        "link_window",
        "prepaid",
        "replay",
        "request_state",
        "reset_after",
        "response",
        "response_held",
        "response_size",
        "response_state",
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
        """None: no rule wants the request; the app's second connection gets it (`to_app`)."""
        # the request
        self.body: deque[bytes] = deque()
        self.body_size = 0
        self.body_held = 0
        """How many of the last bytes of `body` may not go to a link yet."""
        self.trailers: Block | None = None
        self.room = 0
        """Bytes that the client may still send on this stream."""
        self.request_state = RequestState.OPEN
        self.consumed = False
        """Body bytes have gone to the link."""
        self.replay = 0
        """Bytes of the body that may be kept after they have gone to the link; 0: none is kept."""
        self.kept: deque[bytes] = deque()
        self.kept_size = 0
        self.prepaid = 0
        """Bytes of the body that go to a link for a second time: the client has been given window for them."""
        self.attempts = 0
        """How often a peer refused the request without having processed any other."""
        self.to_app = False
        """The app's second connection answers, no handler does."""
        # the response
        self.response: deque[Block | bytes] = deque()
        self.response_size = 0
        self.response_held = False
        """Nothing of the response goes to the client now: inspection may replace it."""
        self.response_state = ResponseState.NONE
        self.lingers = False
        """After the response, what the client still sends is dropped for a while before the stream is reset."""
        self.reset_after: int | None = None
        """Error code of a reset that follows the complete response."""
        self.window = window
        """Bytes that may be sent to the client on this stream; SETTINGS can make it negative."""
        # the other end
        self.link: ExchangeLink | None = None
        self.link_stream = 0
        self.link_window = 0
        """Bytes that may be sent to the link's peer on this stream."""
        self.link_room = 0
        """Bytes that the link's peer may still send on this stream."""
        self.credit = 0
        """Bytes of the response that were passed on and not given back to the peer's window yet."""
        # memory
        self._account: Account | None = None
        self._fixed = 0
        self._charged = 0

    # --- memory -----------------------------------------------------------------------------------------------------

    def charge_to(self, account: Account) -> None:
        """Charge what this exchange holds to `account` from now on."""
        self._account = account
        self._fixed = OBJECTS + len(self.block.literal)
        self.update_charge()

    def update_charge(self) -> None:
        """Bring the account in line with what the exchange holds."""
        if self._account is not None:
            held = self._fixed + self.body_size + self.kept_size + self.response_size
            if held != self._charged:
                self._account.change(held - self._charged)
                self._charged = held

    def client_done(self) -> None:
        """Learn that the client is done with the stream: what is left of the request goes to the link only."""
        self._fixed = 0
        self.forget_kept()

    # --- states -----------------------------------------------------------------------------------------------------

    @property
    def request_ended(self) -> bool:
        """Whether the client has sent END_STREAM."""
        return self.request_state >= _REQUEST_ENDED

    @property
    def request_sent(self) -> bool:
        """Whether the link has been sent END_STREAM."""
        return self.request_state is _REQUEST_SENT

    @property
    def response_started(self) -> bool:
        """Whether a header block has come, an informational one included."""
        return self.response_state >= _INFORMATIONAL

    @property
    def has_final_head(self) -> bool:
        """Whether the header block of the final response has come."""
        return self.response_state >= _FINAL

    @property
    def response_ended(self) -> bool:
        """Whether the response is complete."""
        return self.response_state >= _RESPONSE_ENDED

    @property
    def takes_no_more(self) -> bool:
        """The request has ended, or its stream is reset as soon as the response is written: what comes is dropped."""
        return self.request_ended or self.reset_after is not None

    @property
    def delivered(self) -> bool:
        """Whether the client has been sent END_STREAM."""
        return self.response_state is ResponseState.DELIVERED

    def end_request(self) -> None:
        """Learn that the client has sent END_STREAM."""
        self.request_state = max(self.request_state, _REQUEST_ENDED)

    def head_came(self, *, is_final: bool) -> None:
        """Learn that a header block of the response has come."""
        self.response_state = max(self.response_state, _FINAL if is_final else _INFORMATIONAL)

    def end_response(self) -> None:
        """Learn that the response is complete."""
        self.response_state = max(self.response_state, _RESPONSE_ENDED)

    # --- the request ------------------------------------------------------------------------------------------------

    @property
    def movable(self) -> bool:
        """Whether somebody else can still answer the whole request."""
        return not self.consumed and self.response_state < _INFORMATIONAL

    @property
    def replayable(self) -> bool:
        """Whether somebody else can, provided that the link's peer has processed nothing."""
        return self.movable or (self.replay > 0 and self.response_state < _INFORMATIONAL)

    def add_body(self, data: bytes) -> None:
        """Queue data of the request."""
        queue(self.body, data)
        self.body_size += len(data)

    def body_sent(self, piece: bytes) -> None:
        """Learn that a piece of the body, which `body` does not hold any more, has gone to the link."""
        self.body_size -= len(piece)
        self.consumed = True
        if self.replay:
            queue(self.kept, piece)
            self.kept_size += len(piece)
            if self.kept_size > self.replay:
                self.forget_kept()

    def forget_kept(self) -> None:
        """Drop the kept part of the body: the request cannot be sent to anybody else any more."""
        self.replay = 0
        self.kept.clear()
        self.kept_size = 0
        self.update_charge()

    def rewind(self) -> None:
        """Restore a request (`replayable`) of which the link's peer has processed nothing, and detach it."""
        self.body.extendleft(reversed(self.kept))
        self.body_size += self.kept_size
        self.prepaid += self.kept_size
        self.kept.clear()
        self.kept_size = 0
        self.consumed = False
        self.detach()

    def take_window_due(self, size: int) -> int:
        """How many of `size` body bytes that went to the link the client is to be given window for."""
        prepaid = min(size, self.prepaid)
        self.prepaid -= prepaid
        return size - prepaid

    def add_block(self, block: Block) -> None:
        """Queue a header block of the response, which `head_came` knows of."""
        self.response.append(block)

    def add_response(self, data: bytes) -> None:
        """Queue data of the response."""
        queue(self.response, data)
        self.response_size += len(data)

    def detach(self) -> None:
        """Forget the link; another one can carry the request."""
        self.link = None
        self.link_stream = 0
        self.request_state = min(self.request_state, _REQUEST_ENDED)

    def drop_body(self) -> None:
        """Drop what is buffered of the request."""
        self.body.clear()
        self.body_size = 0
        self.forget_kept()

    def drop_response(self) -> int:
        """Drop what is buffered of the response. Returns how many bytes of DATA that were."""
        size = self.response_size
        self.response.clear()
        self.response_size = 0
        self.update_charge()
        return size
