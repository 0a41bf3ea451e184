"""The sink of a port's captures: exchanges that match a filter, or their heads, as frames for the command line.

At the head, `wants` asks the gate (`TapGate`) which captures get the exchange at all; those that are held back do not,
and are counted there. What is wanted depends on the capture (`model.intercept.Snap`): heads of both directions, or
bodies, too. Later, each capture has a `CaptureWriter` for the connection, made at its first exchange.

    HTTP/1   exchanges follow each other as they came; those that do not match are missing, without a gap
    HTTP/2   streams of the connection, in a connection of our own frames (`capture_messages`)
    after a switch of protocols (WebSocket)   the bytes of both sides as they are; of heads: nothing more

    an exchange that is cut   HTTP/2: its stream is reset in the capture. HTTP/1: the capture of the connection ends
    a finding of inspection   a comment before what comes next on the connection
    a gap in the queue        its bytes count as lost on both sides, and its exchanges are cut

Captures see connections that begin after them: header blocks of HTTP/2 can only be decoded from the first one on, and
so only mirrors that were made with captures have this sink.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidestep.engine.mirror import capture_messages as messages
from sidestep.engine.mirror.capture_writer import CaptureFacts, CaptureWriter
from sidestep.engine.mirror.events import (
    BODY,
    H2,
    HEAD,
    NOTHING,
    RESPONSE,
    RESPONSE_HEAD,
    Answerer,
    ConnectionEnd,
    ExchangeCut,
    Finding,
    Gap,
    ProtocolSwitched,
    RequestData,
    RequestEnd,
    RequestHead,
    ResponseData,
    ResponseEnd,
    ResponseHead,
    WholeResponse,
)
from sidestep.engine.mirror.gate import Why
from sidestep.model.intercept import Snap

if TYPE_CHECKING:
    from sidestep.engine.mirror.copy_leg import CopyLeg
    from sidestep.engine.mirror.events import Event
    from sidestep.engine.mirror.ledger import Ledger
    from sidestep.engine.mirror.sink import Offer, Source
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block

HEADS = HEAD | RESPONSE_HEAD
ALL = HEAD | BODY | RESPONSE
FINDINGS = 4
"""Findings of inspection that are kept for captures of which nothing has come yet."""


@dataclass(slots=True)
class _Exchange:
    """One exchange that is captured."""

    writers: tuple[CaptureWriter, ...]
    is_h2: bool
    request: bool
    """Whether more of the request is to come ..."""
    response: bool = True
    """... and of the response."""
    switched: bool = False


class Captures:
    """See the module. It owns the legs of its writers."""

    __slots__ = (
        "_chosen",
        "_facts",
        "_findings",
        "_gate",
        "_ledger",
        "_legs",
        "_open",
        "_port",
        "_source",
        "_spoken",
        "_writers",
    )

    def __init__(self, source: Source, ledger: Ledger, facts: CaptureFacts, *, port: int) -> None:
        self._source = source
        self._ledger = ledger
        self._gate = ledger.gate
        self._facts = facts
        self._port = port
        self._chosen: dict[int, tuple[Rule, ...]] = {}
        """Exchange -> the captures that get it, until its head is consumed."""
        self._open: dict[int, _Exchange] = {}
        self._writers: dict[str, CaptureWriter] = {}
        """Capture -> its writer, also when that is over: a connection is captured once."""
        self._legs: dict[CopyLeg, CaptureWriter] = {}
        self._findings: tuple[str, ...] = ()
        """What inspection has found last."""
        self._spoken: set[str] = set()
        """Captures whose connection has begun in HTTP/2."""

    # --- at the head ------------------------------------------------------------------------------------------------

    def wants(self, exchange: int, offer: Offer) -> int:
        """Hot path: see the module."""
        rules = offer.decision.captured
        if rules:
            rules = self._gate.choose(self._port, rules)
        if not rules:
            return NOTHING
        self._chosen[exchange] = rules
        return _interest(rules)

    def missed(self, exchange: int) -> None:
        """No room in the queue: that is the budget's doing."""
        for rule in self._chosen.pop(exchange, ()):
            self._gate.lose(self._port, rule.uid, Why.BUDGET)

    def holds(self, exchange: int) -> int:
        """What is still wanted, while a writer takes it."""
        chosen = self._chosen.get(exchange)
        if chosen is not None:
            return _interest(chosen)
        found = self._open.get(exchange)
        if found is None:
            return NOTHING
        return _interest(tuple(each.rule for each in found.writers if each.is_open))

    # --- later ------------------------------------------------------------------------------------------------------

    def consume(self, event: Event) -> None:
        """Take an event."""
        match event:
            case RequestHead():
                self._begin(event)
            case WholeResponse():
                self._answer(event)
                self._end(event.exchange, None, from_client=False)
            case ResponseHead():
                self._answer(event)
            case RequestData():
                self._data(event.exchange, event.data, from_client=True)
            case ResponseData():
                self._data(event.exchange, event.data, from_client=False)
            case RequestEnd():
                self._end(event.exchange, event.trailers, from_client=True)
            case ResponseEnd():
                self._end(event.exchange, event.trailers, from_client=False)
            case ProtocolSwitched():
                self._switch(event.exchange)
            case ExchangeCut():
                self._cut(event.exchange)
            case Gap():
                self._gap(event)
            case Finding():
                self._found(event.text)
            case ConnectionEnd():
                self._over()
            case _:
                pass

    def _begin(self, head: RequestHead) -> None:
        chosen = self._chosen.pop(head.exchange, ())
        found = [self._writer(rule) for rule in chosen if self._gate.still(self._port, rule)]
        writers = [writer for writer in found if writer is not None and writer.is_open]
        if not writers:
            self._source.release(head.exchange)
            return
        is_h2 = head.protocol == H2
        self._open[head.exchange] = _Exchange(tuple(writers), is_h2, request=not head.ends)
        for writer in writers:
            redaction = self._facts.redaction if writer.rule.capture is Snap.HEADS else None
            if is_h2:
                self._speak(writer)
                assert head.block is not None  # noqa: S101 - heads of HTTP/2 have one
                ends = head.ends or redaction is not None
                said = messages.http2_head(head.exchange, head.block.fields, redaction, ends=ends)
            else:
                said = head.raw if redaction is None else messages.http1_head(head.raw, redaction)
            writer.data(said, from_client=True, at=head.at)

    def _speak(self, writer: CaptureWriter) -> None:
        """Begin to speak HTTP/2."""
        if writer.rule.uid not in self._spoken:
            self._spoken.add(writer.rule.uid)
            writer.data(messages.CLIENT_PREFACE, from_client=True)
            writer.data(messages.SERVER_PREFACE, from_client=False)

    def _answer(self, head: ResponseHead) -> None:
        found = self._open.get(head.exchange)
        for writer in found.writers if found is not None else ():
            redaction = self._facts.redaction if writer.rule.capture is Snap.HEADS else None
            if head.by is not Answerer.APP:
                writer.comment(f"answered by {_ANSWERERS[head.by]}, not by the app")
            if head.block is not None:
                said = messages.http2_head(head.exchange, head.block.fields, redaction, ends=False)
            else:
                said = head.raw if redaction is None else messages.http1_head(head.raw, redaction, status=head.status)
            writer.data(said, from_client=False, at=head.at)

    def _data(self, exchange: int, data: bytes, *, from_client: bool) -> None:
        found = self._open.get(exchange)
        if found is None:
            return
        said = messages.http2_data(exchange, data) if found.is_h2 else data
        for writer in found.writers:
            if writer.rule.capture is Snap.ALL:
                writer.data(said, from_client=from_client)

    def _end(self, exchange: int, trailers: Block | None, *, from_client: bool) -> None:
        found = self._open.get(exchange)
        if found is None:
            return
        for writer in found.writers:
            heads = writer.rule.capture is Snap.HEADS
            if found.is_h2 and not (heads and from_client):
                redaction = self._facts.redaction if heads else None
                said = messages.http2_end(exchange)
                if trailers is not None:
                    said = messages.http2_head(exchange, trailers.fields, redaction, ends=True)
                writer.data(said, from_client=from_client)
            elif found.switched and not found.is_h2:
                writer.finished(from_client=from_client)
        if from_client:
            found.request = False
        else:
            found.response = False
        is_short = all(writer.rule.capture is Snap.HEADS for writer in found.writers)
        if not found.response and (is_short or not found.request):
            del self._open[exchange]

    def _switch(self, exchange: int) -> None:
        found = self._open.get(exchange)
        if found is not None:
            found.request = found.response = found.switched = True

    def _cut(self, exchange: int) -> None:
        found = self._open.pop(exchange, None)
        for writer in found.writers if found is not None else ():
            if found is not None and found.is_h2:
                writer.data(messages.http2_cut(exchange), from_client=False)
            else:
                writer.reset(from_client=True)

    def _gap(self, gap: Gap) -> None:
        for exchange in gap.exchanges:
            found = self._open.get(exchange)
            for writer in found.writers if found is not None else ():
                for side in (True, False):
                    writer.lose(max(1, gap.size), from_client=side)
            self._cut(exchange)

    def _found(self, text: str) -> None:
        """Say it before what comes next, also to captures of which nothing has come yet."""
        self._findings = (*self._findings, text)[-FINDINGS:]
        for writer in self._writers.values():
            writer.comment(text)

    def _over(self) -> None:
        for writer in self._writers.values():
            if writer.is_open:
                writer.finished(from_client=True)
                writer.finished(from_client=False)
                writer.close()

    def _writer(self, rule: Rule) -> CaptureWriter | None:
        writer = self._writers.get(rule.uid)
        if writer is None:
            if not self._ledger.admits(rule.uid, 0):
                self._gate.lose(self._port, rule.uid, Why.ROOM)
                return None
            writer = self._writers[rule.uid] = CaptureWriter(rule, self, self._ledger, self._facts)
            self._legs[writer.leg] = writer
            for text in self._findings:
                writer.comment(text)
            self._source.opening.append(writer.leg)
        return writer

    # --- the streams (LegOwner) -------------------------------------------------------------------------------------

    def opened(self, leg: CopyLeg) -> None:
        """The shell has the connection: what is queued will be written."""

    def receive(self, leg: CopyLeg, data: bytes) -> None:
        """Who captures has nothing to say."""

    def receive_eof(self, leg: CopyLeg) -> None:
        """Nor does its end matter."""

    def drained(self, leg: CopyLeg) -> None:
        """Everything queued was written."""
        self._legs[leg].drained()

    def lost(self, leg: CopyLeg) -> None:
        """Who captures is gone."""
        writer = self._legs[leg]
        if writer.is_cut:
            self._gate.lose(self._port, writer.rule.uid, Why.ROOM)
        writer.lose_leg()
        for exchange, found in [*self._open.items()]:
            if writer in found.writers:
                self._source.release(exchange)

    def reads(self, leg: CopyLeg) -> bool:
        """What is said is read and dropped."""
        del leg
        return True


_ANSWERERS = {Answerer.HANDLER: "the handler of an intercept", Answerer.SIDESTEP: "Sidestep"}


def _interest(rules: tuple[Rule, ...]) -> int:
    interest = NOTHING
    for rule in rules:
        interest |= ALL if rule.capture is Snap.ALL else HEADS
    return interest
