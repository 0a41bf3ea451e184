"""Copies of HTTP/2 requests: one stream each, on one connection per wiretap and client connection.

The stream is an `Exchange` on a `Link`, as for a diverted request, but nobody waits for it: fields, data and trailers
go to it as they go to the app or the handler, its body waits in the exchange until the link's windows take it, what is
answered is thrown away. The client's windows, the app's and those of other taps have no part in this.

    streams    the client's streams of which more is to be copied
    _copies    client's stream id -> its copies that are not whole yet
    a copy     is dropped when `Ledger` has no room for it, and truncated (RST_STREAM) when it has none for its body, or
               when the original ends before its END_STREAM: reset by either side, connection over or unreadable

What becomes of a request is noted (`Relay.deferred`) and done to its copies later, in order; at once is known only in
which streams more is wanted.

The connection to the handler stays for the next request while the client's lasts; afterwards it ends with GOAWAY as
soon as it is idle (the shell bounds the time).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.http2.link import Link
from sidestep.engine.mirror.copies import truncated
from sidestep.engine.relay import CopyLeg, Diverted, Ending, Leg, Lost, queue
from sidestep.model.errors import PeerError
from sidestep.policy.redaction import redact
from sidestep.protocols.hpack import Memo, list_size
from sidestep.protocols.http2 import DEFAULT_LIMITS, ErrorCode, goaway

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.mirror.copies import Ledger
    from sidestep.engine.relay import Relay
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block
    from sidestep.protocols.http2 import Http2Limits

_RESPONSES = Memo(DEFAULT_LIMITS.memo)
"""Response blocks seen by any tap of this process: a pure cache, bounded in bytes, apart from that of diversions."""


class TapStream(Exchange):
    """One copy, as the ledger's `Holder`."""

    __slots__ = ("queued_head",)

    rule: Rule
    link: Link | None

    def __init__(self, stream: int, head: Head, block: Block, rule: Rule) -> None:
        super().__init__(stream, head, block, rule, window=0)
        self.queued_head = len(block.literal)

    @property
    def queued(self) -> int:
        """Bytes that wait."""
        return self.body_size + (0 if self.link_stream else self.queued_head)


