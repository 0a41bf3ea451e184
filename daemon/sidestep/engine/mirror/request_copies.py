"""Copies of HTTP/1 requests: each on a connection of its own to its wiretap's handler (`Copy`).

Events come in the order of the requests. Of each exchange, `_open` holds the copies that want more:

    RequestHead        the copies are made, and complete at once if the head is the whole request
    RequestData        goes to each of them; one that finds no room is truncated
    RequestEnd         completes them; after a switch the client has finished
    ProtocolSwitched   from here on they are copies of raw bytes
    ExchangeCut, Gap   those that are not whole are truncated

A copy outlives its exchange until its handler has answered; `_copies` finds it by its leg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.copy import Copy, open_copy
from sidestep.engine.mirror.notes import truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidestep.engine.mirror.copy_leg import CopyLeg
    from sidestep.engine.mirror.events import RequestHead
    from sidestep.engine.mirror.ledger import Ledger
    from sidestep.engine.mirror.sink import Source
    from sidestep.policy.route import Rule
    from sidestep.protocols.hpack import Block


class RequestCopies:
    """The copies of one HTTP/1 connection. It owns their legs."""

    __slots__ = ("_copies", "_ledger", "_open", "_source")

    def __init__(self, source: Source, ledger: Ledger) -> None:
        self._source = source
        self._ledger = ledger
        self._copies: dict[CopyLeg, Copy] = {}
        self._open: dict[int, tuple[Copy, ...]] = {}

    # --- events -----------------------------------------------------------------------------------------------------

    def begin(self, head: RequestHead, rules: Sequence[Rule]) -> list[Rule]:
        """Copy a request to these wiretaps; those for which there was no room are returned."""
        copies, left_out = [], []
        for rule in rules:
            copy = self._make(rule, head)
            if copy is None:
                left_out.append(rule)
                continue
            copy.leg.write(head.raw)
            if head.ends:
                copy.complete()
            copies.append(copy)
        if copies and not head.ends:
            self._open[head.exchange] = tuple(copies)
        return left_out

    def holds(self, exchange: int) -> bool:
        """Whether a copy of this exchange wants more."""
        return exchange in self._open

    def data(self, exchange: int, data: bytes) -> None:
        """Bytes of a request."""
        copies = self._open.get(exchange, ())
        for copy in copies:
            if not copy.write(data):
                self._source.notes.append(truncated(copy.rule))
        self._look(exchange, copies)

    def end(self, exchange: int, trailers: Block | None) -> None:
        """The request is whole, or the client has finished."""
        del trailers  # they were among the data
        for copy in self._open.pop(exchange, ()):
            if copy.flags is None:
                copy.finish()
            else:
                copy.complete()

    def switched(self, exchange: int) -> None:
        """The exchange goes on in another protocol."""
        for copy in self._open.get(exchange, ()):
            copy.go_raw()

    def cut(self, exchange: int, *, lost: bool) -> None:
        """Nothing more of the exchange will come; `lost`: there was more, which found no room."""
        for copy in self._open.pop(exchange, ()):
            if copy.is_open:
                # After a switch nobody can tell whether the client had said all.
                if lost or copy.flags is not None or copy.is_cut_short:
                    self._source.notes.append(truncated(copy.rule))
                copy.close(Ending.ABORT)

    def over(self) -> None:
        """The client's connection is over: what is still open are raw copies, whose client has finished."""
        for exchange in [*self._open]:
            for copy in self._open.pop(exchange):
                copy.finish()

    def _look(self, exchange: int, copies: tuple[Copy, ...]) -> None:
        """Want no more when no copy takes it."""
        if copies and not any(copy.is_open for copy in copies):
            del self._open[exchange]
            self._source.release(exchange)

    # --- the handlers (LegOwner) ------------------------------------------------------------------------------------

    def opened(self, leg: CopyLeg) -> None:
        """The shell has the connection: what is queued will be written."""

    def receive(self, leg: CopyLeg, data: bytes) -> None:
        """Take bytes of a handler."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.receive(data)
            self._forget(copy)

    def receive_eof(self, leg: CopyLeg) -> None:
        """Take the end of a handler's bytes."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.receive_eof()
            self._forget(copy)

    def drained(self, leg: CopyLeg) -> None:
        """A handler has taken everything that was written."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.drained()
            self._forget(copy)

    def lost(self, leg: CopyLeg) -> None:
        """A handler refused, or broke."""
        copy = self._copies.get(leg)
        if copy is not None:
            if copy.lose():
                self._source.notes.append(truncated(copy.rule))
            self._forget(copy)
            for exchange, copies in [*self._open.items()]:
                if copy in copies:
                    self._look(exchange, copies)

    def reads(self, leg: CopyLeg) -> bool:
        """A handler's answer is read and dropped."""
        del leg
        return True

    def _forget(self, copy: Copy) -> None:
        if copy.is_over:
            self._copies.pop(copy.leg, None)

    def _make(self, rule: Rule, head: RequestHead) -> Copy | None:
        for over in [each for each in self._copies.values() if each.is_over]:
            del self._copies[over.leg]
        if len(self._copies) >= self._ledger.limits.per_connection:
            return None
        copy = open_copy(rule, self._ledger, self, protocol=None, flags=head.flags, size=len(head.raw))
        if copy is not None:
            self._copies[copy.leg] = copy
            self._source.opening.append(copy.leg)
        return copy
