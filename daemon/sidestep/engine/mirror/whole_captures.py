"""Captures of connections as they are: the decrypted bytes of both sides, whatever they carry.

They are of captures without a filter that want everything (`Snap.ALL`). One `CaptureWriter` for each capture and
connection, from the first byte on. Where the queue has lost bytes the capture of the connection ends, because nobody
knows which side's they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.mirror.capture_writer import CaptureFacts, CaptureWriter
from sidestep.engine.mirror.events import (
    BODY,
    NOTHING,
    RESPONSE_BODY,
    WHOLE,
    ConnectionEnd,
    ConnectionStart,
    ExchangeCut,
    Finding,
    Gap,
    RequestData,
    RequestEnd,
    ResponseData,
    ResponseEnd,
)
from sidestep.engine.mirror.gate import Why

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidestep.engine.mirror.copy_leg import CopyLeg
    from sidestep.engine.mirror.events import Event
    from sidestep.engine.mirror.ledger import Ledger
    from sidestep.engine.mirror.producer import Mirror
    from sidestep.engine.mirror.sink import Offer, Source
    from sidestep.policy.route import Rule


def capture_whole(mirror: Mirror, rules: Iterable[Rule], ledger: Ledger, facts: CaptureFacts, *, port: int = 0) -> None:
    """Have a connection captured as it is, before its first byte."""
    mirror.add(WholeCaptures(mirror, rules, ledger, facts, port=port), BODY | RESPONSE_BODY)


class WholeCaptures:
    """A sink; see the module. It owns the legs of its writers."""

    __slots__ = ("_client_ended", "_facts", "_ledger", "_port", "_rules", "_source", "_writers")

    def __init__(
        self, source: Source, rules: Iterable[Rule], ledger: Ledger, facts: CaptureFacts, *, port: int
    ) -> None:
        self._source = source
        self._rules = tuple(rules)
        self._ledger = ledger
        self._facts = facts
        self._port = port
        self._writers: dict[CopyLeg, CaptureWriter] = {}
        self._client_ended = False
        """The client has finished sending: what breaks its connection later is no reset of what it said."""

    # --- Sink -------------------------------------------------------------------------------------------------------

    def wants(self, exchange: int, offer: Offer) -> int:
        """Requests are of no interest."""
        del exchange, offer
        return NOTHING

    def missed(self, exchange: int) -> None:
        """It never wants a head."""

    def holds(self, exchange: int) -> int:
        """The connection, while a writer takes more."""
        takes = exchange == WHOLE and any(writer.is_open for writer in self._writers.values())
        return BODY | RESPONSE_BODY if takes else NOTHING

    def consume(self, event: Event) -> None:
        """Take an event."""
        writers = [*self._writers.values()]
        match event:
            case RequestData(exchange=0) | ResponseData(exchange=0):
                for writer in writers:
                    writer.data(event.data, from_client=isinstance(event, RequestData))
                return
            case ConnectionStart():
                self._begin()
            case Finding():
                self._found(event.text)
                return
            case RequestEnd(exchange=0) | ResponseEnd(exchange=0):
                self._client_ended = self._client_ended or isinstance(event, RequestEnd)
                for writer in writers:
                    writer.finished(from_client=isinstance(event, RequestEnd))
                return
            case ExchangeCut(exchange=0):
                for writer in writers:
                    if self._client_ended:
                        writer.finished(from_client=False)
                        writer.close()
                    writer.reset(from_client=True)
            case Gap(exchanges=exchanges) if WHOLE in exchanges:
                for writer in writers:
                    writer.lose(max(1, event.size), from_client=True)
                    writer.comment("the rest of this connection is not captured: its events found no room")
                    writer.reset(from_client=False)
            case ConnectionEnd():
                for writer in writers:
                    writer.close()
            case _:
                return
        self._source.release(WHOLE)

    def _found(self, text: str) -> None:
        """Say what inspection has found before what comes next."""
        for writer in self._writers.values():
            writer.comment(text)

    def _begin(self) -> None:
        for rule in self._rules:
            if not self._ledger.gate.still(self._port, rule):
                continue
            if not self._ledger.admits(rule.uid, 0):
                self._ledger.gate.lose(self._port, rule.uid, Why.ROOM)
                continue
            writer = CaptureWriter(rule, self, self._ledger, self._facts)
            self._writers[writer.leg] = writer
            self._source.opening.append(writer.leg)

    # --- the streams (LegOwner) -------------------------------------------------------------------------------------

    def opened(self, leg: CopyLeg) -> None:
        """The shell has the connection: what is queued will be written."""

    def receive(self, leg: CopyLeg, data: bytes) -> None:
        """Who captures has nothing to say."""

    def receive_eof(self, leg: CopyLeg) -> None:
        """Nor does its end matter."""

    def drained(self, leg: CopyLeg) -> None:
        """Everything queued was written."""
        self._writers[leg].drained()

    def lost(self, leg: CopyLeg) -> None:
        """Who captures is gone."""
        writer = self._writers[leg]
        if writer.is_cut:
            self._ledger.gate.lose(self._port, writer.rule.uid, Why.ROOM)
        writer.lose_leg()
        self._source.release(WHOLE)

    def reads(self, leg: CopyLeg) -> bool:
        """What is said is read and dropped."""
        del leg
        return True
