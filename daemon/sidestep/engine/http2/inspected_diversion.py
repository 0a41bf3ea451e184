"""Diverted streams of an inspected connection: what is held, released and refused.

A request that its body may refuse is held: it gets no link until there is a verdict, or its body exceeds the window.
Meanwhile the client is given window for what it sends, so that it does not stop in the middle. A response that may be
refused is held likewise (`Exchange.response_held`): `ToClient` writes nothing of it.

    held request     --whole, or no rule can block it--> assigned to handler or app
                     --a message of a gRPC call ends--> assigned; of each further message the bytes are kept from the
                     link until it ends (`Exchange.body_held`)
                     --exceeds the window, or too slow--> refused where a policy closes, else assigned
    held response    --whole, no rule can block it, or exceeds the window--> released
    firewall asks    request and response are held likewise, with or without a body, and once they are whole until there
                     is an answer
    refused          403, for gRPC a trailers-only response with PERMISSION_DENIED; a reset if a part of the response
                     went to the client. Who carries the request gets a reset, and what is left of it is dropped
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sidestep.engine.http2.diversion import Diversion
from sidestep.engine.http2.exchange import Exchange
from sidestep.engine.http2.head import status_of
from sidestep.engine.http2.inspected_streams import read_block, text_of
from sidestep.engine.http2.inspected_websocket import InspectedWebSocket
from sidestep.engine.http2.local_replies import refused
from sidestep.engine.inspection.limits import SLOW, WINDOW
from sidestep.engine.inspection.samples import tell
from sidestep.protocols.http2 import TICK, ErrorCode, window_update
from sidestep.protocols.media_types import is_stream

if TYPE_CHECKING:
    from sidestep.engine.http2.head import Head
    from sidestep.engine.http2.samples import Http2Sample
    from sidestep.engine.inspection.gate import Gate
    from sidestep.engine.inspection.judged import Judged
    from sidestep.engine.inspection.limits import InspectionLimits
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block


class InspectedExchange(Exchange):
    """A diverted stream that is judged; see the module. `judged` is None once it is refused."""

    __slots__ = (
        "_limits", "_observer", "held", "is_waiting", "judged", "lasts", "overlong", "released", "sample", "ticks",
        "websocket",
    )  # fmt: skip

    def __init__(
        self, stream: int, head: Head, block: Block, rule: Rule | None, judged: Judged, gate: Gate, *, window: int
    ) -> None:
        super().__init__(stream, head, block, rule, window=window)
        self._limits: InspectionLimits = gate.limits
        self.judged: Judged | None = judged
        self.sample: Http2Sample | None = None
        """None: it is not sampled, or was told."""
        self._observer = gate.observer
        self.held = False
        """The request is held."""
        self.websocket = InspectedWebSocket(judged, gate.limits) if head.is_extended_connect else None
        self.overlong = False
        """The message that has begun exceeds the window, and is not kept."""
        self.ticks = 0
        """How long request or response has been held."""
        self.released = False
        """The client may have a part of the final response."""
        self.lasts = False
        """The response has no length: it is held for a short time only."""
        self.is_waiting = False
        """The response is whole, and held until the firewall has judged it."""

    def add_block(self, block: Block) -> None:
        """As `Exchange.add_block`."""
        super().add_block(block)
        if self.sample is not None:
            self.sample.answers(block)
        judged = self.judged
        if judged is None:
            return
        read_block(judged, block)
        if self.websocket is not None:
            if (status := status_of(block)) >= 200:
                self.body_held = self.websocket.answered(block.fields[1:], status)
                if self.link is not None:
                    self.link.wake(self)
        elif self.has_final_head and judged.refusal is None:
            if block.fields[0][0] == b":status":
                self.ticks = 0
                self.lasts = not any(name == b"content-length" for name, _ in block.fields)
                self.response_held = judged.holds_response and not is_stream(block.fields)
            elif not judged.holds_response:
                self.response_held = False

    def add_response(self, data: bytes) -> None:
        """As `Exchange.add_response`."""
        super().add_response(data)
        if self.sample is not None and self.sample.length is not None:
            self.sample.length += len(data)
        judged = self.judged
        if judged is not None and self.websocket is not None:
            self.websocket.peer_says(data)
        elif judged is not None:
            judged.response_body(data)
            if self.response_size > self._limits.window or not judged.holds_response:
                self.response_held = False

    def end_response(self) -> None:
        """As `Exchange.end_response`."""
        super().end_response()
        judged = self.judged
        if judged is not None and self.websocket is not None:
            self.websocket.peer_ends()
        elif judged is not None:
            judged.response_end()
            self.is_waiting = self.response_held and judged.awaits_response_verdict
            if self.is_waiting:
                return
            self.response_held = False
            judged.firewall_response.let_go()
        self.tell_sample(is_whole=True)

    def tell_sample(self, *, is_whole: bool) -> None:
        """Tell the stream if it is sampled, once."""
        sample, self.sample = self.sample, None
        if sample is not None:
            if not is_whole or sample.status is None:
                sample.length = None
            tell(self._observer, sample)


class InspectedDiversion(Diversion):
    """See the module."""

    __slots__ = ("_gate", "_held")

    def __init__(self, gate: Gate, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._gate = gate
        self._held: dict[Exchange, None] = {}
        """Exchanges that are held, or were."""

    def divert_judged(
        self,
        stream: int,
        head: Head,
        block: Block,
        rule: Rule | None,
        judged: Judged,
        sample: Http2Sample | None = None,
        *,
        ends: bool,
    ) -> None:
        """As `Diversion.divert`, for a stream to which rules apply; `sample` if it is sampled."""
        exchange = InspectedExchange(
            stream, head, block, rule, judged, self._gate, window=self._to_client.initial_window
        )
        exchange.sample = sample
        if not self._admit(exchange, ends=ends):
            return
        judged.firewall_response.call_when_answered(partial(self._response_judged, exchange, judged))
        if ends:
            judged.request_end()
        if judged.refusal is not None:
            self._refuse(exchange, judged)
        elif judged.awaits_firewall or (judged.holds_request and not ends and exchange.websocket is None):
            judged.firewall.call_when_answered(partial(self._firewall_answered, exchange, judged))
            exchange.held = True
            self._held[exchange] = None
        else:
            self._assign(exchange)

    def body(self, exchange: Exchange, data: bytes, *, ends: bool) -> None:
        """As `Diversion.body`."""
        if not isinstance(exchange, InspectedExchange) or exchange.judged is None or exchange.takes_no_more:
            super().body(exchange, data, ends=ends)
            return
        judged = exchange.judged
        if exchange.websocket is not None:
            self._client_says(exchange, judged, exchange.websocket, data, ends=ends)
            return
        judged.request_body(data)
        pending = judged.request_pending
        self._hold_back(exchange, judged, data, pending, ends=ends)
        if ends:
            judged.request_end()
        if judged.refusal is not None:
            if ends:
                exchange.end_request()
            self._refuse(exchange, judged)
            return
        super().body(exchange, data, ends=ends)
        has_message = pending is not None and pending < exchange.body_size
        if exchange.held and (ends or has_message or not judged.holds_request):
            self._release(exchange, judged)

    def _client_says(
        self, exchange: InspectedExchange, judged: Judged, websocket: InspectedWebSocket, data: bytes, *, ends: bool
    ) -> None:
        """As `body`, for a WebSocket."""
        exchange.body_held = websocket.client_says(data)
        if ends:
            websocket.client_ends()
            exchange.body_held = 0
        if judged.refusal is not None:
            if ends:
                exchange.end_request()
            self._refuse(exchange, judged)
            return
        if exchange.body_held and data:
            exchange.room += len(data)
            exchange.prepaid += len(data)
            self._to_client.control(window_update(exchange.stream, len(data)))
        super().body(exchange, data, ends=ends)

    def _hold_back(
        self, exchange: InspectedExchange, judged: Judged, data: bytes, pending: int | None, *, ends: bool
    ) -> None:
        """Keep new data of a request that it may refuse from the link: all of it, or `pending` bytes at its end."""
        exchange.body_held = 0
        if judged.refusal is not None or not judged.holds_request or not (exchange.held or pending is not None):
            return
        if pending is None:
            size = exchange.body_size + len(data)
        else:
            size = pending
            exchange.overlong = exchange.overlong and pending >= len(data)
        if size > self._gate.limits.window and not exchange.overlong:
            exchange.overlong = True
            judged.request_exceeds(WINDOW)
            self._release(exchange, judged)
        elif data and not ends and not exchange.overlong:
            exchange.body_held = pending or 0
            exchange.room += len(data)
            exchange.prepaid += len(data)
            self._to_client.control(window_update(exchange.stream, len(data)))

    def trailers(self, exchange: Exchange, block: Block, *, ends: bool) -> None:
        """As `Diversion.trailers`."""
        if not isinstance(exchange, InspectedExchange) or exchange.judged is None or exchange.takes_no_more:
            super().trailers(exchange, block, ends=ends)
            return
        judged = exchange.judged
        exchange.body_held = 0
        judged.request_trailers(text_of(block.fields))
        judged.request_end()
        if judged.refusal is not None:
            exchange.end_request()
            self._refuse(exchange, judged)
            return
        super().trailers(exchange, block, ends=ends)
        self._release(exchange, judged)

    def _firewall_answered(self, exchange: InspectedExchange, judged: Judged) -> None:
        """The firewall has judged a request that is held, or will not: go on, or refuse it."""
        if self._state.streams.exchanges.get(exchange.stream) is not exchange or exchange.judged is None:
            return
        if judged.refusal is not None:
            self._refuse(exchange, judged)
            return
        pending = judged.request_pending
        if judged.holds_request and not exchange.request_ended:  # a call of gRPC, of which the head alone was judged
            if pending is None or pending >= exchange.body_size:
                return
            exchange.body_held = pending
        self._release(exchange, judged)

    def _response_judged(self, exchange: InspectedExchange, judged: Judged) -> None:
        """The firewall has judged a response, or will not: give the client what is held of it, or refuse it."""
        if self._state.streams.exchanges.get(exchange.stream) is not exchange or exchange.judged is None:
            return
        if judged.refusal is not None:
            self._refuse(exchange, judged)
        elif exchange.is_waiting:
            exchange.is_waiting = False
            judged.firewall_response.let_go()
            exchange.tell_sample(is_whole=True)
            self._let_pass(exchange)
        elif exchange.response_held and not judged.holds_response:
            self._let_pass(exchange)

    def _let_pass(self, exchange: InspectedExchange) -> None:
        """Give the client the response that is held; what follows goes to it as it comes."""
        exchange.response_held = False
        exchange.released = True
        self._held.pop(exchange, None)
        self._to_client.ready(exchange)

    def _release(self, exchange: InspectedExchange, judged: Judged) -> None:
        """Let a held request go on, unless it is refused or over, or the firewall has yet to answer."""
        if judged.awaits_firewall:
            return
        if exchange.held and judged.refusal is None and exchange.stream in self._state.streams.exchanges:
            exchange.held = False
            self._held.pop(exchange, None)
            self._tell(exchange)
            self._assign(exchange)

    def _tell(self, exchange: InspectedExchange) -> None:
        """Tell the mirror what has come of a request that was held."""
        feed, stream = self._feed, exchange.stream
        if not exchange.head.decision.is_told:
            return
        feed.begin(stream, exchange.head, exchange.block, ends=False, diverted=True)
        for piece in exchange.body:
            if stream in feed.requests:
                feed.body(stream, piece, ends=False)
        if exchange.trailers is not None:
            feed.trailers(stream, exchange.trailers, ends=True)
        elif exchange.request_ended and stream in feed.requests:
            feed.body(stream, b"", ends=True)

    def response_progressed(self, exchange: Exchange) -> None:
        """As `Diversion.response_progressed`."""
        if isinstance(exchange, InspectedExchange) and exchange.judged is not None:
            if exchange.judged.refusal is not None:
                self._refuse(exchange, exchange.judged)
                return
            if exchange.response_held:
                self._held[exchange] = None
            elif exchange.has_final_head:
                exchange.released = True
        super().response_progressed(exchange)

    def _refuse(self, exchange: InspectedExchange, judged: Judged) -> None:
        """Answer in the place of whoever would have, or break off the response that has begun."""
        self._held.pop(exchange, None)
        exchange.judged = None
        exchange.held = exchange.response_held = exchange.is_waiting = False
        if exchange.released:
            self.reset(exchange, ErrorCode.CANCEL)
            return
        link, dropped = exchange.link, exchange.drop_response()
        if link is not None:
            link.discarded(dropped)
            link.cancel(exchange, ErrorCode.CANCEL)
        else:
            self._pool(exchange).waiting.pop(exchange, None)
        self._reply(exchange, *refused(exchange, judged))

    def _finish(self, exchange: Exchange, *, cancel: int | None = None) -> None:
        self._held.pop(exchange, None)
        if isinstance(exchange, InspectedExchange):
            if exchange.judged is not None:
                exchange.judged.break_off()
            exchange.tell_sample(is_whole=False)
        super()._finish(exchange, cancel=cancel)

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def wants_time(self) -> bool:
        """As `Diversion.wants_time`."""
        return bool(self._held) or super().wants_time

    def tick(self) -> None:
        """As `Diversion.tick`; ends what was held for too long."""
        super().tick()
        limits = self._gate.limits
        for each in [*self._held]:
            if isinstance(each, InspectedExchange) and each.judged is not None:
                each.ticks += 1
                self._waited(each, each.judged, each.ticks * TICK, limits)

    def _waited(self, exchange: InspectedExchange, judged: Judged, seconds: float, limits: InspectionLimits) -> None:
        """Learn for how long something of an exchange has been held."""
        if exchange.held:
            if seconds >= limits.request_seconds:
                judged.request_exceeds(SLOW)
                if judged.refusal is not None:
                    self._refuse(exchange, judged)
                self._release(exchange, judged)
        elif not exchange.response_held:
            del self._held[exchange]
        elif exchange.lasts and not exchange.is_waiting and seconds > limits.response_seconds:
            self._let_pass(exchange)
