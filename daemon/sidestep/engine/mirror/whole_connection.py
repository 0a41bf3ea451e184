"""Copies of a connection as it is: what the client says, every byte, goes to each global wiretap of the port.

One copy per wiretap and connection, begun before the client says anything, ended when the client has finished or the
connection is over, reset when the client was. What a relay makes of the bytes does not matter here: they may be passed
through, TLS end to end included, or be requests of which some are diverted, or copied once more for filters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.copy import Copy, open_copy
from sidestep.engine.mirror.events import (
    BODY,
    NOTHING,
    WHOLE,
    ConnectionEnd,
    ConnectionStart,
    ExchangeCut,
    Gap,
    RequestData,
    RequestEnd,
)
from sidestep.engine.mirror.notes import Lost, Note, truncated

if TYPE_CHECKING:
    from sidestep.engine.mirror.copy_leg import CopyLeg
    from sidestep.engine.mirror.events import Event
    from sidestep.engine.mirror.ledger import Ledger
    from sidestep.engine.mirror.producer import Mirror
    from sidestep.engine.mirror.sink import Offer, Source
    from sidestep.policy.route import Rule


def copy_whole(mirror: Mirror, rules: Iterable[Rule], ledger: Ledger, *, port: int = 0) -> WholeConnectionCopies:
    """Have a connection copied to these wiretaps, before its first byte."""
    copies = WholeConnectionCopies(mirror, rules, ledger, port=port)
    mirror.add(copies, BODY)
    return copies


class WholeConnectionCopies:
    """A sink; see the module. It owns the legs of its copies."""

    __slots__ = ("_copies", "_ledger", "_port", "_rules", "_source")

    def __init__(self, source: Source, rules: Iterable[Rule], ledger: Ledger, *, port: int) -> None:
        self._source = source
        self._rules = tuple(rules)
        self._ledger = ledger
        self._port = port
        self._copies: dict[CopyLeg, Copy] = {}

    # --- Sink -------------------------------------------------------------------------------------------------------

    def wants(self, exchange: int, offer: Offer) -> int:
        """Requests are of no interest."""
        del exchange, offer
        return NOTHING

    def missed(self, exchange: int) -> None:
        """It never wants a head."""

    def holds(self, exchange: int) -> int:
        """The connection, while a copy takes more."""
        takes = exchange == WHOLE and any(copy.is_open for copy in self._copies.values())
        return BODY if takes else NOTHING

    def consume(self, event: Event) -> None:
        """Take an event."""
        match event:
            case RequestData(exchange=0, data=data):
                for copy in self._copies.values():
                    if not copy.write(data):
                        self._source.notes.append(truncated(copy.rule))
            case ConnectionStart():
                self._begin()
            case RequestEnd(exchange=0) | ConnectionEnd():
                for copy in self._copies.values():
                    copy.finish()
            case ExchangeCut(exchange=0):
                self._abort()
            case Gap(exchanges=exchanges) if WHOLE in exchanges:
                self._truncate()
            case _:
                return
        self._source.release(WHOLE)

    def _begin(self) -> None:
        for rule in self._rules:
            if not self._ledger.gate.still(self._port, rule):
                continue
            copy = open_copy(rule, self._ledger, self, protocol=None, flags=None, size=0)
            if copy is not None:
                self._copies[copy.leg] = copy
                self._source.opening.append(copy.leg)
            else:
                self._source.notes.append(Note(rule, b"", b"", b"", copied=True, lost=Lost.ALL))

    def _abort(self) -> None:
        for copy in self._copies.values():
            if copy.is_cut_short:
                self._source.notes.append(truncated(copy.rule))
            copy.close(Ending.ABORT)

    def _truncate(self) -> None:
        for copy in self._copies.values():
            if copy.is_open:
                self._source.notes.append(truncated(copy.rule))
                copy.close(Ending.ABORT)

    # --- the handlers (LegOwner) ------------------------------------------------------------------------------------

    def opened(self, leg: CopyLeg) -> None:
        """The shell has the connection: what is queued will be written."""

    def receive(self, leg: CopyLeg, data: bytes) -> None:
        """What a handler says is dropped."""

    def receive_eof(self, leg: CopyLeg) -> None:
        """The handler has finished speaking."""
        self._copies[leg].receive_eof()

    def drained(self, leg: CopyLeg) -> None:
        """The handler has taken everything that was written."""
        self._copies[leg].drained()

    def lost(self, leg: CopyLeg) -> None:
        """The handler refused, or broke."""
        copy = self._copies[leg]
        if copy.lose():
            self._source.notes.append(truncated(copy.rule))
        self._source.release(WHOLE)

    def reads(self, leg: CopyLeg) -> bool:
        """What a handler says is read and dropped."""
        del leg
        return True
