"""Diverted streams: from the client's request to the answer, whoever gives it.

A `Pool` of links to each intercept's handler, one to the app for streams that must fall back (the relayed connection
has moved past their ids). Who answers an exchange:

    the handler                       while it does. On another link, if a link's peer says that it has not processed
                                      the request (GOAWAY, REFUSED_STREAM) and has processed others, or less than
                                      `attempts` times; once more, if a link that had served before was lost in the
                                      very moment in which it got the request
    the app, second connection        the handler refuses or is gone, and no byte of response has come and no byte of
                                      the body has been consumed (or the handler says that it has processed nothing)
    a 502 (`http2_answers`)           no byte of response has come, but the body is partly consumed; or the handler does
                                      not take an extended CONNECT
    a reset                           the response had begun, or the second connection fails as well (REFUSED_STREAM
                                      when nothing was consumed: the client may try again)

An exchange is over, and leaves `Streams.exchanges`, when the client has been sent END_STREAM and has sent END_STREAM,
or when either has reset the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.answers import answer, too_large
from sidestep.engine.http2.backpressure import Brake
from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.http2.head import are_sound
from sidestep.engine.http2.link import Link
from sidestep.engine.http2.link_pool import Pool
from sidestep.engine.http2.rate import Rate
from sidestep.engine.memory_budget import Account
from sidestep.engine.relay import Ending, Leg, Role
from sidestep.protocols.hpack import Memo
from sidestep.protocols.http2 import (
    DEFAULT_LIMITS,
    ErrorCode,
    Http2Error,
    goaway,
    header_frames,
    rst_stream,
    window_update,
)

if TYPE_CHECKING:
    from sidestep.engine.http2.app_connection import AppConnection
    from sidestep.engine.http2.feed import Http2Feed
    from sidestep.engine.http2.head import Head
    from sidestep.engine.http2.pending_settings import PendingSettings
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.http2.to_client import ToClient
    from sidestep.engine.memory_budget import Budget
    from sidestep.engine.relay import Relay
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block

RESPONSES: Final = Memo(DEFAULT_LIMITS.memo)
"""Response blocks seen by any link of this process: a pure cache, bounded in bytes."""


class Diversion:
    """The exchanges of one connection and the links that answer them. It is the links' `Owner`."""

    __slots__ = (
        "_app",
        "_feed",
        "_handlers",
        "_memo",
        "_relay",
        "_resets",
        "_second",
        "_settings",
        "_state",
        "_to_client",
        "account",
        "brake",
        "links",
    )

    def __init__(
        self,
        relay: Relay,
        state: ConnectionState,
        budget: Budget,
        *,
        app: AppConnection,
        settings: PendingSettings,
        to_client: ToClient,
        feed: Http2Feed,
    ) -> None:
        limits = state.limits
        self._relay = relay
        self._state = state
        self._app = app
        self._settings = settings
        self._to_client = to_client
        self._feed = feed
        self._memo = RESPONSES if limits is DEFAULT_LIMITS else Memo(limits.memo)
        self._handlers: dict[str, Pool] = {}
        self._second: Pool | None = None
        self._resets = Rate(limits.resets, limits.reset_rate)
        self.account = Account(budget)
        self.brake = Brake(limits, self.account)
        self.links: dict[Leg, Link] = {}

    # --- from the client --------------------------------------------------------------------------------------------

    def divert(self, stream: int, head: Head, block: Block, rule: Rule | None, *, ends: bool) -> None:
        """A new stream that `rule` wants (None: the app's second connection); `ends` when it has no body."""
        state = self._state
        exchange = Exchange(stream, head, block, rule, window=self._to_client.initial_window)
        exchange.to_app = rule is None
        exchange.request_ended = ends
        exchange.room = self._settings.request_window
        exchange.replay = state.limits.replay
        exchange.charge(self.account)
        streams = state.streams
        streams.divert(exchange)
        if len(streams.exchanges) > state.limits.diverted_streams or self.account.budget.free < 0:
            self.reset(exchange, ErrorCode.REFUSED_STREAM)
            return
        if rule is not None:
            self._relay.mirror.diverted(stream, rule, head.method, head.path, head.authority)
        self._pool(exchange).take(exchange)

    def decline(self, stream: int, code: int, *, ends: bool) -> None:
        """A new stream of a mixed connection that nobody gets: reset, or answered when its head is too large."""
        self._state.streams.decline(stream)
        to_client = self._to_client
        if code != ErrorCode.NO_ERROR:
            to_client.control(rst_stream(stream, code))
            return
        frames = header_frames(stream, to_client.owe(too_large().literal), end_stream=True)
        to_client.control(frames if ends else frames + rst_stream(stream, code))

    def body(self, exchange: Exchange, data: bytes, *, ends: bool) -> None:
        """Data of a request's body, possibly empty."""
        if exchange.request_ended:
            self.reset(exchange, ErrorCode.STREAM_CLOSED)
            return
        if data and exchange.reset_after is None:
            exchange.add_body(data)
            exchange.reckon()
            self.brake.grew(exchange)
        if ends:
            self._request_ended(exchange)
        elif exchange.link is not None:
            exchange.link.wake(exchange)
        if self.account.is_over and self._is_too_much(exchange):
            self._pump_first(exchange)

    def exceeded(self, exchange: Exchange) -> None:
        """The client sends more than the window of the stream allows."""
        self.reset(exchange, ErrorCode.FLOW_CONTROL_ERROR)

    def _is_too_much(self, exchange: Exchange) -> bool:
        held = exchange.body_size + exchange.kept_size
        return self.account.is_over and (held > self._state.limits.small or self.account.budget.free < 0)

    def _pump_first(self, exchange: Exchange) -> None:
        """There is no room: reset the stream unless the link takes some of it right now."""
        exchange.forget_kept()
        if exchange.link is not None:
            exchange.link.pump()
        if exchange.stream in self._state.streams.exchanges and self._is_too_much(exchange):
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
        """The client resets the stream. Raises Http2Error when it does so at too high a rate before any answer."""
        unanswered = not exchange.response_started
        self._finish(exchange, cancel=code)
        if unanswered and self._resets.count():
            raise Http2Error("h2-rapid-reset", ErrorCode.ENHANCE_YOUR_CALM)

    # --- from the links (Owner) -------------------------------------------------------------------------------------

    def answered(self, exchange: Exchange) -> None:
        """Something of the response has come."""
        exchange.reckon()
        self._to_client.ready(exchange)

    def forwarded(self, exchange: Exchange, size: int) -> None:
        """So many bytes of the body have gone to the link: the client may send as many."""
        exchange.reckon()
        self.brake.moved(exchange)
        if not exchange.request_ended:
            size = exchange.owed(size)
            if size:
                exchange.room += size
                self._to_client.control(window_update(exchange.stream, size))

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
        if exchange.stream in self._state.streams.exchanges:
            self._to_client.control(rst_stream(exchange.stream, code))
        self._finish(exchange, cancel=ErrorCode.CANCEL)

    def refused(self, exchange: Exchange, link: Link) -> None:
        """The link's peer has not processed the request: ask it again, on this or another link, or somebody else."""
        if exchange.attempts < self._state.limits.attempts:
            self._pool_of(link).take_back(exchange)
        else:
            self._ask_another(exchange, from_app=link.is_app)

    def unwilling(self, exchange: Exchange, link: Link) -> None:
        """The link's peer will not answer the request: somebody else may."""
        self._redirect(exchange, link)

    def too_large(self, exchange: Exchange) -> None:
        """The head of the answer is over the limit."""
        if exchange.response_started or exchange.to_app:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR)
        else:
            size = self._state.limits.passed_list >> 10
            self._answer(exchange, f"the head of its handler's answer is larger than {size} KiB")

    def unable(self, exchange: Exchange) -> None:
        """The link's peer does not take extended CONNECT."""
        if exchange.to_app:
            self.reset(exchange, ErrorCode.REFUSED_STREAM)
        else:
            self._answer(exchange, "the handler does not accept extended CONNECT (WebSocket over HTTP/2)")

    # --- who answers ------------------------------------------------------------------------------------------------

    def _pool(self, exchange: Exchange) -> Pool:
        """The links to whoever is to answer."""
        if exchange.to_app:
            if self._second is None:
                self._second = Pool(lambda: self._open(Role.APP, None), self._state.limits)
            return self._second
        rule = exchange.rule
        assert rule is not None  # noqa: S101 - without one it is the app's
        pool = self._handlers.get(rule.uid)
        if pool is None:
            pool = self._handlers[rule.uid] = Pool(lambda: self._open(Role.HANDLER, rule), self._state.limits)
        return pool

    def _pool_of(self, link: Link) -> Pool:
        """The links to the same peer."""
        pool = self._second if link.leg.rule is None else self._handlers.get(link.leg.rule.uid)
        assert pool is not None  # noqa: S101 - every link was made for one
        return pool

    def _pools(self) -> list[Pool]:
        pools = [*self._handlers.values()]
        if self._second is not None:
            pools.append(self._second)
        return pools

    def _open(self, role: Role, rule: Rule | None) -> Link:
        relay = self._relay
        relay.forget_legs()
        leg = Leg(role, rule)
        relay.legs.append(leg)
        relay.opening.append(leg)
        link = Link(leg, self, self._memo, self._state.limits, is_app=role is Role.APP)
        self.links[leg] = link
        return link

    def _redirect(self, exchange: Exchange, link: Link) -> None:
        """A link let this exchange down."""
        if exchange.response_ended:
            if exchange.stream in self._state.streams.exchanges:
                self.peer_reset(exchange, ErrorCode.NO_ERROR)  # the answer is complete, the request is not
            else:
                exchange.drop_body()
        elif exchange.response_started:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR)
        else:
            self._ask_another(exchange, from_app=link.is_app)

    def _ask_another(self, exchange: Exchange, *, from_app: bool) -> None:
        """No byte of a response has come, and none will."""
        if from_app:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR if exchange.consumed else ErrorCode.REFUSED_STREAM)
        elif exchange.consumed:
            self._answer(exchange, "the handler was lost before it answered")
        else:
            exchange.detach()
            exchange.to_app = True
            exchange.attempts = 0
            self._pool(exchange).take(exchange)

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
        exchange.reckon()
        self._to_client.ready(exchange)

    def link_over(self, link: Link, ending: Ending) -> None:
        """The link cannot be opened, was lost, or broke the protocol."""
        if self.links.pop(link.leg, None) is None:
            return
        pool = self._pool_of(link)
        pool.links.remove(link)
        sent, waiting = [*link.streams.values()], [*link.waiting]
        link.streams.clear()
        link.waiting.clear()
        link.ready.clear()
        link.end(ending if link.opened else Ending.ABORT)
        for exchange in sent:
            if link.served and exchange.movable and not exchange.attempts:
                exchange.attempts += 1
                exchange.detach()
                pool.take_back(exchange)
            else:
                self._redirect(exchange, link)
        for exchange in waiting:
            exchange.detach()
            pool.take_back(exchange)
        if not link.settled and not pool.has_link:
            self._give_up(pool, from_app=link.is_app)

    def _give_up(self, pool: Pool, *, from_app: bool) -> None:
        """The peer of these links cannot be reached, or takes nothing."""
        waiting = [*pool.waiting]
        pool.waiting.clear()
        for exchange in waiting:
            self._ask_another(exchange, from_app=from_app)
        if from_app:
            self._app.second_is_unreachable()

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Let links send, and take note of exchanges that were answered to the end."""
        to_client = self._to_client
        for pool in self._handlers.values():
            pool.pump()
        if self._second is not None:
            self._second.pump()
        for link in [*self.links.values()]:
            if link.leaving and link.is_idle:
                self._part(link)
        to_client.pump()
        while to_client.answered:
            exchange = to_client.answered.pop()
            if exchange.request_ended:
                self._finish(exchange)
            elif exchange.reset_after is not None:
                to_client.control(rst_stream(exchange.stream, exchange.reset_after))
                self._finish(exchange, cancel=ErrorCode.NO_ERROR)

    def _part(self, link: Link) -> None:
        """Close a link in an orderly way."""
        link.write(goaway(0, ErrorCode.NO_ERROR))
        self.link_over(link, Ending.CLOSE)

    def reads(self, leg: Leg) -> bool:
        """Whether more of a link's responses may wait for the client."""
        link = self.links.get(leg)
        return link is None or not self.account.is_over or not link.unread

    @property
    def wants_time(self) -> bool:
        """Whether ticks are needed."""
        return bool(self.brake) or self._resets.wants_time or any(pool.wants_time for pool in self._pools())

    def tick(self) -> None:
        """A tick has passed."""
        self._resets.tick()
        self.brake.tick()
        for pool in self._pools():
            over, stuck = pool.tick()
            for link in over:
                if link.settled:
                    self._part(link)
                else:
                    self.link_over(link, Ending.ABORT)
            if stuck:
                self._give_up(pool, from_app=pool is self._second)

    def _finish(self, exchange: Exchange, *, cancel: int | None = None) -> None:
        """The client is done with the stream; `cancel` when the link is not to go on with it either."""
        self._state.streams.finish(exchange.stream)
        self.brake.forget(exchange)
        self._feed.cut(exchange.stream)
        self._to_client.forget(exchange)
        exchange.settle()
        link = exchange.link
        if cancel is not None:
            exchange.drop_body()
            dropped = exchange.drop_response()
            if link is not None:
                link.discarded(dropped)
                link.cancel(exchange, cancel)
            else:
                self._pool(exchange).waiting.pop(exchange, None)

    def abandon(self) -> None:
        """The client is gone: nobody wants any answer."""
        for exchange in [*self._state.streams.exchanges.values()]:
            self._finish(exchange, cancel=ErrorCode.CANCEL)
        for link in [*self.links.values()]:
            self._part(link)