class Http2Taps:
    """See the module. It is the links' `Owner`."""

    __slots__ = ("_alive", "_copies", "_leaving", "_ledger", "_limits", "_links", "_port", "_relay", "links", "streams")

    def __init__(self, relay: Relay, ledger: Ledger, limits: Http2Limits, *, port: int) -> None:
        self._relay = relay
        self._port = port
        self._ledger = ledger
        self._limits = limits
        self._links: dict[str, Link] = {}
        self._alive: dict[TapStream, None] = {}
        self._leaving = False
        self._copies: dict[int, tuple[TapStream, ...]] = {}
        self.links: dict[Leg, Link] = {}
        self.streams: set[int] = set()

    # --- from the client --------------------------------------------------------------------------------------------

    def begin(self, stream: int, head: Head, block: Block, rules: tuple[Rule, ...], *, ends: bool) -> None:
        """A new stream that these wiretaps want, unless they are held back; `ends` when it has no body."""
        rules = self._ledger.gate.choose(self._port, rules)
        if not rules:
            return
        if not ends and not all(rule.heads_only for rule in rules):
            self.streams.add(stream)
        self._relay.deferred.put(list_size(block.fields), self._begin, stream, head, block, rules, ends)

    def body(self, stream: int, data: bytes, *, ends: bool) -> None:
        """Data of a request that is copied, possibly empty."""
        if ends:
            self.streams.discard(stream)
        self._relay.deferred.put(len(data), self._body, stream, data, ends)

    def trailers(self, stream: int, block: Block, *, ends: bool) -> None:
        """A second header block of a stream; if it does not end the request the app will refuse that."""
        if stream in self.streams:
            self.streams.discard(stream)
            if ends:
                self._relay.deferred.put(list_size(block.fields), self._trailers, stream, block)
            else:
                self._relay.deferred.put(0, self._cut, stream)

    def cut(self, stream: int) -> None:
        """Nothing more of this stream will come."""
        if stream in self.streams:
            self.streams.discard(stream)
            self._relay.deferred.put(0, self._cut, stream)

    def cut_all(self) -> None:
        """Nothing more of any stream will come."""
        for stream in [*self.streams]:
            self.cut(stream)

    def farewell(self) -> None:
        """Only taps are left."""
        self.cut_all()
        deferred = self._relay.deferred
        if self.links or deferred.calls:
            deferred.put(0, self._farewell)

    # --- its copies, later ------------------------------------------------------------------------------------------

    def _begin(self, stream: int, head: Head, block: Block, rules: tuple[Rule, ...], ends: bool) -> None:
        copies = []
        for rule in rules:
            if not self._ledger.gate.still(self._port, rule):
                continue
            lost = Lost.NOTHING
            if not rule.heads_only:
                copy = self._open(stream, head, block, rule, ends=ends)
                if copy is None:
                    lost = Lost.ALL
                else:
                    copies.append(copy)
            fields = redact((*head.pseudo.items(), *head.regular)) if rule.heads_only else ()
            self._relay.diverted.append(
                Diverted(rule, head.method, head.path, head.authority, copied=True, lost=lost, fields=fields)
            )
        if copies and not ends:
            self._copies[stream] = tuple(copies)
        elif not copies:
            self.streams.discard(stream)

    def _body(self, stream: int, data: bytes, ends: bool) -> None:
        for copy in self._copies.get(stream, ()):
            if copy not in self._alive:
                continue
            if data and not self._ledger.has_room(copy.rule.uid, copy, len(data)):
                self._truncate(copy)
                continue
            if data:
                queue(copy.body, data)
                copy.body_size += len(data)
            copy.request_ended = ends
            self._push(copy)
        if ends:
            self._copies.pop(stream, None)
        elif not any(copy in self._alive for copy in self._copies.get(stream, ())):
            self._copies.pop(stream, None)
            self.streams.discard(stream)

    def _trailers(self, stream: int, block: Block) -> None:
        for copy in self._copies.pop(stream, ()):
            if copy in self._alive:
                copy.trailers = block
                copy.request_ended = True
                self._push(copy)

    def _cut(self, stream: int) -> None:
        for copy in self._copies.pop(stream, ()):
            if copy in self._alive:
                self._truncate(copy)

    def _farewell(self) -> None:
        self._leaving = True
        for link in [*self.links.values()]:
            self._settle(link)

    # --- copies -----------------------------------------------------------------------------------------------------

    def _open(self, stream: int, head: Head, block: Block, rule: Rule, *, ends: bool) -> TapStream | None:
        if len(self._alive) >= self._ledger.limits.per_connection and not self._make_room(rule):
            return None
        if not self._ledger.admits(rule.uid, len(block.literal)):
            return None
        link = self._links.get(rule.uid)
        if link is None or not link.takes_more:
            link = self._links[rule.uid] = self._connect(rule)
        copy = TapStream(stream, head, block, rule)
        copy.request_ended = ends
        self._ledger.enter(rule.uid, copy)
        self._alive[copy] = None
        link.take(copy)
        self._settle(link)
        return copy

    def _make_room(self, rule: Rule) -> bool:
        """A complete copy of this wiretap that only waits for an answer gives way."""
        for copy in self._alive:
            if copy.rule.uid == rule.uid and copy.request_sent:
                if copy.link is not None:
                    copy.link.cancel(copy, ErrorCode.CANCEL)
                self._over(copy)
                return True
        return False

    def _connect(self, rule: Rule) -> Link:
        relay = self._relay
        relay.forget_legs()
        leg = CopyLeg(rule, relay, relay.protocol)
        relay.legs.append(leg)
        relay.opening.append(leg)
        memo = _RESPONSES if self._limits is DEFAULT_LIMITS else Memo(self._limits.memo)
        link = self.links[leg] = Link(leg, self, memo, self._limits, is_app=False)
        self._ledger.enter(rule.uid, leg)
        return link

    def _push(self, copy: TapStream) -> None:
        link = copy.link
        if link is not None:
            link.wake(copy)
            self._settle(link)

    def _truncate(self, copy: TapStream) -> None:
        copy.drop_body()
        if copy.link is not None:
            copy.link.cancel(copy, ErrorCode.CANCEL)
        self._relay.diverted.append(truncated(copy.rule))
        self._over(copy)

    def _over(self, copy: TapStream) -> None:
        self._alive.pop(copy, None)
        self._ledger.leave(copy.rule.uid, copy)

    def _settle(self, link: Link) -> None:
        """Send what can be sent; let go of what is over."""
        link.pump()
        for copy in [each for each in self._alive if each.request_sent and each.response_ended]:
            self._over(copy)
        if link.is_idle and (self._leaving or link.leaving) and link.leg in self.links:
            link.write(goaway(0, ErrorCode.NO_ERROR))
            self._link_over(link, Ending.CLOSE)

    # --- from the handlers ------------------------------------------------------------------------------------------

    def opened(self, leg: Leg) -> None:
        """A handler is connected."""
        link = self.links.get(leg)
        if link is not None:
            link.opened = True
            self._settle(link)

    def drained(self, leg: Leg) -> None:
        """A handler takes bytes again."""
        link = self.links.get(leg)
        if link is not None:
            self._settle(link)

    def receive(self, leg: Leg, data: bytes) -> None:
        """Take bytes of a handler."""
        link = self.links.get(leg)
        if link is None:
            return
        try:
            link.receive(data)
        except PeerError as error:
            link.write(goaway(0, error.code or ErrorCode.PROTOCOL_ERROR))
            self._link_over(link, Ending.CLOSE)
        else:
            self._settle(link)

    def lost(self, leg: Leg, ending: Ending) -> None:
        """A handler refused, left or broke."""
        link = self.links.get(leg)
        if link is not None:
            self._link_over(link, ending)

    def _link_over(self, link: Link, ending: Ending) -> None:
        self.links.pop(link.leg, None)
        rule = link.leg.rule
        if rule is not None:
            self._ledger.leave(rule.uid, link.leg)
            if self._links.get(rule.uid) is link:
                del self._links[rule.uid]
        for copy in [each for each in self._alive if each.link is link]:
            if isinstance(link.leg, CopyLeg) and link.leg.answered is None:
                link.leg.answered = False
            if not copy.request_sent:
                self._relay.diverted.append(truncated(copy.rule))
            self._over(copy)
        link.streams.clear()
        link.waiting.clear()
        link.ready.clear()
        link.end(ending if link.opened else Ending.ABORT)

    # --- Owner ------------------------------------------------------------------------------------------------------

    def answered(self, exchange: Exchange) -> None:
        """Something of the response has come: nobody wants it."""
        if exchange.link is not None:
            if isinstance(exchange.link.leg, CopyLeg):
                exchange.link.leg.answered = True
            exchange.link.passed_on(exchange, exchange.drop_response())

    def peer_reset(self, exchange: Exchange, code: int) -> None:
        """The handler does not want the rest."""
        del code
        self._gone(exchange)

    def refused(self, exchange: Exchange, link: Link) -> None:
        """The handler has not taken the request."""
        del link
        self._gone(exchange)

    def unwilling(self, exchange: Exchange, link: Link) -> None:
        """The handler will not take the request."""
        del link
        self._gone(exchange)

    def too_large(self, exchange: Exchange) -> None:
        """The head of an answer that nobody wants is over the limit."""
        self._gone(exchange)

    def unable(self, exchange: Exchange) -> None:
        """The handler takes no extended CONNECT."""
        self._gone(exchange)

    def forwarded(self, exchange: Exchange, size: int) -> None:
        """Bytes of the body have gone: the ledger sees it in the copy itself."""

    def _gone(self, exchange: Exchange) -> None:
        for copy in self._alive:
            if copy is exchange:
                if not copy.request_sent:
                    self._relay.diverted.append(truncated(copy.rule))
                copy.drop_body()
                self._over(copy)
                return
