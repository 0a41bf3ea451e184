"""Diverted streams: from the client's request to the response, whoever gives it.

There is one `LinkPool` for each intercept's handler, and one to the app for streams that fall back (the relayed
connection has moved past their ids). Who answers an exchange:

    the handler                       normally. If a link's peer says that it has not processed the request (GOAWAY,
                                      REFUSED_STREAM), the handler is asked again: without a limit while the peer has
                                      processed other requests, else up to `attempts` times; and once if a link that had
                                      served before was lost just as it got the request
    the app, second connection        the handler refuses or is gone, no byte of the response has come, and no byte of
                                      the body has been consumed (or the handler says that it has processed nothing)
    a local reply (`local_replies`)   no byte of the response has come, but the body is partly consumed; the handler
                                      does not take extended CONNECT; or the head of its response is too large
    a reset                           the response has begun, or the second connection fails too (REFUSED_STREAM when
                                      nothing was consumed: the client may try again)

After a local reply the client may still be sending. What comes is dropped, within the window that it has, until it ends
or LINGER ticks have passed since the reply was written; then the stream is reset. At once are: calls of gRPC, which may
last, and streams beyond LINGERING.

The states of an exchange are listed in `exchange`. Bounds: `diverted_streams` exchanges, and the connection's share of
the memory budget; a stream that exceeds the share is reset with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.backpressure import Backpressure
from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.http2.head import Head, are_valid_fields
from sidestep.engine.http2.leaky_bucket import LeakyBucket
from sidestep.engine.http2.link import Link
from sidestep.engine.http2.link_pool import LinkPool
from sidestep.engine.http2.local_replies import bad_gateway, head_too_large
from sidestep.engine.leg import Ending, Leg, Role
from sidestep.engine.memory_budget import Account
from sidestep.protocols.hpack import INITIAL, NONE, Block, Memo
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
    from sidestep.engine.http2.pending_settings import PendingSettings
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.http2.to_client import ToClient
    from sidestep.engine.memory_budget import Budget
    from sidestep.engine.relay import Relay
    from sidestep.policy.route import Rule

NOTHING: Final = Block((), NONE, None, INITIAL)
"""Stands for a header block that is not kept."""
RESPONSES: Final = Memo(DEFAULT_LIMITS.memo)
"""Response blocks seen by any link of this process: a pure cache, bounded in bytes."""
LINGER: Final = 2
"""Ticks for which what a client sends after a response of ours is dropped, before its stream is reset. Clients have to
keep a response that a reset with NO_ERROR follows (RFC 9113, section 8.1), but curl 7.88 loses it."""
LINGERING: Final = 64
"""Streams of a connection for which that is done at once; each holds its place among the diverted ones meanwhile."""


class Diversion:
    """The exchanges of one connection and the links that carry them. It is the `LinkOwner` of the links."""

    __slots__ = (
        "_app",
        "_feed",
        "_handlers",
        "_lingering",
        "_memo",
        "_relay",
        "_resets",
        "_second",
        "_settings",
        "_state",
        "_to_client",
        "account",
        "backpressure",
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
        self._handlers: dict[str, LinkPool] = {}
        self._second: LinkPool | None = None
        self._lingering: dict[Exchange, int] = {}
        """Exchanges with a written response of ours whose request goes on, and the ticks since then."""
        self._resets = LeakyBucket(limits.resets, limits.reset_rate)
        self.account = Account(budget)
        self.backpressure = Backpressure(limits, self.account)
        self.links: dict[Leg, Link] = {}

    # --- from the client --------------------------------------------------------------------------------------------

    def divert(self, stream: int, head: Head, block: Block, rule: Rule | None, *, ends: bool) -> None:
        """Divert a new stream to the handler of `rule`, or to the app's second connection if that is None."""
        exchange = Exchange(stream, head, block, rule, window=self._to_client.initial_window)
        if self._admit(exchange, ends=ends):
            self._assign(exchange)

    def _admit(self, exchange: Exchange, *, ends: bool) -> bool:
        """Note a new stream. False: there is no room, it was reset."""
        if self._has_room(exchange, ends=ends):
            return True
        self.reset(exchange, ErrorCode.REFUSED_STREAM)
        return False

    def _has_room(self, exchange: Exchange, *, ends: bool) -> bool:
        """Note a new stream; returns whether it may stay."""
        state = self._state
        exchange.to_app = exchange.rule is None
        if ends:
            exchange.end_request()
        exchange.room = self._settings.request_window
        exchange.replay = state.limits.replay
        exchange.charge_to(self.account)
        streams = state.streams
        streams.divert(exchange)
        return len(streams.exchanges) <= state.limits.diverted_streams and self.account.budget.free >= 0

    def _assign(self, exchange: Exchange) -> None:
        """Give a stream to whoever is to answer it."""
        head, rule = exchange.head, exchange.rule
        if rule is not None:
            self._relay.mirror.diverted(exchange.stream, rule, head.method, head.path, head.authority)
        self._pool(exchange).add(exchange)

    def decline(self, stream: int, code: int) -> None:
        """Reset a new stream that nobody gets with this error code."""
        self._state.streams.decline(stream)
        self._to_client.control(rst_stream(stream, code))

    def decline_head(self, stream: int, *, ends: bool) -> None:
        """Answer a new stream, whose head is too large to be kept, with a 431."""
        self._state.streams.highest = stream
        exchange = Exchange(stream, Head(()), NOTHING, None, window=self._to_client.initial_window)
        if self._has_room(exchange, ends=ends):
            self._reply(exchange, head_too_large(), b"")
            return
        # Clients send a refused stream again by themselves, so it is answered, without the time for what follows.
        answer = header_frames(stream, self._to_client.with_size_update(head_too_large().literal), end_stream=True)
        self._to_client.control(answer if ends else answer + rst_stream(stream, ErrorCode.NO_ERROR))
        self._finish(exchange, cancel=ErrorCode.CANCEL)

    def body(self, exchange: Exchange, data: bytes, *, ends: bool) -> None:
        """Take data of a request's body, possibly empty; `ends` with END_STREAM."""
        if exchange.request_ended:
            self.reset(exchange, ErrorCode.STREAM_CLOSED)
            return
        if data and exchange.reset_after is None:
            exchange.add_body(data)
            exchange.update_charge()
            self.backpressure.body_grew(exchange)
        if ends:
            self._request_ended(exchange)
        elif exchange.link is not None:
            exchange.link.wake(exchange)
        if self.account.is_over and self._is_too_much(exchange):
            self._pump_first(exchange)

    def exceeded(self, exchange: Exchange) -> None:
        """Reset a stream on which the client sends more than its window allows."""
        self.reset(exchange, ErrorCode.FLOW_CONTROL_ERROR)

    def _is_too_much(self, exchange: Exchange) -> bool:
        held = exchange.body_size + exchange.kept_size
        return self.account.is_over and (held > self._state.limits.small or self.account.budget.free < 0)

    def _pump_first(self, exchange: Exchange) -> None:
        """Let the link take what it can; if the connection still holds too much, reset the stream."""
        exchange.forget_kept()
        if exchange.link is not None:
            exchange.link.pump()
        if exchange.stream in self._state.streams.exchanges and self._is_too_much(exchange):
            self.reset(exchange, ErrorCode.ENHANCE_YOUR_CALM)

    def trailers(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        """Take a second header block of a request: its trailers, which must end it (RFC 9113 section 8.1)."""
        if exchange.request_ended or not ends or not are_valid_fields(block.fields):
            self.reset(exchange, ErrorCode.PROTOCOL_ERROR)
            return
        exchange.trailers = block
        self._request_ended(exchange)

    def _request_ended(self, exchange: Exchange) -> None:
        exchange.end_request()
        if exchange.link is not None:
            exchange.link.wake(exchange)
        if exchange.delivered:
            self._finish(exchange)

    def client_reset(self, exchange: Exchange, code: int) -> None:
        """End a stream that the client resets with this error code.

        Raises Http2Error when the client resets unanswered streams at too high a rate (CVE-2023-44487).
        """
        unanswered = not exchange.response_started
        self._finish(exchange, cancel=code)
        if unanswered and self._resets.count():
            raise Http2Error("h2-rapid-reset", ErrorCode.ENHANCE_YOUR_CALM)

    # --- from the links (LinkOwner) -----------------------------------------------------------------------------------

    def response_progressed(self, exchange: Exchange) -> None:
        """Learn that a part of the response, or its end, has come."""
        exchange.update_charge()
        self._to_client.ready(exchange)

    def body_sent(self, exchange: Exchange, size: int) -> None:
        """Learn that `size` bytes of the body have gone to the link: the client may send as many."""
        exchange.update_charge()
        self.backpressure.body_shrank(exchange)
        if not exchange.request_ended:
            size = exchange.take_window_due(size)
            if size:
                exchange.room += size
                self._to_client.control(window_update(exchange.stream, size))

    def peer_reset(self, exchange: Exchange, code: int) -> None:
        """Reset the stream for the client; a complete response is delivered first (RFC 9113 section 8.1)."""
        if not exchange.response_ended:
            self.reset(exchange, code)
            return
        exchange.reset_after = code
        exchange.lingers = code == ErrorCode.NO_ERROR and not exchange.head.is_grpc
        exchange.link_stream = 0
        exchange.drop_body()
        self.backpressure.release(exchange)
        if exchange.delivered:
            self._delivered(exchange)

    def reset(self, exchange: Exchange, code: int) -> None:
        """Reset the stream: for the client with this error code, for the link with CANCEL."""
        if exchange.stream in self._state.streams.exchanges:
            self._to_client.control(rst_stream(exchange.stream, code))
        self._finish(exchange, cancel=ErrorCode.CANCEL)

    def refused(self, exchange: Exchange, link: Link) -> None:
        """Ask the link's peer again, on this or another link, or somebody else: it has not processed the request."""
        if exchange.attempts < self._state.limits.attempts:
            self._pool_of(link).requeue(exchange)
        else:
            self._fall_back(exchange, from_app=link.is_app)

    def declined(self, exchange: Exchange, link: Link) -> None:
        """Have somebody else answer: the link's peer demands HTTP/1.1."""
        self._link_failed(exchange, link)

    def response_head_too_large(self, exchange: Exchange) -> None:
        """Replace a response whose head is over the limit."""
        if exchange.response_started or exchange.to_app:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR)
        else:
            size = self._state.limits.passed_list >> 10
            self._reply_locally(exchange, f"the head of its handler's answer is larger than {size} KiB")

    def connect_unsupported(self, exchange: Exchange) -> None:
        """Answer a request whose peer does not take extended CONNECT."""
        if exchange.to_app:
            self.reset(exchange, ErrorCode.REFUSED_STREAM)
        else:
            self._reply_locally(exchange, "the handler does not accept extended CONNECT (WebSocket over HTTP/2)")

    # --- who answers ------------------------------------------------------------------------------------------------

    def _pool(self, exchange: Exchange) -> LinkPool:
        """The links to whoever is to answer the exchange."""
        if exchange.to_app:
            if self._second is None:
                self._second = LinkPool(lambda: self._open(Role.APP, None), self._state.limits)
            return self._second
        rule = exchange.rule
        assert rule is not None  # noqa: S101 - without one it is the app's
        pool = self._handlers.get(rule.uid)
        if pool is None:
            pool = self._handlers[rule.uid] = LinkPool(lambda: self._open(Role.HANDLER, rule), self._state.limits)
        return pool

    def _pool_of(self, link: Link) -> LinkPool:
        """The pool that the link belongs to."""
        pool = self._second if link.leg.rule is None else self._handlers.get(link.leg.rule.uid)
        assert pool is not None  # noqa: S101 - every link was made for one
        return pool

    def _pools(self) -> list[LinkPool]:
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

    def _link_failed(self, exchange: Exchange, link: Link) -> None:
        """Find another end for an exchange whose link has failed."""
        if exchange.response_ended:
            if exchange.stream in self._state.streams.exchanges:
                self.peer_reset(exchange, ErrorCode.NO_ERROR)  # the answer is complete, the request is not
            else:
                exchange.drop_body()
        elif exchange.response_started:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR)
        else:
            self._fall_back(exchange, from_app=link.is_app)

    def _fall_back(self, exchange: Exchange, *, from_app: bool) -> None:
        """Have an exchange answered of which no byte of a response has come, and none will from its peer."""
        if from_app:
            self.reset(exchange, ErrorCode.INTERNAL_ERROR if exchange.consumed else ErrorCode.REFUSED_STREAM)
        elif exchange.consumed:
            self._reply_locally(exchange, "the handler was lost before it answered")
        else:
            exchange.detach()
            exchange.to_app = True
            exchange.attempts = 0
            self._pool(exchange).add(exchange)

    def _reply_locally(self, exchange: Exchange, reason: str) -> None:
        self._reply(exchange, *bad_gateway(exchange, reason))

    def _reply(self, exchange: Exchange, block: Block, body: bytes) -> None:
        """Give a response of ours to an exchange that nobody carries any more."""
        exchange.detach()
        exchange.drop_body()
        self.backpressure.release(exchange)
        exchange.response.append(block)
        if body:
            exchange.response.append(body)
            exchange.response_size += len(body)
        exchange.end_response()
        exchange.reset_after = ErrorCode.NO_ERROR
        exchange.lingers = not exchange.head.is_grpc
        exchange.update_charge()
        self._to_client.ready(exchange)

    def link_over(self, link: Link, ending: Ending) -> None:
        """End a link that cannot be opened, was lost, or broke the protocol, in this way."""
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
                pool.requeue(exchange)
            else:
                self._link_failed(exchange, link)
        for exchange in waiting:
            exchange.detach()
            pool.requeue(exchange)
        if not link.has_settings and not pool.has_link:
            self._fail_waiting(pool, from_app=link.is_app)

    def _fail_waiting(self, pool: LinkPool, *, from_app: bool) -> None:
        """Have the exchanges that wait in a pool answered by somebody else: its peer is unreachable or takes none."""
        waiting = [*pool.waiting]
        pool.waiting.clear()
        for exchange in waiting:
            self._fall_back(exchange, from_app=from_app)
        if from_app:
            self._app.second_is_unreachable()

    # --- upkeep -----------------------------------------------------------------------------------------------------

    @property
    def rests(self) -> bool:
        """Whether `pump` would do nothing: no exchange waits for a link, a window or a boundary."""
        to_client = self._to_client
        if to_client.wants_boundary or to_client.queue or to_client.delivered:
            return False
        for link in self.links.values():
            if link.ready or link.waiting or link.leaving:
                return False
        for pool in self._handlers.values():
            if pool.waiting:
                return False
        return self._second is None or not self._second.waiting

    def pump(self) -> None:
        """Let the links and `ToClient` write what they can; finish exchanges whose response has been written."""
        to_client = self._to_client
        for pool in self._handlers.values():
            pool.pump()
        if self._second is not None:
            self._second.pump()
        for link in [*self.links.values()]:
            if link.leaving and link.is_idle:
                self._close(link)
        to_client.pump()
        while to_client.delivered:
            self._delivered(to_client.delivered.pop())

    def _delivered(self, exchange: Exchange) -> None:
        """Finish an exchange whose response has been written, as far as that can be done now."""
        if exchange.request_ended:
            self._finish(exchange)
        elif exchange.lingers and len(self._lingering) < LINGERING:
            self._lingering[exchange] = 0
        elif exchange.reset_after is not None:
            self._to_client.control(rst_stream(exchange.stream, exchange.reset_after))
            self._finish(exchange, cancel=ErrorCode.NO_ERROR)

    def _close(self, link: Link) -> None:
        """Close a link with GOAWAY."""
        link.write(goaway(0, ErrorCode.NO_ERROR))
        self.link_over(link, Ending.CLOSE)

    def reads(self, leg: Leg) -> bool:
        """Whether the link on this leg is read: more of its responses may wait for the client."""
        link = self.links.get(leg)
        return link is None or not self.account.is_over or not link.unread

    @property
    def wants_time(self) -> bool:
        """Whether ticks are needed. Hot path: asked after most reads, so nothing is made for it."""
        if self.backpressure or self._resets.wants_time or self._lingering:
            return True
        for pool in self._handlers.values():
            if pool.wants_time:
                return True
        return self._second is not None and self._second.wants_time

    def tick(self) -> None:
        """Learn that a tick has passed."""
        self._resets.tick()
        self.backpressure.tick()
        self._tick_lingering()
        for pool in self._pools():
            over, stuck = pool.tick()
            for link in over:
                if link.has_settings:
                    self._close(link)
                else:
                    self.link_over(link, Ending.ABORT)
            if stuck:
                self._fail_waiting(pool, from_app=pool is self._second)

    def _tick_lingering(self) -> None:
        """Reset streams whose response of ours was written LINGER ticks ago, and whose request still goes on."""
        for exchange in [*self._lingering]:
            self._lingering[exchange] += 1
            if self._lingering[exchange] > LINGER:
                self._to_client.control(rst_stream(exchange.stream, ErrorCode.NO_ERROR))
                self._finish(exchange, cancel=ErrorCode.NO_ERROR)

    def _finish(self, exchange: Exchange, *, cancel: int | None = None) -> None:
        """Forget a stream with which the client is done; with `cancel` the link resets it with that error code."""
        self._lingering.pop(exchange, None)
        self._state.streams.finish(exchange.stream)
        self.backpressure.release(exchange)
        self._feed.cut(exchange.stream)
        self._to_client.forget(exchange)
        exchange.client_done()
        link = exchange.link
        if cancel is not None:
            exchange.drop_body()
            dropped = exchange.drop_response()
            if link is not None:
                link.discarded(dropped)
                link.cancel(exchange, cancel)
            else:
                self._pool(exchange).waiting.pop(exchange, None)

    def cancel_all(self) -> None:
        """End all exchanges and links: the client is gone."""
        for exchange in [*self._state.streams.exchanges.values()]:
            self._finish(exchange, cancel=ErrorCode.CANCEL)
        for link in [*self.links.values()]:
            self._close(link)
