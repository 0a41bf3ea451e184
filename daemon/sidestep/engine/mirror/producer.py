"""The producer's side of the mirror: what a relay and the shell call, and all that they know of it.

One `Mirror` per client connection. It asks the sinks at each head what they want, remembers that for the exchange, and
queues events. Sinks and queue are made when they are first needed, so a connection that nobody listens to has neither.

A relay tests one attribute before it does anything for the mirror:

    requests    exchanges whose body, or its size, is wanted -> BODY, SIZES
    responses   exchanges whose response is wanted -> RESPONSE_HEAD, RESPONSE_BODY, SIZES
    whole       what is wanted of the connection as it is, whatever it carries (BODY, RESPONSE_BODY)
    observer    who is told of all bytes of the connection at once (`sink.ByteObserver`); None: nobody

An exchange leaves them when its direction is whole, when it is cut, when it falls into a gap, and when no sink holds it
any more (`release`), so that a relay does not go on queueing what nobody takes.

HTTP/1 (`Http1Feed`) and HTTP/2 (`Http2Feed`) relays tell their mirror through the methods here; the bytes of a whole
connection are told by the shell, which sees what was really read from and written to the client.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidestep.engine.mirror.events import (
    BODY,
    NOTHING,
    RESPONSE,
    RESPONSE_BODY,
    SIZES,
    WHOLE,
    Anomaly,
    ConnectionEnd,
    ConnectionStart,
    ExchangeCut,
    Finding,
    RequestData,
    RequestDiverted,
    RequestEnd,
    ResponseData,
    ResponseEnd,
)
from sidestep.engine.mirror.queue import OVERFULL, EventQueue

if TYPE_CHECKING:
    from sidestep.engine.mirror.copy_leg import CopyLeg
    from sidestep.engine.mirror.events import Event, WholeResponse
    from sidestep.engine.mirror.notes import Note
    from sidestep.engine.mirror.sink import ByteObserver, Offer, Sink, Waiting
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block

MakeSinks = Callable[["Mirror"], "tuple[Sink, ...]"]
"""Makes the sinks of a connection, when something is first offered to them."""


def _no_sinks(mirror: Mirror) -> tuple[Sink, ...]:
    del mirror
    return ()


def _always() -> bool:
    return True


class Mirror:
    """See the module. `may_catch_up`: whether sinks may consume while a client waits (see `queue`)."""

    __slots__ = (
        "_has_ended",
        "_is_made",
        "_make",
        "_may_catch_up",
        "_sinks",
        "_sizes",
        "hears_responses",
        "notes",
        "observer",
        "opening",
        "queue",
        "requests",
        "responses",
        "waiting",
        "whole",
    )

    def __init__(
        self,
        make: MakeSinks = _no_sinks,
        may_catch_up: Callable[[], bool] = _always,
        *,
        hears_responses: bool = False,
    ) -> None:
        self._make = make
        self._may_catch_up = may_catch_up
        self._is_made = False
        self._has_ended = False
        self.hears_responses = hears_responses
        """A sink may want responses. An HTTP/2 relay must know from the first byte: see `http2.app_responses`."""
        self._sinks: tuple[Sink, ...] = ()
        self.queue: EventQueue | None = None
        """What waits to be consumed; None until the first event."""
        self.requests: dict[int, int] = {}
        self.responses: dict[int, int] = {}
        self._sizes: dict[int, list[int]] = {}
        """Exchange of which SIZES are wanted -> bytes so far of the request's body, and of the response's."""
        self.waiting: Waiting | None = None
        """The sink that is to be called while it waits."""
        self.whole = NOTHING
        self.observer: ByteObserver | None = None
        self.opening: list[CopyLeg] = []
        self.notes: list[Note] = []

    @property
    def is_listening(self) -> bool:
        """Whether bytes of the connection are still wanted, so that the shell may not move them past us."""
        observer = self.observer
        return bool(self.whole or self.requests or self.responses) or (observer is not None and observer.is_open)

    @property
    def hears_server(self) -> bool:
        """Whether what the client is sent is wanted."""
        return self.observer is not None or bool(self.whole & RESPONSE_BODY)

    # --- sinks ------------------------------------------------------------------------------------------------------

    def add(self, sink: Sink, interest: int) -> None:
        """Add a sink that wants the whole connection (BODY, RESPONSE_BODY), before its first byte."""
        self._make_sinks()
        self._sinks = (*self._sinks, sink)
        self.whole |= interest
        self._make_queue().put_always(ConnectionStart())

    def offer(self, exchange: int, offer: Offer, *, heard: bool = False) -> int:
        """What the sinks want of a new exchange. When it is anything, `begin` follows.

        `heard`: its answer can be told although `hears_responses` is False.

        Hot path while wiretaps are held back: a head with a valid tally is counted there, and nobody is asked.
        """
        tally = offer.tally
        if tally is not None and tally.version == tally.gate.version:
            tally.count += 1
            return NOTHING
        interest = NOTHING
        try:
            for sink in self._sinks if self._is_made else self._make_sinks():
                interest |= sink.wants(exchange, offer)
        except Exception as error:  # noqa: BLE001 - as in `queue`: the client is served all the same
            self.fail(error)
            return NOTHING
        return interest if heard or self.hears_responses else interest & ~(RESPONSE | SIZES)

    def release(self, exchange: int) -> None:
        """A sink wants no more of an exchange, or less: see whether another does."""
        interest = NOTHING
        for sink in self._sinks:
            interest |= sink.holds(exchange)
        if exchange == WHOLE:
            self.whole &= interest
            return
        if not interest & SIZES:
            self._sizes.pop(exchange, None)
        if exchange in self.requests:
            if interest & (BODY | SIZES):
                self.requests[exchange] &= interest
            else:
                del self.requests[exchange]
        if exchange in self.responses:
            if interest & RESPONSE:
                self.responses[exchange] &= interest | ~(RESPONSE | SIZES)
            else:
                del self.responses[exchange]

    def _make_sinks(self) -> tuple[Sink, ...]:
        if not self._is_made:
            self._is_made = True
            self._sinks = (*self._make(self), *self._sinks)
        return self._sinks

    # --- the queue --------------------------------------------------------------------------------------------------

    @property
    def events(self) -> bool:
        """Whether events wait to be consumed."""
        return self.queue is not None and bool(self.queue.events)

    @property
    def is_full(self) -> bool:
        """Whether the next event has no room yet."""
        return self.queue is not None and self.queue.is_full

    def run(self, most: int = sys.maxsize) -> None:
        """Have at most so many events consumed. Raises what a sink raises."""
        if self.queue is not None:
            self.queue.run(most)

    def catch_up(self) -> None:
        """Have all events consumed now, because later exchanges may have the numbers of earlier ones."""
        if self.queue is not None:
            self.queue.catch_up()

    def close(self) -> None:
        """Mirror nothing more of this connection: no sink is asked or told anything."""
        self._stop()
        self._make_queue().close()

    def fail(self, error: Exception) -> None:
        """As `close`, for an error of a sink that was met while a client is served: the next `run` raises it."""
        self._stop()
        self._make_queue().fail(error)

    def _stop(self) -> None:
        self._has_ended = self._is_made = True
        self._sinks = ()
        self._forget_all()
        self.waiting = None

    def _forget_all(self) -> None:
        self.requests.clear()
        self.responses.clear()
        self._sizes.clear()
        self.whole = NOTHING

    def _make_queue(self) -> EventQueue:
        if self.queue is None:
            self.queue = EventQueue(self._consume, self._may_catch_up)
        return self.queue

    def _consume(self, event: Event) -> None:
        for sink in self._sinks:
            sink.consume(event)

    def _put(self, event: Event, size: int, exchange: int) -> bool:
        queue = self.queue
        if queue is None:
            queue = self._make_queue()
        return queue.put(event, size, exchange)

    def tell(self, event: Event, exchange: int, size: int = 0) -> None:
        """Queue an event of an exchange that is wanted. One that finds no room ends the exchange for all sinks."""
        if not self._put(event, size, exchange):
            self._forget(exchange)

    def _forget(self, exchange: int) -> None:
        self.requests.pop(exchange, None)
        self.responses.pop(exchange, None)
        self._sizes.pop(exchange, None)
        if exchange == WHOLE:
            self.whole = NOTHING

    # --- what relays tell -------------------------------------------------------------------------------------------

    def begin(self, event: Event, exchange: int, interest: int, *, size: int, ends: bool) -> None:
        """The head of an exchange that is wanted; `size` are its bytes, `ends`: it has no body."""
        if not self._put(event, size, exchange):
            try:
                for sink in self._sinks:
                    sink.missed(exchange)
            except Exception as error:  # noqa: BLE001 - as in `offer`
                self.fail(error)
            return
        if interest & SIZES:
            self._sizes[exchange] = [0, 0]
        if interest & (BODY | SIZES) and not ends:
            self.requests[exchange] = interest & (BODY | SIZES)
        if interest & RESPONSE:
            self.responses[exchange] = interest & (RESPONSE | SIZES)

    def request_data(self, exchange: int, data: bytes) -> None:
        """Bytes of a body that is wanted, or whose size is."""
        wanted = self.requests.get(exchange, NOTHING)
        if wanted & SIZES and (sizes := self._sizes.get(exchange)) is not None:
            sizes[0] += len(data)
        if wanted & BODY:
            self.tell(RequestData(exchange, data), exchange, len(data))

    def request_end(self, exchange: int, trailers: Block | None = None, size: int = 0) -> None:
        """The body that is wanted is whole; `size` are the bytes of the trailers."""
        if self.requests.pop(exchange, NOTHING) & BODY:
            self.tell(RequestEnd(exchange, trailers), exchange, size)

    def response_data(self, exchange: int, data: bytes) -> None:
        """Bytes of a response, told if they are wanted."""
        wanted = self.responses.get(exchange, NOTHING)
        if wanted & SIZES and (sizes := self._sizes.get(exchange)) is not None:
            sizes[1] += len(data)
        if wanted & RESPONSE_BODY:
            self.tell(ResponseData(exchange, data), exchange, len(data))

    def response_end(self, exchange: int, trailers: Block | None = None, size: int = 0, *, at: float) -> None:
        """A response is whole, told if it is wanted; `size` are the bytes of the trailers."""
        if self.responses.pop(exchange, NOTHING):
            self.tell(ResponseEnd(exchange, trailers, at, self._sizes.pop(exchange, None)), exchange, size)

    def answered(self, event: WholeResponse, size: int, kept: int) -> None:
        """A response has come whole, with a body of `size` bytes that nobody wants; the event keeps `kept` bytes alive.
        The queue is not full.

        Hot path.
        """
        exchange = event.exchange
        if self.responses.pop(exchange, NOTHING):
            sizes = self._sizes.pop(exchange, None)
            if sizes is not None:
                sizes[1] += size
                event.sizes = sizes
            queue = self.queue
            if queue is None:
                queue = self._make_queue()
            queue.note(event, kept)

    def cut(self, exchange: int, *, at: float = 0.0) -> None:
        """Nothing more of this exchange will come. Nothing is told when it was whole."""
        wanted = self.requests.get(exchange, NOTHING) | self.responses.get(exchange, NOTHING)
        if wanted:
            sizes = self._sizes.get(exchange)
            self._forget(exchange)
            self.tell(ExchangeCut(exchange, at, sizes), exchange)

    def anomaly(self, reason: str) -> None:
        """Something cannot be read any more; a stable, short reason."""
        if self._sinks:
            self._make_queue().put_always(Anomaly(reason))

    def found(self, text: str) -> None:
        """Inspection has found something."""
        if self._sinks or self._make_sinks():
            self._make_queue().put_always(Finding(text), len(text), most=OVERFULL)

    def diverted(self, exchange: int, rule: Rule, method: bytes, target: bytes, authority: bytes) -> None:
        """A request is given to a handler: sessions are always told of that."""
        if self._sinks or self._make_sinks():
            event = RequestDiverted(exchange, rule, method, target, authority)
            self._make_queue().put_always(event, len(method) + len(target) + len(authority), most=OVERFULL)

    def end(self) -> None:
        """The connection is over for the mirror. Called twice is the same as once."""
        self._forget_all()
        if self.observer is not None:
            self.observer.over()
        if self._sinks and not self._has_ended:
            self._has_ended = True
            self._make_queue().put_always(ConnectionEnd())

    # --- the whole connection ---------------------------------------------------------------------------------------

    def client_data(self, data: bytes) -> None:
        """The client has said something."""
        if self.observer is not None:
            self.observer.said(data, from_client=True)
        if self.whole & BODY:
            self.tell(RequestData(WHOLE, data), WHOLE, len(data))

    def client_end(self) -> None:
        """The client has finished."""
        if self.observer is not None:
            self.observer.finished(from_client=True)
        if self.whole & BODY:
            self.whole &= ~BODY
            self.tell(RequestEnd(WHOLE), WHOLE)

    def server_data(self, data: bytes) -> None:
        """The client was sent something."""
        if self.observer is not None:
            self.observer.said(data, from_client=False)
        if self.whole & RESPONSE_BODY:
            self.tell(ResponseData(WHOLE, data), WHOLE, len(data))

    def server_end(self) -> None:
        """The client was sent the end."""
        if self.observer is not None:
            self.observer.finished(from_client=False)
        if self.whole & RESPONSE_BODY:
            self.whole &= ~RESPONSE_BODY
            self.tell(ResponseEnd(WHOLE), WHOLE)

    def client_lost(self) -> None:
        """The client's connection broke."""
        if self.observer is not None:
            self.observer.over()
        if self.whole:
            self._forget(WHOLE)
            self.tell(ExchangeCut(WHOLE), WHOLE)
