"""Relays one HTTP/1.x client connection: a decision per request, every byte as it came.

The parts, each with its own rules at the top of its file; they share one `ConnectionState`:

    state.py             what may happen next: the transition table, and who answers
    from_client.py       requests: read, routed (routing.py), forwarded
    from_app.py          the app's answers: forwarded, then watched
    diversion.py         the request that a handler answers (diverted_request.py)
    early_data.py        what a client sends before it knows whether the protocol is switched
    peers.py             the legs that answer, opened and ended
    conclusion.py        how HTTP/1 ends: as a wire, in HTTP/2, closed

With a gate (`engine.inspection`) requests and answers are judged on their way: `inspected_requests.py` takes the place
of `from_client.py`, answers are `inspected_answer.py`, and `inspection.py` is where both stand.

Invariants of the whole:

  * All bytes for the client come from one leg, `answering_leg`; bytes of any other leg belong to no request and never
    reach a client that awaits an answer.
  * Once a request was diverted since the app was last asked (`app_bypassed`), the app's leg is idle and the client is
    not. What the app says on it answers no request, and its end does not end the client's connection: the leg is
    retired, and the next request for the app opens another one. So does one that finds the leg silent for a while,
    because the app may be about to close it, and a request is never sent twice. As long as nothing was diverted in
    between, all that is passed on, as without us. An idle client without an app leg is `left`.
  * Requests that somebody listens to, and their answers, are told to the mirror (`Http1Feed`), whoever answers; of a
    connection that cannot be read any more nothing is told, and an exchange that had begun is cut.
  * Where the unreadable is closed (`OnUnreadable.CLOSE`) a slow head is not given to the app in pieces, so the client
    has longer for it (CLOSING_LIMITS).
  * Kept bytes: `unread`, `early`, a begun head, and until a handler leg is open its request: each up to its limit and
    one read. Heads that inspection keeps until they are answered: up to `hold`, one head and one read.

Hot path: a head in one chunk, for the app, without a body, is one question (`RequestRouter.plain_request`); an answer
that is whole in one chunk, or goes on in it, likewise. Then `passes` says so, and the shell writes the very bytes it
has read and asks nothing (measured: 3.8 µs less per request and answer, of 6.6 in Python, than through `receive`).
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from sidestep.engine.http1.conclusion import Conclusion
from sidestep.engine.http1.diversion import Diversion
from sidestep.engine.http1.early_data import EarlyData
from sidestep.engine.http1.feed import FULL, LISTENED_TO, Http1Feed
from sidestep.engine.http1.from_app import FromApp
from sidestep.engine.http1.from_client import FromClient
from sidestep.engine.http1.inspected_requests import ASKED, InspectedFromClient, InspectedRouter
from sidestep.engine.http1.inspection import INSPECTED, Http1Inspection
from sidestep.engine.http1.peers import Peers
from sidestep.engine.http1.routing import PLAIN, RequestRouter
from sidestep.engine.http1.samples import SAMPLED
from sidestep.engine.http1.state import DISCARDING, OVER, READING, SWITCHING, ConnectionState
from sidestep.engine.inspection.gate import Gate
from sidestep.engine.leg import HIGH_WATER, Ending, Leg
from sidestep.engine.memory_budget import Budget
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.relay import OnUnreadable, Relay
from sidestep.engine.rewriting import Rewriter
from sidestep.policy.route import SteeredPort
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import END_OF_HEAD, LIMITS, Http1Limits
from sidestep.protocols.http1_requests import RequestReader
from sidestep.protocols.http1_response_head import ResponseHead
from sidestep.protocols.http1_responses import recall

_MEMO_HEAD: Final = LIMITS.memo_head
"""Bytes above which a head, or a chunk that may be one, is not looked up: no longer ones are remembered."""

_WATCHED: Final = LISTENED_TO | INSPECTED
_NOT_PLAIN: Final = ~(SAMPLED | INSPECTED | LISTENED_TO)
"""Flags of a pending answer that does not pass as it is. One that is INSPECTED passes if nothing is found in it, one
that is LISTENED_TO if it is here, whole, and nobody wants its body."""

CLOSING_LIMITS: Final = replace(LIMITS, head_seconds=60.0)
"""Where the unreadable is closed: seconds for a head as servers commonly give (nginx: client_header_timeout 60s)."""


class Http1Relay(Relay):
    """See the module. `tls`: the client came over TLS. Without `limits` they follow from `on_unreadable`."""

    __slots__ = (
        "_conclusion",
        "_diversion",
        "_early",
        "_ends_with_app",
        "_feed",
        "_few_awaited",
        "_from_app",
        "_from_client",
        "_inspection",
        "_limits",
        "_passable",
        "_peers",
        "_requests",
        "_router",
        "_samples",
        "_state",
        "tls",
    )

    def __init__(
        self,
        port: SteeredPort,
        *,
        tls: bool,
        limits: Http1Limits | None = None,
        mirror: Mirror | None = None,
        budget: Budget | None = None,
        on_unreadable: OnUnreadable = OnUnreadable.PASS,
        rewriter: Rewriter | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(mirror)
        self.gate = gate
        closes = on_unreadable is OnUnreadable.CLOSE or (gate is not None and gate.closes)
        if limits is None:
            limits = CLOSING_LIMITS if closes else LIMITS
        self.tls = tls
        self._limits = limits
        self._passable = _MEMO_HEAD if rewriter is None else -1
        """Bytes of a chunk of the client that may pass as it is."""
        self._few_awaited = limits.pipelined // 2 if gate is None else limits.hold // _MEMO_HEAD
        """Requests awaiting answers up to which the client is certainly read on: half of the bound. An inspected
        connection may keep their heads, which are at most _MEMO_HEAD bytes where this is asked."""
        state = self._state = ConnectionState()
        requests = self._requests = RequestReader(limits)
        inspection = self._inspection = None if gate is None else Http1Inspection(self.client, gate)
        self._samples = None if inspection is None else inspection.samples
        router = RequestRouter(port, limits) if gate is None else InspectedRouter(gate, port, limits)
        self._router = router
        peers = self._peers = Peers(self, state, limits)
        feed = self._feed = Http1Feed(self)
        conclusion = self._conclusion = Conclusion(
            self,
            state,
            peers,
            requests,
            feed,
            port=port,
            budget=budget or Budget(),
            limits=limits,
            closes=closes,
            tls=tls,
            inspection=inspection,
        )
        # What is sent ahead of an answer may be requests: not past rules that block.
        waits = self._ends_with_app = closes or (gate is not None and gate.enforces)
        early = self._early = EarlyData(
            self, state, requests, router, feed, conclusion, limits=limits, closes=waits, gate=gate
        )
        diversion = self._diversion = Diversion(
            self, state, peers, feed, early, conclusion, limits=limits, inspection=inspection
        )
        parts = (self, state, requests, router, peers, feed, diversion, early, conclusion)
        if gate is None or inspection is None or not isinstance(router, InspectedRouter):
            from_client = FromClient(*parts, limits=limits, rewriter=rewriter)
        else:
            gate.bind(self)
            from_client = InspectedFromClient(inspection, router, *parts, limits=limits, rewriter=rewriter)
        self._from_client = from_client
        self._from_app = FromApp(self, state, peers, feed, early, from_client, conclusion, inspection)

    # --- inputs -----------------------------------------------------------------------------------------------------

    def passes(self, leg: Leg, data: bytes) -> Leg | None:  # noqa: C901 - hot path: no calls but for samples
        """Hot path: see the module."""
        app = self.app
        state = self._state
        awaited = state.awaited
        if state.client is not READING or state.diverted is not None or len(awaited) > self._few_awaited:
            return None
        if leg is self.client:
            if (
                state.answering_leg is app
                and app.open
                and self._requests.state == messages.FRESH
                and len(data) <= self._passable
                and (request := self._router.plain_request(data)) is not None
            ):
                if request is PLAIN:
                    flags = 0
                elif request is ASKED and self._inspection is not None:
                    flags = self._inspection.ask(data)
                else:
                    flags = self._feed.whole(request, data, leg.active)
                    if flags == FULL:
                        return None
                if (inspection := self._inspection) is not None and inspection.gate.tells_later:
                    inspection.tell_later(data)
                samples = self._samples
                awaited.append(flags if samples is None else flags | samples.asked(data))
                return app
        elif leg is state.answering_leg:
            reader = self._peers.responses
            if reader.state == messages.LENGTH and not awaited[0] & _WATCHED:
                left = reader.left - len(data)
                if left > 0:
                    reader.left = left
                    return self.client
                if not left and reader.response is not None and not reader.response.close:
                    reader.left = 0
                    reader.state = messages.FRESH
                    if awaited.popleft() & SAMPLED and self._samples is not None:
                        self._samples.answered()
                    return self.client
            elif reader.state == messages.FRESH and awaited and not awaited[0] & _NOT_PLAIN:
                end = data.find(END_OF_HEAD) + 4
                if 4 <= end <= _MEMO_HEAD:
                    head = data[:end]
                    response = recall(head)
                    if not isinstance(response, str) and response.plain >= 0:
                        left = end + response.plain - len(data)
                        flags = awaited[0]
                        if left < 0 or (flags & INSPECTED and (left or not self._clears(response, data, end))):
                            return None
                        if flags & LISTENED_TO and (
                            left or not self._feed.passes(head, response.status, response.plain, leg.active)
                        ):
                            return None
                        if flags & SAMPLED and self._samples is not None:
                            self._samples.begun(head, response)
                        if left:
                            reader.begin_length(response, left)
                        elif awaited.popleft() and self._inspection is not None:
                            self._inspection.passed(flags)
                        return self.client
        return None

    def _clears(self, response: ResponseHead, data: bytes, end: int) -> bool:
        """Whether an answer that is here, whole, and is to be searched has nothing in it."""
        inspection = self._inspection
        # A client that has finished is waited for elsewhere (`InspectedFromClient.pass_end`).
        return inspection is not None and not self._state.client_ended and inspection.clears(response, data, end)

    def receive(self, leg: Leg, data: bytes, now: float) -> None:
        """Take bytes from a leg."""
        self.now = now
        if leg is self.client:
            self._from_client.read(data)
        elif leg is self._state.answering_leg:
            diverted = self._state.diverted
            if diverted is None:
                self._from_app.read(data)
            else:
                self._diversion.read(diverted, data)
        elif (wire := self._conclusion.wire) is not None and leg is not self._peers.spare:
            wire.receive(leg, data)
        elif leg is self.app:
            self._from_app.read_unasked(data)
        else:
            self._gone(leg, orderly=False)

    def receive_eof(self, leg: Leg, now: float) -> None:
        """Take the end of a leg's bytes."""
        self.now = now
        state = self._state
        if state.client is OVER:
            return
        conclusion = self._conclusion
        if leg is self.client:
            state.client_ended = True
            if conclusion.wire is None:
                self._feed.cut()
            if state.client is DISCARDING:
                conclusion.end(Ending.CLOSE)
            elif conclusion.wire is not None:
                conclusion.wire.receive_eof(leg)
            else:
                self._from_client.pass_end()
        elif self._is_beside(leg):
            self._gone(leg, orderly=True)
        elif conclusion.wire is not None:
            conclusion.wire.receive_eof(leg)
        elif state.client is DISCARDING:
            return
        elif state.app_bypassed:
            self._peers.retire_app()
        elif self._inspection is not None and self._from_app.finish():
            return
        elif self._ends_with_app:
            conclusion.end(Ending.CLOSE)
        else:
            conclusion.become_wire(None)
            self._wire_eof(leg)

    def _wire_eof(self, leg: Leg) -> None:
        if self._conclusion.wire is not None:
            self._conclusion.wire.receive_eof(leg)

    def opened(self, leg: Leg, now: float) -> None:
        """Learn that a leg is connected."""
        self.now = now
        leg.open = True
        if leg is self.app:
            self._peers.drop_spare()
        diverted = self._state.diverted
        wire = self._conclusion.wire
        if diverted is not None and diverted.leg is leg:
            self._diversion.give(diverted)
            self._early.send()
        elif wire is not None and wire.peer is leg:
            wire.join()

    def refused(self, leg: Leg, now: float) -> None:
        """Learn that a leg could not be connected: what a handler will not take goes to the app."""
        self.now = now
        if self.fall_back_to_app(leg):
            return
        if leg is self.app and self._peers.use_spare():
            wire = self._conclusion.wire
            if wire is not None and wire.peer is leg:
                wire.peer = self.app
                wire.join()
        else:
            self.lost(leg, now)

    def farewell(self) -> None:
        """Learn that the connection is over, or moved by the shell itself."""
        if self._conclusion.wire is None:
            self._feed.cut_all()
        super().farewell()

    def lost(self, leg: Leg, now: float) -> None:
        """Learn that a leg broke."""
        self.now = now
        conclusion = self._conclusion
        state = self._state
        if state.client is OVER:
            return
        if leg is self.client:
            conclusion.end(Ending.ABORT)
        elif self._is_beside(leg):
            self._gone(leg, orderly=False)
        elif conclusion.wire is not None:
            conclusion.wire.lost(leg)
        elif state.client is DISCARDING:
            return
        elif state.app_bypassed:
            self._peers.retire_app()
        elif self._inspection is not None and self._inspection.paused is not None:
            self._from_app.finish()  # the answer that is held is whole
        else:
            conclusion.end(Ending.ABORT)

    def expired(self, now: float) -> None:
        """A begun head took too long."""
        self.now = now
        self._from_client.expired(now)

    def proceed(self) -> None:
        """Earlier answers are complete (see `diversion.Host`)."""
        self._from_client.proceed()

    def _is_beside(self, leg: Leg) -> bool:
        """Whether a leg is neither the client's nor the app's nor the one that the client is joined with."""
        wire = self._conclusion.wire
        return leg is not self.app and (wire is None or leg is not wire.peer)

    def _gone(self, leg: Leg, *, orderly: bool) -> None:
        """A leg other than the app's is over, or says what it should not."""
        if leg is self._peers.spare:
            self._peers.drop_spare()
        else:
            self._diversion.leg_gone(leg, orderly=orderly)

    # --- what the shell asks ----------------------------------------------------------------------------------------

    def reads(self, leg: Leg) -> bool:
        """Whether the shell should read from this leg now."""
        if self.successor is not None:
            return False
        if self._conclusion.wire is not None:
            return self._conclusion.wire.reads(leg)
        if leg is not self.client:
            is_paused = self._inspection is not None and self._inspection.paused is not None
            return self.client.queued < HIGH_WATER and not is_paused
        state = self._state
        if state.client is not READING:
            return len(state.unread) < self._limits.hold and (
                state.client is not SWITCHING or self._takes(state.answering_leg)
            )
        diverted = state.diverted
        if diverted is None:
            inspection = self._inspection
            is_full = inspection is not None and inspection.kept >= self._limits.hold
            return len(state.awaited) < self._limits.pipelined and not is_full and self._takes(self.app)
        leg = diverted.leg
        return bool(leg.ending) or (leg.queued < HIGH_WATER and diverted.kept_size < self._limits.hold)

    def _takes(self, leg: Leg | None) -> bool:
        """Whether a leg has room for what the client says."""
        return leg is None or bool(leg.ending) or leg.queued < (HIGH_WATER if leg.open else self._limits.hold)

    @property
    def idle(self) -> bool:
        """Whether no exchange is in flight."""
        return self._state.is_idle and self._requests.state == messages.FRESH

    @property
    def is_orphaned(self) -> bool:
        """Whether the connection is idle and the app, whose timeouts end idle ones, has no part in it."""
        return self.idle and not self._peers.app_in_use
