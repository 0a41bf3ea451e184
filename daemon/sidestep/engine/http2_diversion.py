"""Diverted streams: from the client's request to the answer, whoever gives it.

One link to each intercept's handler, one to the app for streams that must fall back (the relayed connection has moved
past their ids), each opened when first needed and replaced when it goes away. Who answers an exchange:

    the handler                       while it does
    the app, second connection        the handler refuses or is gone, and no byte of response has come and no byte of
                                      the body has been consumed
    a 502 (`http2_answers`)           no byte of response has come, but the body is partly consumed; or the handler does
                                      not take an extended CONNECT
    a reset                           the response had begun, or the second connection fails as well (REFUSED_STREAM
                                      when nothing was consumed: the client may try again)

An exchange is over, and leaves `Streams.exchanges`, when the client has been sent END_STREAM and has sent END_STREAM,
or when either has reset the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2_answers import answer
from sidestep.engine.http2_brake import Brake
from sidestep.engine.http2_exchange import Exchange
from sidestep.engine.http2_head import are_sound
from sidestep.engine.http2_link import Link
from sidestep.engine.relay import Diverted, Ending, Leg, Role, queue
from sidestep.protocols.hpack import Memo
from sidestep.protocols.http2 import DEFAULT_LIMITS, ErrorCode, Http2Error, goaway, rst_stream, window_update

if TYPE_CHECKING:
    from sidestep.engine.http2_connection import Connection
    from sidestep.engine.http2_head import Head
    from sidestep.engine.relay import Relay
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block

RESPONSES: Final = Memo(DEFAULT_LIMITS.memo)
"""Response blocks seen by any link of this process: a pure cache, bounded in bytes."""


class Diversion:
    """The exchanges of one connection and the links that answer them. It is the links' `Owner`."""

    __slots__ = ("_connection", "_handlers", "_memo", "_relay", "_resets", "_second", "brake", "links")

    def __init__(self, relay: Relay, connection: Connection) -> None:
        self._relay = relay
        self._connection = connection
        self._memo = RESPONSES if connection.limits is DEFAULT_LIMITS else Memo(connection.limits.memo)
        self._handlers: dict[str, Link] = {}
        self._second: Link | None = None
        self._resets = 0
        self.brake = Brake(connection.limits)
        self.links: dict[Leg, Link] = {}

    # --- from the client --------------------------------------------------------------------------------------------

    def divert(self, stream: int, head: Head, block: Block, rule: Rule, *, ends: bool) -> None:
        """A new stream that `rule` wants; `ends` when it has no body."""
        connection = self._connection
        exchange = Exchange(stream, head, block, rule, window=connection.to_client.initial_window)
        exchange.request_ended = ends
        streams = connection.streams
        streams.divert(exchange)
        if len(streams.exchanges) > connection.limits.diverted_streams:
            self.reset(exchange, ErrorCode.REFUSED_STREAM)
            return
        self._relay.diverted.append(Diverted(rule, head.method, head.path, head.authority, copied=False))
        link = self._handlers.get(rule.uid)
        if link is None or not link.takes_more:
            link = self._handlers[rule.uid] = self._open(Role.HANDLER, rule)
        link.take(exchange)

    def body(self, exchange: Exchange, data: bytes, *, ends: bool) -> None:
        """Data of a request's body, possibly empty."""
        if exchange.request_ended:
            self.reset(exchange, ErrorCode.STREAM_CLOSED)
            return
        if data and exchange.reset_after is None:
            queue(exchange.body, data)
            exchange.body_size += len(data)
            self.brake.grew(exchange)
        if ends:
            self._request_ended(exchange)
        elif exchange.body_size + exchange.response_size > self._connection.limits.stream_buffer:
            self._pump_first(exchange)
        elif exchange.link is not None:
            exchange.link.wake(exchange)

    def _pump_first(self, exchange: Exchange) -> None:
        """The buffer is full: reset the stream unless the link takes some of it right now."""
        link = exchange.link
        if link is not None:
            link.wake(exchange)
            link.pump()
        if exchange.body_size + exchange.response_size > self._connection.limits.stream_buffer:
            self.reset(exchange, ErrorCode.ENHANCE_YOUR_CALM)

    def trailers(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        """A second header block of a request: its trailers, which must end it (RFC 9113 section 8.1)."""
        if exchange.request_ended or not ends or not are_sound(block.fields):
            self.reset(exchange, ErrorCode.PROTOCOL_ERROR)
            return
        exchange.trailers = block
        self._request_ended(exchange)

    def _request_ended(self, exchange: Exchange) -> None:
        exchange.request_ended = True
        if exchange.link is not None:
            exchange.link.wake(exchange)
        if exchange.answered:
            self._finish(exchange)

    def client_reset(self, exchange: Exchange, code: int) -> None:
        """The client resets the stream. Raises Http2Error when it does so without end."""
        self._resets += 1
        self._finish(exchange, cancel=code)
        if self._resets > self._connection.limits.resets:
            raise Http2Error("h2-rapid-reset", ErrorCode.ENHANCE_YOUR_CALM)

    # --- from the links (Owner) -------------------------------------------------------------------------------------

    def answered(self, exchange: Exchange) -> None:
        """Something of the response has come."""
        self._connection.to_client.ready(exchange)

    def forwarded(self, exchange: Exchange, size: int) -> None:
        """So many bytes of the body have gone to the link: the client may send as many."""
        self.brake.moved(exchange)
        if not exchange.request_ended:
            self._connection.to_client.control(window_update(exchange.stream, size))

    def peer_reset(self, exchange: Exchange, code: int) -> None:
        """The peer has reset the stream; a complete response is delivered first (RFC 9113 section 8.1)."""
        if exchange.response_ended and not exchange.answered:
            exchange.reset_after = code
            exchange.link_stream = 0
            exchange.drop_body()
            self.brake.forget(exchange)
        else:
            self.reset(exchange, code)

    def reset(self, exchange: Exchange, code: int) -> None:
        """Reset the stream on both sides."""
        if exchange.stream in self._connection.streams.exchanges:
            self._connection.to_client.control(rst_stream(exchange.stream, code))
        self._finish(exchange, cancel=ErrorCode.CANCEL)

    def refused(self, exchange: Exchange, link: Link) -> None:
        """The link's peer has not processed the request: find somebody else to answer."""
        self._redirect(exchange, from_app=link.is_app)

    def unable(self, exchange: Exchange) -> None:
        """The link's peer does not take extended CONNECT."""
        if exchange.link is not None and exchange.link.is_app:
            self.reset(exchange, ErrorCode.REFUSED_STREAM)
        else:
            self._answer(exchange, "the handler does not accept extended CONNECT (WebSocket over HTTP/2)")

    # --- who answers ------------------------------------------------------------------------------------------------

    def _open(self, role: Role, rule: Rule | None) -> Link:
        relay = self._relay
        relay.forget_legs()
        leg = Leg(role, rule)
        relay.legs.append(leg)
        relay.opening.append(leg)
        link = Link(leg, self, self._memo, self._connection.limits, is_app=role is Role.APP)
        self.links[leg] = link
        return link

    def _redirect(self, exchange: Exchange, *, from_app: bool) -> None:
        """A link let this exchange down."""
        if exchange.response_ended:
            if exchange.stream in self._connection.streams.exchanges:
                self.peer_reset(exchange, ErrorCode.NO_ERROR)  # the answer is complete, the request is not
        elif exchange.response_started:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR)
        elif from_app:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR if exchange.consumed else ErrorCode.REFUSED_STREAM)
        elif exchange.consumed:
            self._answer(exchange, "the handler was lost before it answered")
        else:
            exchange.detach()
            if self._second is None or not self._second.takes_more:
                self._second = self._open(Role.APP, None)
            self._second.take(exchange)

    def _answer(self, exchange: Exchange, reason: str) -> None:
        block, body = answer(exchange, reason)
        exchange.detach()
        exchange.drop_body()
        self.brake.forget(exchange)
        exchange.response.append(block)
        if body:
            exchange.response.append(body)
            exchange.response_size += len(body)
        exchange.response_started = exchange.final = exchange.response_ended = True
        exchange.reset_after = ErrorCode.NO_ERROR
        self._connection.to_client.ready(exchange)

    def link_over(self, link: Link, ending: Ending) -> None:
        """The link cannot be opened, was lost, or broke the protocol."""
        self.links.pop(link.leg, None)
        if self._second is link:
            self._second = None
        rule = link.leg.rule
        if rule is not None and self._handlers.get(rule.uid) is link:
            del self._handlers[rule.uid]
        left = [*link.streams.values(), *link.waiting]
        link.streams.clear()
        link.waiting.clear()
        link.ready.clear()
        link.end(ending if link.opened else Ending.ABORT)
        for exchange in left:
            self._redirect(exchange, from_app=link.is_app)

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Let links send, and take note of exchanges that were answered to the end."""
        to_client = self._connection.to_client
        for link in [*self.links.values()]:
            link.pump()
            if link.leaving and link.is_idle:
                link.write(goaway(0, ErrorCode.NO_ERROR))
                self.link_over(link, Ending.CLOSE)
        to_client.pump()
        while to_client.answered:
            exchange = to_client.answered.pop()
            self._resets = max(0, self._resets - 1)
            if exchange.request_ended:
                self._finish(exchange)
            elif exchange.reset_after is not None:
                to_client.control(rst_stream(exchange.stream, exchange.reset_after))
                self._finish(exchange, cancel=ErrorCode.NO_ERROR)

    def _finish(self, exchange: Exchange, *, cancel: int | None = None) -> None:
        """The client is done with the stream; `cancel` when the link is not to go on with it either."""
        connection = self._connection
        connection.streams.finish(exchange.stream)
        self.brake.forget(exchange)
        connection.taps.cut(exchange.stream)
        connection.to_client.forget(exchange)
        link = exchange.link
        if cancel is not None:
            exchange.drop_body()
            dropped = exchange.drop_response()
            if link is not None:
                link.discarded(dropped)
                link.cancel(exchange, cancel)

    def abandon(self) -> None:
        """The client is gone: nobody wants any answer."""
        for exchange in [*self._connection.streams.exchanges.values()]:
            self._finish(exchange, cancel=ErrorCode.CANCEL)
        for link in [*self.links.values()]:
            link.write(goaway(0, ErrorCode.NO_ERROR))
            self.link_over(link, Ending.CLOSE)
