"""The diverted exchange of one HTTP/1 connection: given to its handler, answered by it or by somebody else.

    the handler        while it does
    a second leg       to the same handler, when the first had served before and was closed in this very moment
    the app            nothing of the body was given and nothing answered (`Exchange.replayable`)
    an answer of ours  502 (400 for a body that is not well-formed) when no final head has gone to the client
    a reset            a final head has

What a handler says goes to the client once its head is understood, so that until then there is a choice of what to say
instead. At most one exchange at a time, and while there is one `Host.side` is its leg. After the exchange the host goes
on (`proceed`), or, where the exchange's answer or its failure ends the connection, only discards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from sidestep.engine.http1.exchange import Exchange, Judged, own_answer
from sidestep.engine.relay import Diverted, Ending, Leg
from sidestep.protocols import http1_responses as responses
from sidestep.protocols.http1 import HTTP_1_0, Http1Limits, ResponseHead

if TYPE_CHECKING:
    from sidestep.engine.http1.legs import Peers
    from sidestep.policy.route import Rule


_UNSOLICITED: Final = "h1-response-unsolicited-switch"
"""Why a connection becomes a wire after a handler answered with a switch that it may not choose."""


class Host(Protocol):
    """The relay around it."""

    client: Leg
    diverted: list[Diverted]
    side: Leg | None
    client_ended: bool
    held: bytearray

    def proceed(self) -> None:
        """Earlier answers are complete: take up what was held."""

    def fall_back(self, request: Judged, pieces: list[bytes]) -> None:
        """The app answers this request."""

    def switch(self, leg: Leg, response: ResponseHead | None) -> None:
        """The connection speaks another protocol now, with this leg."""

    def become_wire(self, anomaly: str | None, rest: bytes = b"") -> None:
        """The rest of the connection is the app's, unread."""

    def discard(self) -> None:
        """Nothing more is served: close, once the client has been read for a while."""

    def end(self, ending: Ending) -> None:
        """Nothing more will be said."""


class Diversion:
    """See the module. `exchange` is None when no handler has anything to answer."""

    __slots__ = ("_host", "_limits", "_peers", "exchange", "then_wire")

    def __init__(self, host: Host, peers: Peers, limits: Http1Limits) -> None:
        self._host = host
        self._peers = peers
        self._limits = limits
        self.exchange: Exchange | None = None
        self.then_wire: str | None = None
        """The connection becomes a wire for this reason once the exchange is over."""

    def begin(self, rule: Rule, request: Judged, head: bytes) -> None:
        """Divert a request whose head has come."""
        leg, reused = self._peers.handler(rule)
        self._host.side = leg
        self.exchange = Exchange(rule, leg, request, head, self._limits, reused=reused)

    def give(self, exchange: Exchange) -> None:
        """Write what is kept of the request to its (open) leg."""
        leg = exchange.leg
        if leg.ending:
            return
        host = self._host
        if not exchange.given:
            request = exchange.request
            host.diverted.append(
                Diverted(exchange.rule, request.method, request.target, request.authority, copied=False)
            )
        exchange.give()
        if host.client_ended and not host.held:
            leg.end(Ending.FINISH)

    def read(self, exchange: Exchange, data: bytes) -> None:
        """Forward a handler's answer as far as it is understood."""
        if exchange.answered:
            self._peers.drop_handler(exchange.leg, Ending.ABORT)
            return
        exchange.answering = True
        client = self._host.client
        reader = exchange.reader
        flags = exchange.request.flags
        at = 0
        while at < len(data) or reader.event == responses.FINAL:
            start = at
            at = reader.read(data, at, flags)
            event = reader.event
            if event == responses.MORE:
                if not reader.in_head and start < len(data):
                    client.write(data[start:])
            elif event == responses.INTERIM:
                client.write(reader.head)
            elif event == responses.FINAL:
                client.write(reader.head)
                _answer_begins(exchange)
            elif event == responses.COMPLETE:
                if at > start:
                    client.write(data[start:at])
                self._answered(exchange, clean=at == len(data))
                return
            elif event == responses.SWITCH and exchange.may_switch():
                client.write(reader.head)
                if at < len(data):
                    client.write(data[at:])
                self._host.switch(exchange.leg, reader.response)
                return
            else:
                self.then_wire = reader.anomaly or _UNSOLICITED
                self.fail(exchange, b"502 Bad Gateway", self._what_is_wrong())
                return

    def _what_is_wrong(self) -> str:
        if self.then_wire == _UNSOLICITED:
            return "the handler switches to a protocol that it was not offered"
        if self.then_wire == responses.TOO_LARGE:
            return f"the head of the handler's response is larger than {self._limits.head >> 10} KiB"
        return "the handler's response is not well-formed"

    def _answered(self, exchange: Exchange, *, clean: bool) -> None:
        """The handler's response is whole."""
        exchange.answered = True
        if not clean or exchange.close:
            self._peers.drop_handler(exchange.leg, Ending.CLOSE if clean else Ending.ABORT)
        if exchange.sent or exchange.close or self._host.client_ended:
            self.finish(exchange)
            self._host.proceed()

    def finish(self, exchange: Exchange) -> None:
        """The exchange is over on both sides, or as far as it will go."""
        self.exchange = None
        self._host.side = None
        if exchange.close or not exchange.sent:
            self._farewell(exchange)
        elif self.then_wire is not None:
            self._host.become_wire(self.then_wire)

    def _farewell(self, exchange: Exchange) -> None:
        """Nothing more is served on this connection."""
        host = self._host
        if host.client_ended or (exchange.sent and not host.held):
            host.end(Ending.CLOSE)
        else:
            host.discard()

    def leg_gone(self, leg: Leg, *, orderly: bool) -> None:
        """A handler leg ended, broke or never came to be."""
        self._peers.drop_handler(leg, Ending.CLOSE if orderly else Ending.ABORT)
        exchange = self.exchange
        if exchange is None or exchange.leg is not leg or exchange.answered:
            return
        if orderly and exchange.reader.ends_with_connection:
            self._answered(exchange, clean=True)
        elif not exchange.replayable:
            self.fail(exchange, b"502 Bad Gateway", "the handler went away before it had answered")
        elif exchange.reused:
            exchange.move(self._peers.handler(exchange.rule)[0])
            self._host.side = exchange.leg
        else:
            self.fall_back(exchange)
            self._host.proceed()

    def fall_back(self, exchange: Exchange) -> None:
        """The app answers what no handler will."""
        self.exchange = None
        self._host.fall_back(exchange.request, [exchange.head, *exchange.kept])
        if self.then_wire is not None:
            self._host.become_wire(self.then_wire)

    def fail(self, exchange: Exchange, status: bytes, reason: str) -> None:
        """The handler cannot answer any more and neither can the app: say so, or break what has begun."""
        host = self._host
        self._peers.drop_handler(exchange.leg, Ending.ABORT)
        if exchange.begun and not exchange.answered:
            host.end(Ending.ABORT)
            return
        if not exchange.sent or exchange.given_ahead or exchange.request.flags & HTTP_1_0:
            exchange.close = True
        if not exchange.answered:
            host.client.write(own_answer(exchange, status, reason))
        self.finish(exchange)
        host.proceed()


def _answer_begins(exchange: Exchange) -> None:
    exchange.begun = True
    response = exchange.reader.response
    if response is not None and (
        response.close
        or exchange.given_ahead
        or exchange.reader.ends_with_connection
        or (exchange.request.flags & HTTP_1_0 and not response.keeps)
    ):
        exchange.close = True
