"""The sink of sessions that get a record of every request: one for each exchange, once its answer's head was told.

At the head, `wants` asks the gate (`TapGate`) which of the sessions are told at all, as for copies. The record is made
later, by the `Teller` of the connection.

    waiting   the request's head was consumed; its answer's is yet to come
    told      by the final head of the answer; without a status when nothing more of the exchange will be told, when its
              answer is not heard (HTTP/2: the connection is older than the session), or when WAITING others wait

An exchange that a policy refuses is never offered: the refusal itself is told (`engine.inspection.records`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from msgspec.structs import replace

from sidestep.engine.inspection.records import ExchangeRecord
from sidestep.engine.inspection.sampling import number_of
from sidestep.engine.mirror.events import (
    H2,
    HEAD,
    NOTHING,
    RESPONSE_HEAD,
    Anomaly,
    ConnectionEnd,
    ExchangeCut,
    Gap,
    RequestHead,
    ResponseHead,
)
from sidestep.engine.mirror.gate import Why
from sidestep.protocols.eve_redaction import MAX_URL
from sidestep.protocols.http1 import HTTP_1_0
from sidestep.protocols.http1_response_head import response_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.mirror.events import Event
    from sidestep.engine.mirror.gate import TapGate
    from sidestep.engine.mirror.sink import Offer, Source
    from sidestep.policy.route import Rule

WAITING: Final = 256
"""Exchanges of a connection that wait for their answers."""

_INTEREST: Final = HEAD | RESPONSE_HEAD
_SHOWN: Final = frozenset((b"user-agent", b"x-forwarded-for", b"referer"))
"""Fields of requests that a record shows."""
_MOST: Final = MAX_URL + 1
"""Bytes of each text that are kept: a record shows fewer, and whether there were more."""


class Teller(Protocol):
    """Makes records of one connection."""

    def told(self, record: ExchangeRecord, rules: tuple[Rule, ...]) -> None:
        """Make the record of an exchange, for these sessions."""

    def over(self) -> None:
        """Nothing more of the connection is told."""


class LiveExchanges:
    """See the module. `make_teller` is called once, when there is something to tell."""

    __slots__ = ("_chosen", "_gate", "_make_teller", "_port", "_source", "_teller", "_waiting")

    def __init__(self, source: Source, gate: TapGate, make_teller: Callable[[], Teller], *, port: int) -> None:
        self._source = source
        self._gate = gate
        self._make_teller = make_teller
        self._teller: Teller | None = None
        self._port = port
        self._chosen: dict[int, tuple[Rule, ...]] = {}
        """Exchange -> the sessions that are told of it, until its head is consumed ..."""
        self._waiting: dict[int, tuple[ExchangeRecord, tuple[Rule, ...]]] = {}
        """... and then, with what is known of it, until its answer is."""

    def wants(self, exchange: int, offer: Offer) -> int:
        """The heads of both directions."""
        rules = offer.decision.recorded
        if rules:
            rules = self._gate.choose(self._port, rules)
        if not rules:
            return NOTHING
        self._chosen[exchange] = rules
        return _INTEREST

    def holds(self, exchange: int) -> int:
        """The answer's head, until it was told."""
        return _INTEREST if exchange in self._chosen or exchange in self._waiting else NOTHING

    def missed(self, exchange: int) -> None:
        """There was no room in the queue, which is the budget's doing."""
        for rule in self._chosen.pop(exchange, ()):
            self._gate.lose(self._port, rule.uid, Why.BUDGET)

    def consume(self, event: Event) -> None:
        """Take an event."""
        if not self._chosen and not self._waiting and type(event) is not ConnectionEnd:
            return
        match event:
            case RequestHead():
                self._begin(event)
            case ResponseHead():
                self._answer(event)
            case ExchangeCut():
                self._tell(event.exchange)
            case Gap():
                for exchange in event.exchanges:
                    self._tell(exchange)
            case Anomaly():
                self._tell_all()
            case ConnectionEnd():
                self._tell_all()
                if self._teller is not None:
                    self._teller.over()
            case _:
                pass

    def _begin(self, head: RequestHead) -> None:
        chosen = self._chosen.pop(head.exchange, ())
        rules = tuple(rule for rule in chosen if self._gate.still(self._port, rule))
        if rules:
            self._waiting[head.exchange] = _record(head), rules
            if not head.heard or len(self._waiting) > WAITING:
                self._tell(head.exchange)
        elif chosen:
            self._source.release(head.exchange)

    def _answer(self, head: ResponseHead) -> None:
        found = self._waiting.get(head.exchange)
        if found is not None and not head.is_interim:
            record, rules = found
            answer = response_fields(head.raw) if head.block is None else tuple(head.block.fields)
            self._waiting[head.exchange] = replace(record, status=head.status, answer=answer), rules
            self._tell(head.exchange)

    def _tell_all(self) -> None:
        for exchange in [*self._waiting]:
            self._tell(exchange)

    def _tell(self, exchange: int) -> None:
        found = self._waiting.pop(exchange, None)
        if found is not None:
            self._source.release(exchange)
            if self._teller is None:
                self._teller = self._make_teller()
            self._teller.told(*found)


def _record(head: RequestHead) -> ExchangeRecord:
    """What is known of an exchange from its request; no more of each text than can be shown."""
    is_h2 = head.protocol == H2
    host = head.authority or next((value for name, value in head.fields if name == b"host"), b"")
    http1 = "http/1.0" if head.flags & HTTP_1_0 else "http/1"
    return ExchangeRecord(
        id="",
        protocol=H2 if is_h2 else http1,
        number=number_of(head.exchange) if is_h2 else None,
        stream=head.exchange if is_h2 else 0,
        method=head.method[:_MOST],
        target=head.target[:_MOST],
        host=host[:_MOST],
        fields=[(name, value[:_MOST]) for name, value in head.fields if name in _SHOWN],
    )
