"""The sink of a port's filtered wiretaps: which requests are copied, and to whom.

At the head, `wants` asks the gate (`TapGate`) which of the wiretaps that match get a copy at all: those with a dead
handler, without room, or without budget do not, and are counted there. While all of them are held back a head that was
met before has a `Tally`, and costs a comparison and an addition: nobody is asked (`Mirror.offer`).

Later, a `RequestHead` makes the copies (HTTP/1: `RequestCopies`, HTTP/2: `StreamCopies`) and a note for each wiretap.
After a connection went on in HTTP/2 (h2c) both kinds of copies may live side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.mirror.captures import Captures
from sidestep.engine.mirror.events import (
    BODY,
    H2,
    HEAD,
    NOTHING,
    ConnectionEnd,
    ExchangeCut,
    Gap,
    ProtocolSwitched,
    RequestData,
    RequestEnd,
    RequestHead,
)
from sidestep.engine.mirror.gate import Why
from sidestep.engine.mirror.live_exchanges import LiveExchanges
from sidestep.engine.mirror.notes import Lost, Note
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.mirror.request_copies import RequestCopies
from sidestep.engine.mirror.session_log import SessionLog
from sidestep.engine.mirror.stream_copies import StreamCopies

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.mirror.capture_writer import CaptureFacts
    from sidestep.engine.mirror.events import Event
    from sidestep.engine.mirror.ledger import Ledger
    from sidestep.engine.mirror.live_exchanges import Teller
    from sidestep.engine.mirror.sink import Offer, Sink, Source
    from sidestep.policy.route import Rule


def wiretap_mirror(
    ledger: Ledger,
    *,
    port: int,
    captured: CaptureFacts | None = None,
    teller: Callable[[], Teller] | None = None,
    tells: bool = False,
) -> Mirror:
    """The mirror of a connection to a port (its number): what it has to tell goes to the port's sessions.

    `captured` is what captures of requests are told of the connection; None where there is none when it begins.
    `teller` makes the records of sessions that want one of every request; None: there never are such sessions. `tells`:
    when the connection begins there is a wiretap of some kind, so that answers are heard.
    """
    gate = ledger.gate

    def sinks(mirror: Mirror) -> tuple[Sink, ...]:
        log = SessionLog(mirror, gate, port=port)
        made: tuple[Sink, ...] = (log, Wiretaps(mirror, ledger, log, port=port))
        if teller is not None:
            made = (*made, LiveExchanges(mirror, gate, teller, port=port))
        return made if captured is None else (*made, Captures(mirror, ledger, captured, port=port))

    return Mirror(sinks, lambda: not gate.cuts, hears_responses=captured is not None or tells)


class Wiretaps:
    """See the module."""

    __slots__ = ("_chosen", "_gate", "_ledger", "_log", "_parts", "_port", "_requests", "_source", "_streams")

    def __init__(self, source: Source, ledger: Ledger, log: SessionLog, *, port: int) -> None:
        self._source = source
        self._ledger = ledger
        self._log = log
        """It consumes each event before this sink does."""
        self._gate = ledger.gate
        self._port = port
        self._chosen: dict[int, tuple[Rule, ...]] = {}
        """Exchange -> the wiretaps that get it, until its head is consumed."""
        self._requests: RequestCopies | None = None
        self._streams: StreamCopies | None = None
        self._parts: tuple[RequestCopies | StreamCopies, ...] = ()

    # --- at the head ------------------------------------------------------------------------------------------------

    def wants(self, exchange: int, offer: Offer) -> int:
        """Hot path: see the module."""
        rules = offer.decision.copied
        gate = self._gate
        if rules and gate.holds:
            tally = gate.tally(self._port, rules)
            if tally is not None:
                tally.count += 1
                decision = offer.decision
                if not (decision.shown or decision.captured or decision.recorded):
                    offer.tally = tally  # nobody else is to be asked
                return NOTHING
            rules = gate.choose(self._port, rules)
        if not rules:
            return NOTHING
        self._chosen[exchange] = rules
        return HEAD | BODY | self._log.expect(exchange)

    def missed(self, exchange: int) -> None:
        """No room in the queue: that is the budget's doing (`wiretap_mirror`)."""
        for rule in self._chosen.pop(exchange, ()):
            self._gate.lose(self._port, rule.uid, Why.BUDGET)

    def holds(self, exchange: int) -> int:
        """The body, while a copy takes more of it, or is yet to be made."""
        if exchange in self._chosen or any(part.holds(exchange) for part in self._parts):
            return BODY
        return NOTHING

    # --- later ------------------------------------------------------------------------------------------------------

    def consume(self, event: Event) -> None:
        """Take an event. Those of exchanges that are shown, and not copied, are many."""
        if not self._chosen and not self._parts:
            return
        kind = type(event)
        if kind is RequestHead:
            self._begin(event)  # type: ignore[arg-type]
        elif kind is RequestData:
            for part in self._parts:
                part.data(event.exchange, event.data)  # type: ignore[union-attr]
        elif kind is RequestEnd:
            for part in self._parts:
                part.end(event.exchange, event.trailers)  # type: ignore[union-attr]
        else:
            self._consume_rarer(event)

    def _consume_rarer(self, event: Event) -> None:
        match event:
            case ExchangeCut():
                for part in self._parts:
                    part.cut(event.exchange, lost=False)
            case ProtocolSwitched():
                if self._requests is not None:
                    self._requests.switched(event.exchange)
            case Gap():
                for part in self._parts:
                    for exchange in event.exchanges:
                        part.cut(exchange, lost=True)
            case ConnectionEnd():
                for part in self._parts:
                    part.over()
            case _:
                pass

    def _begin(self, head: RequestHead) -> None:
        chosen = self._chosen.pop(head.exchange, ())
        if not chosen:
            return
        rules = [rule for rule in chosen if self._gate.still(self._port, rule)]
        left_out = self._part(head.protocol).begin(head, rules) if rules else []
        for rule in rules:
            lost = Lost.ALL if rule in left_out else Lost.NOTHING
            note = Note(rule, head.method, head.target, head.authority, copied=True, lost=lost)
            self._log.copied(head.exchange, note)
        if not head.ends and len(left_out) == len(rules):
            self._source.release(head.exchange)

    def _part(self, protocol: str) -> RequestCopies | StreamCopies:
        if protocol == H2:
            if self._streams is None:
                self._streams = StreamCopies(self._source, self._ledger)
                self._parts = (*self._parts, self._streams)
            return self._streams
        if self._requests is None:
            self._requests = RequestCopies(self._source, self._ledger)
            self._parts = (*self._parts, self._requests)
        return self._requests
