"""What an HTTP/1 relay tells its mirror: the request being received, and the answers in the order of the requests.

    `current`   the exchange whose request is being received, 0 when nobody listens to it
    undecided   the request has come whole and may yet switch to another protocol: it is neither ended nor switched
                before its answer is known, or nothing more will be answered

Requests and answers are read apart from each other, so the exchange of an answer is kept beside what is known of it:
`_answers` has those of the app, in order, for which `ConnectionState.awaited` has LISTENED_TO; that of a handler
stands in `DivertedRequest.mirrored`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from sidestep.engine.mirror.events import (
    HTTP1,
    NOTHING,
    RESPONSE,
    RESPONSE_BODY,
    Answerer,
    ProtocolSwitched,
    RequestHead,
    ResponseHead,
    WholeResponse,
)
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import END_OF_HEAD, SWITCHES

if TYPE_CHECKING:
    from sidestep.engine.http1.routing import RoutedRequest
    from sidestep.engine.mirror.producer import Mirror
    from sidestep.engine.relay import Relay
    from sidestep.protocols.http1_responses import ResponseReader

LISTENED_TO: Final = 1 << 16
"""Flag of a pending answer, beside those of `protocols.http1`: somebody listens to it."""
FULL: Final = -1
_HEADS: Final = (messages.INTERIM, messages.FINAL, messages.SWITCH)
_BODIES: Final = (messages.MORE, messages.COMPLETE)
_APP: Final = Answerer.APP
"""Members of an enumeration are looked up by a descriptor; the hot path has no time for that."""


class Http1Feed:
    """One per HTTP/1 relay."""

    __slots__ = ("_answers", "_is_whole", "_last", "_mirror", "_relay", "current")

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._mirror: Mirror = relay.mirror
        self._last = 0
        """The last exchange that was offered."""
        self.current = 0
        self._is_whole = False
        """The current request has come whole: it is undecided."""
        self._answers: deque[int] = deque()

    # --- requests ---------------------------------------------------------------------------------------------------

    def whole(self, request: RoutedRequest, head: bytes, now: float) -> int:
        """Hot path: a request that is its head and asks for no other protocol.

        What the relay is to remember of its answer: 0 or LISTENED_TO. FULL: there is no room to queue it now.
        """
        mirror = self._mirror
        queue = mirror.queue
        if queue is not None and queue.is_full:
            return FULL
        if self.current:
            self.cut()
        exchange = self._last + 1
        interest = mirror.offer(exchange, request, heard=True)
        if not interest:
            return 0
        self._last = exchange
        event = _head(exchange, request, head, now, interest, ends=True)
        mirror.begin(event, exchange, interest, size=len(head), ends=True)
        return self.expect(exchange)

    def begin(self, request: RoutedRequest, head: bytes, now: float) -> None:
        """The head of a request that somebody may want."""
        if self.current:
            self.cut()
        exchange = self._last + 1
        mirror = self._mirror
        interest = mirror.offer(exchange, request, heard=True)
        if interest:
            self._last = exchange
            ends = not request.body and not request.flags & SWITCHES
            event = _head(exchange, request, head, now, interest, ends=ends)
            mirror.begin(event, exchange, interest, size=len(head), ends=ends)
            if exchange in mirror.requests or exchange in mirror.responses:
                self.current = exchange
                self._is_whole = False

    def body(self, data: bytes) -> None:
        """Bytes of the current request's body, framing included."""
        if self.current in self._mirror.requests:
            self._mirror.request_data(self.current, data)

    def sent(self, flags: int) -> None:
        """The current request, of these flags, is whole."""
        if flags & SWITCHES:
            self._is_whole = True
            return
        exchange, self.current = self.current, 0
        if exchange in self._mirror.requests:
            self._mirror.request_end(exchange)

    def switched(self, protocol: bytes) -> int:
        """The connection speaks another protocol now: the exchange that goes on raw, 0 when nobody listens."""
        exchange, self.current = self.current, 0
        mirror = self._mirror
        if exchange not in mirror.requests and exchange not in mirror.responses:
            return 0
        mirror.tell(ProtocolSwitched(exchange, protocol), exchange)
        return exchange

    def cut(self) -> None:
        """Nothing more of the current request will come."""
        exchange, self.current = self.current, 0
        if self._is_whole:
            if exchange in self._mirror.requests:
                self._mirror.request_end(exchange)  # its answer may be yet to come
        elif exchange:
            self._mirror.cut(exchange, at=self._relay.now)

    def cut_all(self, *, but: int = 0) -> None:
        """Nothing more of any exchange will come, but for one."""
        self.cut()
        self._answers.clear()
        for exchange in [*self._mirror.responses]:
            if exchange != but:
                self._mirror.cut(exchange, at=self._relay.now)

    # --- answers ----------------------------------------------------------------------------------------------------

    def expect(self, exchange: int) -> int:
        """The app is asked for the answer of an exchange: the flag of its pending answer, LISTENED_TO or 0."""
        if exchange not in self._mirror.responses:
            return 0
        self._answers.append(exchange)
        return LISTENED_TO

    @property
    def answering(self) -> int:
        """The exchange that the app answers now, if that is listened to."""
        return self._answers[0]

    def answered(self, exchange: int) -> None:
        """The response is whole."""
        if self._answers and self._answers[0] == exchange:
            self._answers.popleft()
        self._mirror.response_end(exchange, at=self._relay.now)

    def passes(self, head: bytes, status: int, size: int, now: float) -> bool:
        """Hot path: the app's answer is here, whole, with a body of so many bytes. False: it has to be read."""
        mirror = self._mirror
        exchange = self._answers[0]
        queue = mirror.queue
        if mirror.responses.get(exchange, NOTHING) & RESPONSE_BODY or (queue is not None and queue.is_full):
            return False
        self._answers.popleft()
        mirror.answered(WholeResponse(exchange, _APP, status, head, None, now), size, len(head))
        return True

    def read(self, exchange: int, by: Answerer, reader: ResponseReader, data: bytes, now: float) -> None:
        """A reader has got so far with `data`: a head, or bytes of a body, framing included."""
        response = reader.response
        if reader.event in _HEADS and response is not None:
            self._head(exchange, by, response.status, reader.head, now)
        elif data and reader.event in _BODIES and not reader.in_head:
            self._mirror.response_data(exchange, data)

    def own_answer(self, exchange: int, answer: bytes, now: float) -> None:
        """Sidestep itself answers, with a whole response."""
        head, end, body = answer.partition(END_OF_HEAD)
        self._head(exchange, Answerer.SIDESTEP, int(answer.split(b" ", 2)[1]), head + end, now)
        if body:
            self._mirror.response_data(exchange, body)
        self.answered(exchange)

    def _head(self, exchange: int, by: Answerer, status: int, head: bytes, now: float) -> None:
        if exchange in self._mirror.responses:
            self._mirror.tell(ResponseHead(exchange, by, status, head, None, now), exchange, len(head))


def _head(exchange: int, request: RoutedRequest, head: bytes, now: float, interest: int, *, ends: bool) -> RequestHead:
    return RequestHead(
        exchange,
        HTTP1,
        request.method,
        request.target,
        request.authority,
        request.fields,
        head,
        None,
        request.flags,
        ends,
        now,
        bool(interest & RESPONSE),
    )
