"""One copy that has a connection of its own to its wiretap's handler: an HTTP/1 request, or raw bytes of a client.

    open     what the client says is written to the leg as well; the leg's queue is the only buffer
    sent     the request is whole (the leg ends with AWAIT: the handler has a bounded time to answer, because a server
             that takes an early end for a client that gave up must not be disturbed), or the client has finished
             (FINISH)
    over     the handler answered or left after that; or the copy was truncated: its leg is reset, so that nobody takes
             it for whole

A copy that finds no room in the `Ledger` is dropped before its first byte, or truncated later.
"""

from __future__ import annotations

import enum

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.copy_leg import CopyLeg, LegOwner
from sidestep.engine.mirror.ledger import Ledger
from sidestep.policy.route import Rule
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1_responses import ResponseReader


class _State(enum.IntEnum):
    OPEN = 0
    SENT = 1
    OVER = 2


class Copy:
    """See the module. `flags` are those of the request that is copied, None for raw bytes."""

    __slots__ = ("_answered", "_ledger", "_reader", "_state", "flags", "leg", "rule")

    def __init__(self, leg: CopyLeg, rule: Rule, ledger: Ledger, flags: int | None) -> None:
        self.leg = leg
        self.rule = rule
        self.flags = flags
        self._ledger = ledger
        self._answered = False
        self._reader = ResponseReader() if flags is not None else None
        self._state = _State.OPEN

    @property
    def is_open(self) -> bool:
        """Whether more is to be copied."""
        return self._state is _State.OPEN

    @property
    def is_cut_short(self) -> bool:
        """Whether its end now would keep bytes from the handler."""
        return self._state is not _State.OVER and self.leg.queued > 0

    def lose(self) -> bool:
        """The handler refused, left or broke; True when it had not got everything."""
        had_all = self.is_sent or self._state is _State.OVER
        self.close(Ending.ABORT)
        return not had_all

    @property
    def is_over(self) -> bool:
        """Whether nothing more goes in or out."""
        return self._state is _State.OVER

    @property
    def is_sent(self) -> bool:
        """Whether it is whole and written; only the handler's answer is awaited."""
        return self._state is _State.SENT and not self.leg.queued

    def write(self, data: bytes) -> bool:
        """Copy bytes; False when there is no room, which ends the copy."""
        if self._state is not _State.OPEN:
            return True
        if self._ledger.has_room(self.rule.uid, self.leg, len(data)):
            self.leg.write(data)
            return True
        self.close(Ending.ABORT)
        return False

    def go_raw(self) -> None:
        """The connection speaks another protocol now; its bytes are copied as they are."""
        if self._state is not _State.OVER:
            self._state = _State.OPEN
            self.flags = self._reader = None

    def complete(self) -> None:
        """The request is whole."""
        if self._state is _State.OPEN:
            self._state = _State.SENT
            if self._answered:
                self._part()
            else:
                self.leg.end(Ending.AWAIT)

    def finish(self) -> None:
        """The client has finished (a raw copy)."""
        if self._state is _State.OPEN:
            if self.leg.open or self.leg.out:
                self._state = _State.SENT
                self.leg.end(Ending.FINISH)
            else:
                self.close(Ending.ABORT)  # not a byte, and not connected: nobody misses it

    def close(self, ending: Ending) -> None:
        """The copy is over."""
        if self._state is not _State.OVER:
            self._state = _State.OVER
            self.leg.end(ending)
            self._ledger.leave(self.rule.uid, self.leg)

    def receive(self, data: bytes) -> None:
        """Discard what the handler says; after the whole response to a whole request the copy is over."""
        reader, flags = self._reader, self.flags
        if reader is None or flags is None or self._state is _State.OVER:
            return
        at = 0
        while at < len(data) or reader.event == messages.FINAL:
            at = reader.read(data, at, flags)
            event = reader.event
            if event in (messages.BROKEN, messages.SWITCH):
                self.leg.answered = event == messages.SWITCH
                self._reader = None
                return
            if event == messages.COMPLETE:
                self.leg.answered = True
                self._reader = None
                self._answered = True
                if self._state is _State.SENT:
                    self._part()
                return

    def receive_eof(self) -> None:
        """The handler has finished speaking; it may go on listening until the copy is whole."""
        self._reader = None
        if self._state is _State.SENT:
            self._part()

    def _part(self) -> None:
        """Nothing is awaited: the copy is over once it is written."""
        if self.leg.queued:
            self.leg.end(Ending.CLOSE)
        else:
            self.close(Ending.CLOSE)

    def drained(self) -> None:
        """Everything is written."""
        if self._state is _State.SENT and self.leg.ending is Ending.CLOSE:
            self.close(Ending.CLOSE)


def open_copy(
    rule: Rule, ledger: Ledger, owner: LegOwner, *, protocol: str | None, flags: int | None, size: int
) -> Copy | None:
    """A copy on a new leg, with room for its first `size` bytes; None when there is none."""
    if not ledger.admits(rule.uid, size):
        return None
    leg = CopyLeg(rule, owner, protocol)
    ledger.enter(rule.uid, leg)
    return Copy(leg, rule, ledger, flags)
