"""The sink behind what sessions are told of requests: a `Note` for each one that is diverted, or shown as a flow.

Flows are wiretaps that want heads only. At the head, `wants` asks the gate (`TapGate`) which of them are told at all,
as for copies; the note is made later. Copies are noted by the sinks that make them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.mirror.events import HEAD, NOTHING, RequestDiverted, RequestHead
from sidestep.engine.mirror.gate import Why
from sidestep.engine.mirror.notes import Note
from sidestep.policy.redaction import redact

if TYPE_CHECKING:
    from sidestep.engine.mirror.events import Event
    from sidestep.engine.mirror.gate import TapGate
    from sidestep.engine.mirror.sink import Offer, Source
    from sidestep.policy.route import Rule


class SessionLog:
    """See the module."""

    __slots__ = ("_chosen", "_gate", "_port", "_source")

    def __init__(self, source: Source, gate: TapGate, *, port: int) -> None:
        self._source = source
        self._gate = gate
        self._port = port
        self._chosen: dict[int, tuple[Rule, ...]] = {}
        """Exchange -> the flows that show it, until its head is consumed."""

    def wants(self, exchange: int, offer: Offer) -> int:
        """Heads that flows show."""
        rules = offer.decision.shown
        if rules:
            rules = self._gate.choose(self._port, rules)
        if not rules:
            return NOTHING
        self._chosen[exchange] = rules
        return HEAD

    def holds(self, exchange: int) -> int:
        """It never wants more than the head."""
        del exchange
        return NOTHING

    def missed(self, exchange: int) -> None:
        """There was no room in the queue, which is the budget's doing."""
        for rule in self._chosen.pop(exchange, ()):
            self._gate.lose(self._port, rule.uid, Why.BUDGET)

    def consume(self, event: Event) -> None:
        """Take an event."""
        notes = self._source.notes
        if isinstance(event, RequestDiverted):
            notes.append(Note(event.rule, event.method, event.target, event.authority, copied=False))
        elif isinstance(event, RequestHead) and self._chosen:
            for rule in self._chosen.pop(event.exchange, ()):
                if self._gate.still(self._port, rule):
                    fields = redact(event.fields)
                    notes.append(Note(rule, event.method, event.target, event.authority, copied=True, fields=fields))
