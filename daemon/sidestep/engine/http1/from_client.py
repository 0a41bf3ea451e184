"""The client's half of the relay: requests are read, routed, and forwarded to the side that answers them.

What the client says is forwarded when it is understood as far as the end of its head; a body is forwarded as it comes.
A head that has to wait for other answers is kept in `ConnectionState.unread` with all that follows it, until `proceed`.

What is not understood goes to the app, as a wire, for good, and with it everything later in both directions: at once,
or after the diverted request in flight. No ambiguity leads to a handler. A body that turns out broken does the same;
only if a handler has been given its head, the client gets a 400 instead.

A head must be whole `head_seconds` after its first byte, else the connection becomes a wire.

With a rewriter (`engine.rewriting`) every head is rewritten before it is routed, and so are the trailers of a chunked
request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http1.state import DISCARDING, HELD_BACK, READING, SERVED, WIRE, Event
from sidestep.engine.leg import Ending
from sidestep.engine.rewriting import Rewriter, TrailerFilter
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import ANSWER_FLAGS, REQUEST, SWITCHES, UPGRADE, Http1Limits

if TYPE_CHECKING:
    from sidestep.engine.http1.conclusion import Conclusion
    from sidestep.engine.http1.diversion import Diversion
    from sidestep.engine.http1.early_data import EarlyData
    from sidestep.engine.http1.feed import Http1Feed
    from sidestep.engine.http1.peers import Peers
    from sidestep.engine.http1.routing import RequestRouter, RoutedRequest
    from sidestep.engine.http1.state import ConnectionState
    from sidestep.engine.relay import Relay
    from sidestep.protocols.http1_requests import RequestReader


class FromClient:
    """See the module."""

    __slots__ = (
        "_conclusion",
        "_discarded",
        "_diversion",
        "_early",
        "_feed",
        "_limits",
        "_peers",
        "_relay",
        "_requests",
        "_rewriter",
        "_router",
        "_state",
        "_trailers",
    )

    def __init__(
        self,
        relay: Relay,
        state: ConnectionState,
        requests: RequestReader,
        router: RequestRouter,
        peers: Peers,
        feed: Http1Feed,
        diversion: Diversion,
        early: EarlyData,
        conclusion: Conclusion,
        *,
        limits: Http1Limits,
        rewriter: Rewriter | None,
    ) -> None:
        self._relay = relay
        self._state = state
        self._requests = requests
        self._router = router
        self._peers = peers
        self._feed = feed
        self._diversion = diversion
        self._early = early
        self._conclusion = conclusion
        self._limits = limits
        self._rewriter = rewriter
        self._trailers: TrailerFilter | None = None
        self._discarded = 0
        """Bytes dropped after the last answer."""

    def read(self, data: bytes) -> None:
        """Take bytes of the client, then give to an open handler leg what it is due."""
        state = self._state
        requests = self._requests
        at = 0
        while at < len(data):
            if state.client is not READING:
                self._read_otherwise(data[at:])
                break
            start = at
            at = requests.read(data, start)
            event = requests.event
            if event == messages.HEADED:
                headed = self._route_head if self._rewriter is None else self._rewrite_head
                at = headed(requests.head, data, at)
            elif event == messages.BROKEN:
                self._broken(requests.anomaly, data[at:])
                break
            elif requests.state == messages.HEAD:
                if self._relay.deadline is None:
                    self._relay.deadline = self._relay.now + self._limits.head_seconds
            else:
                self._forward(data[start:at])
                if event == messages.COMPLETE:
                    self._request_sent()
        diverted = state.diverted
        if diverted is not None and diverted.leg.open:
            self._diversion.give(diverted)
        if state.unread:
            self._early.send()

    def _read_otherwise(self, data: bytes) -> None:
        client = self._state.client
        if client in HELD_BACK:
            self._state.unread += data
        elif client is WIRE and self._conclusion.wire is not None:
            self._conclusion.wire.receive(self._relay.client, data)
        elif client is DISCARDING:
            self._discarded += len(data)
            if self._discarded > self._limits.discard:
                self._conclusion.end(Ending.CLOSE)

    def _route_head(self, head: bytes, data: bytes, end: int) -> int:
        """A head is here, `end` is where it ends in `data`: forward or keep it. Returns how far it got."""
        self._relay.deadline = None
        request = self._router.route(head)
        if isinstance(request, str):
            self._leave_to_app(request, head + data[end:])
            return len(data)
        state = self._state
        rule = request.decision.intercept
        if (state.awaited or state.diverted is not None) and state.must_wait(for_handler=rule is not None):
            state.on(Event.HELD)
            state.unread += head
            state.unread += data[end:]
            return len(data)
        end, body = self._begin_request(request, head, data, end)
        self._requests.begin(body)
        if not body:
            self._request_sent()
        return end

    def _begin_request(self, request: RoutedRequest, head: bytes, data: bytes, end: int) -> tuple[int, int]:
        """Give a head to the side that answers it. Returns how far in `data` that got, and the body still to come."""
        state = self._state
        rule = request.decision.intercept
        state.request_flags = request.flags
        if request.flags & UPGRADE:
            state.upgrade_head = head
        body = request.body
        if request.decision.taps or rule is not None:
            self._feed.begin(request, head, self._relay.now)
        elif self._feed.current:
            self._feed.cut()  # it asked for another protocol, and was answered before it was whole
        if rule is not None:
            state.app_bypassed = True
            self._diversion.begin(rule, request, head)
        else:
            app = state.answering_leg = self._peers.ask_app()
            state.awaited.append(request.flags & ANSWER_FLAGS | self._feed.expect(self._feed.current))
            if 0 < body <= len(data) - end:
                # The body is here too: both leave in one piece, which is `data` itself if that is all of it.
                if self._feed.current:
                    self._feed.body(data[end : end + body])
                start, end, body = end - len(head), end + body, 0
                app.write(data[start:end] if start >= 0 else head + data[start + len(head) : end])
            else:
                app.write(head)
        return end, body

    def _rewrite_head(self, head: bytes, data: bytes, end: int) -> int:
        """As `_route_head`, after the head was rewritten."""
        rewriter = self._rewriter
        if rewriter is None or REQUEST.fullmatch(head) is None:
            return self._route_head(head, data, end)  # which finds that it cannot be read
        head = rewriter.head(head)
        reached = self._route_head(head, head + data[end:], len(head))
        self._trailers = TrailerFilter(rewriter, self._limits) if self._requests.state == messages.CHUNKS else None
        return reached - len(head) + end

    def _forward(self, body: bytes) -> None:
        """Pass on a piece of the body of the request being received."""
        if self._trailers is not None:
            body = self._trailers.rewrite(body)
            if not body:
                return
        self._pass_on(body)

    def _pass_on(self, body: bytes) -> None:
        """Give a piece of the body to the side that answers its request."""
        if self._feed.current:
            self._feed.body(body)
        diverted = self._state.diverted
        if diverted is None:
            self._relay.app.write(body)
        elif not diverted.leg.ending:
            diverted.keep(body)

    def _request_sent(self) -> None:
        """The request being received is here, whole."""
        state = self._state
        if self._feed.current:
            self._feed.sent(state.request_flags)
        diverted = state.diverted
        if diverted is not None:
            diverted.sent = True
            if diverted.answered:
                self._diversion.give(diverted)
                self._diversion.finish(diverted)
                return
        if state.request_flags & SWITCHES and (diverted is not None or state.awaited):
            state.on(Event.SWITCH_ASKED)

    def _broken(self, anomaly: str, rest: bytes) -> None:
        """The client's bytes cannot be followed any more, in a head or in a body."""
        self._feed.cut()
        diverted = self._state.diverted
        if self._requests.state != messages.CHUNKS or diverted is None:
            self._leave_to_app(anomaly, self._requests.take_kept() + rest)
        elif not diverted.given:
            self._diversion.fall_back(diverted)
            self._conclusion.become_wire(anomaly, rest)
        else:
            diverted.close = True
            self._relay.anomaly = anomaly
            self._diversion.fail(diverted, b"400 Bad Request", "the request body is not well-formed")

    def _leave_to_app(self, anomaly: str, rest: bytes) -> None:
        """What the client says cannot be read with certainty: only the app may read it."""
        self._relay.deadline = None
        state = self._state
        if state.diverted is None:
            self._conclusion.become_wire(anomaly, rest)
        else:
            state.then_wire = anomaly
            state.on(Event.HELD)
            state.unread += rest

    def expired(self, now: float) -> None:
        """Look whether a begun head took too long."""
        relay = self._relay
        if self._requests.state != messages.HEAD or relay.deadline is None:
            relay.deadline = None
        elif now >= relay.deadline:
            self._leave_to_app("h1-slow-head", self._requests.take_kept())

    def pass_end(self) -> None:
        """The client has finished and (but for `unread`) everything it said is forwarded: pass that on."""
        state = self._state
        diverted = state.diverted
        if self._requests.state == messages.HEAD:
            self._leave_to_app("h1-truncated-head", self._requests.take_kept())
        elif state.client in HELD_BACK and (state.unread or state.then_wire):
            return
        elif diverted is not None:
            if diverted.answered:
                self._diversion.finish(diverted)
            elif diverted.leg.open and diverted.given:
                diverted.leg.end(Ending.FINISH)
        elif self._peers.app_in_use and not state.app_bypassed:
            self._conclusion.become_wire(None)
        else:
            self._conclusion.end(Ending.CLOSE)

    def proceed(self) -> None:
        """Earlier answers are complete: read what was kept."""
        state = self._state
        if state.may_resume:
            data = bytes(state.unread)
            state.unread.clear()
            self._feed.cut()
            state.on(Event.ANSWERED)
            self.read(data)
        if state.client_ended and state.client in SERVED:
            self.pass_end()
