"""Copies of HTTP/2 requests: one stream each, on one connection per wiretap and client connection.

The stream is an `Exchange` on a `Link`, as for a diverted request, but nobody waits for it: fields, data and trailers
go to it in the order of the events, its body waits in the exchange until the link's windows take it, what is answered
is thrown away. The client's windows, the app's and those of other wiretaps have no part in this.

    _open      client's stream id -> its copies that are not whole yet
    _alive     copies whose stream is not over
    a copy     is dropped when the `Ledger` has no room for it, and truncated (RST_STREAM) when that has none for its
               body, or when the original ends before its END_STREAM: reset by either side, or not readable any more

The connection to the handler stays for the next request while the client's lasts; afterwards it ends with GOAWAY as
soon as it is idle (the shell bounds the time).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.http2.head import head_of
from sidestep.engine.http2.link import Link
from sidestep.engine.leg import HIGH_WATER, Ending, Leg, queue
from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.mirror.events import H2
from sidestep.engine.mirror.notes import truncated
from sidestep.model.errors import PeerError
from sidestep.protocols.hpack import Memo
from sidestep.protocols.http2 import DEFAULT_LIMITS, ErrorCode, goaway

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidestep.engine.http2.head import Head
    from sidestep.engine.mirror.events import RequestHead
    from sidestep.engine.mirror.ledger import Ledger
    from sidestep.engine.mirror.sink import Source
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block

_RESPONSES = Memo(DEFAULT_LIMITS.memo)
"""Response blocks seen by any copy of this process: a pure cache, bounded in bytes, apart from that of diversions."""


class CopyStream(Exchange):
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


class StreamCopies:
    """The copies of one HTTP/2 connection. It is the `Owner` of the links and of their legs."""

    __slots__ = ("_alive", "_leaving", "_ledger", "_links", "_open", "_source", "links")

    def __init__(self, source: Source, ledger: Ledger) -> None:
        self._source = source
        self._ledger = ledger
        self._links: dict[str, Link] = {}
        """Wiretap -> the connection that takes its next copy."""
        self.links: dict[Leg, Link] = {}
        self._alive: dict[CopyStream, None] = {}
        self._leaving = False
        self._open: dict[int, tuple[CopyStream, ...]] = {}

    # --- events -----------------------------------------------------------------------------------------------------

    def begin(self, head: RequestHead, rules: Sequence[Rule]) -> list[Rule]:
        """Copy a request to these wiretaps; those for which there was no room are returned."""
        copies, left_out = [], []
        block = head.block
        assert block is not None  # noqa: S101 - heads of HTTP/2 have one
        for rule in rules:
            copy = self._make(head.exchange, block, rule, ends=head.ends)
            if copy is None:
                left_out.append(rule)
            else:
                copies.append(copy)
        if copies and not head.ends:
            self._open[head.exchange] = tuple(copies)
        return left_out

    def holds(self, exchange: int) -> bool:
        """Whether a copy of this stream wants more."""
        return exchange in self._open

    def data(self, exchange: int, data: bytes) -> None:
        """Payload of DATA."""
        copies = self._open.get(exchange)
        if copies is None:
            return
        for copy in copies:
            if copy not in self._alive:
                continue
            if not self._ledger.has_room(copy.rule.uid, copy, len(data)):
                self._truncate(copy)
                continue
            queue(copy.body, data)
            copy.body_size += len(data)
            self._push(copy)
        if not any(copy in self._alive for copy in copies):
            del self._open[exchange]
            self._source.release(exchange)

    def end(self, exchange: int, trailers: Block | None) -> None:
        """The request is whole."""
        for copy in self._open.pop(exchange, ()):
            if copy in self._alive:
                copy.trailers = trailers
                copy.end_request()
                self._push(copy)

    def cut(self, exchange: int, *, lost: bool) -> None:
        """Nothing more of this stream will come; whether any of it was `lost` makes no difference."""
        del lost
        for copy in self._open.pop(exchange, ()):
            if copy in self._alive:
                self._truncate(copy)

    def over(self) -> None:
        """The client's connection is over: links end as soon as they are idle."""
        self._leaving = True
        for link in [*self.links.values()]:
            self._settle(link)

    # --- copies -----------------------------------------------------------------------------------------------------

    def _make(self, stream: int, block: Block, rule: Rule, *, ends: bool) -> CopyStream | None:
        if len(self._alive) >= self._ledger.limits.per_connection and not self._make_room(rule):
            return None
        if not self._ledger.admits(rule.uid, len(block.literal)):
            return None
        link = self._links.get(rule.uid)
        if link is None or not link.accepts_streams:
            link = self._links[rule.uid] = self._connect(rule)
        copy = CopyStream(stream, head_of(block), block, rule)
        if ends:
            copy.end_request()
        self._ledger.enter(rule.uid, copy)
        self._alive[copy] = None
        link.assign(copy)
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
        leg = CopyLeg(rule, self, H2)
        self._source.opening.append(leg)
        link = self.links[leg] = Link(leg, self, _RESPONSES, DEFAULT_LIMITS, is_app=False)
        self._ledger.enter(rule.uid, leg)
        return link

    def _push(self, copy: CopyStream) -> None:
        link = copy.link
        if link is not None:
            link.wake(copy)
            self._settle(link)

    def _truncate(self, copy: CopyStream) -> None:
        copy.drop_body()
        if copy.link is not None:
            copy.link.cancel(copy, ErrorCode.CANCEL)
        self._source.notes.append(truncated(copy.rule))
        self._over(copy)

    def _over(self, copy: CopyStream) -> None:
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

    def opened(self, leg: CopyLeg) -> None:
        """A handler is connected."""
        link = self.links.get(leg)
        if link is not None:
            link.opened = True
            self._settle(link)

    def reads(self, leg: CopyLeg) -> bool:
        """A handler is not read while it does not take what answers it."""
        return leg.queued <= HIGH_WATER

    def receive_eof(self, leg: CopyLeg) -> None:
        """A handler has finished: an HTTP/2 connection is over then."""
        self._lost(leg, Ending.CLOSE)

    def drained(self, leg: CopyLeg) -> None:
        """A handler takes bytes again."""
        link = self.links.get(leg)
        if link is not None:
            self._settle(link)

    def receive(self, leg: CopyLeg, data: bytes) -> None:
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

    def lost(self, leg: CopyLeg) -> None:
        """A handler refused, or broke."""
        self._lost(leg, Ending.ABORT)

    def _lost(self, leg: CopyLeg, ending: Ending) -> None:
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
                self._source.notes.append(truncated(copy.rule))
            self._over(copy)
        link.streams.clear()
        link.waiting.clear()
        link.ready.clear()
        link.end(ending if link.opened else Ending.ABORT)

    # --- LinkOwner --------------------------------------------------------------------------------------------------

    def response_progressed(self, exchange: Exchange) -> None:
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

    def declined(self, exchange: Exchange, link: Link) -> None:
        """The handler will not take the request."""
        del link
        self._gone(exchange)

    def response_head_too_large(self, exchange: Exchange) -> None:
        """The head of an answer that nobody wants is over the limit."""
        self._gone(exchange)

    def connect_unsupported(self, exchange: Exchange) -> None:
        """The handler takes no extended CONNECT."""
        self._gone(exchange)

    def body_sent(self, exchange: Exchange, size: int) -> None:
        """Bytes of the body have gone: the ledger sees it in the copy itself."""

    def _gone(self, exchange: Exchange) -> None:
        for copy in self._alive:
            if copy is exchange:
                if not copy.request_sent:
                    self._source.notes.append(truncated(copy.rule))
                copy.drop_body()
                self._over(copy)
                return
