"""One connection as one capture gets it: frames (`protocols.capture_frames`) on a leg of its own, bounded and lossy.

States

    open      what is said is written as frames; the leg's queue is the only buffer, and the `Ledger` bounds it
    closing   everything is said; the leg ends once its queue is written
    over      the leg is over: refused, broken, written, or there was no room to begin

Invariants

  * Bytes that find no room in the ledger are counted for their side. The count stands in the stream, as LOST, before
    the next bytes of that side, or before its end. A leg that is lost before everything is sent counts as a connection
    that is not captured: nothing that was said is missing uncounted.
  * Bytes are written or left out call by call, as a whole, so that frames of HTTP/2 stay whole.
  * Times never run backwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.copy_leg import CopyLeg, LegOwner
from sidestep.protocols.capture_frames import HEAD_SIZE, MAX_DATA, FrameKind, encode, encode_loss
from sidestep.protocols.eve_redaction import Redaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.mirror.ledger import Ledger
    from sidestep.policy.route import Rule

RESERVE: Final = 256
"""Bytes of a capture's share that stay free for losses and ends."""


class CaptureFacts(msgspec.Struct, frozen=True):
    """What captures are told of a connection. `now` and the times of events are monotonic seconds; `epoch` is added to
    them to get seconds since 1970."""

    server: str
    server_port: int
    epoch: float
    now: Callable[[], float]
    comment: str = ""
    """What is known of its TLS."""
    redaction: Redaction = msgspec.field(default_factory=Redaction)


class CaptureWriter:
    """See the module. The ledger knows it by its leg."""

    __slots__ = ("_facts", "_last", "_ledger", "_lost", "is_open", "is_over", "leg", "lost", "rule")

    def __init__(self, rule: Rule, owner: LegOwner, ledger: Ledger, facts: CaptureFacts) -> None:
        self.rule = rule
        self.leg = CopyLeg(rule, owner, None)
        self._ledger = ledger
        self._facts = facts
        self._last = 0
        self._lost = {True: 0, False: 0}
        """Bytes that are not told yet, by whether the client sent them."""
        self.lost = 0
        """Bytes that found no room."""
        self.is_open = True
        self.is_over = False
        ledger.enter(rule.uid, self.leg)
        start = f"{facts.server} {facts.server_port}".encode()
        self.leg.write(encode(FrameKind.START, self._time(None), start))
        if facts.comment:
            self.comment(facts.comment)

    def _time(self, at: float | None) -> int:
        seconds = self._facts.now() if at is None else at
        self._last = max(self._last, int((seconds + self._facts.epoch) * 1e9))
        return self._last

    def data(self, data: bytes, *, from_client: bool, at: float | None = None) -> None:
        """Bytes of one side; `at` is when they came, None for now."""
        if not self.is_open or not data:
            return
        heads = HEAD_SIZE * (2 + len(data) // MAX_DATA)
        if self._ledger.has_room(self.rule.uid, self.leg, len(data) + heads + RESERVE):
            self._tell_loss(from_client=from_client)
            self.leg.write(encode(FrameKind.DATA, self._time(at), data, from_client=from_client))
        else:
            self.lose(len(data), from_client=from_client)

    def lose(self, count: int, *, from_client: bool) -> None:
        """So many bytes of one side are not captured."""
        if self.is_open:
            self._lost[from_client] += count
            self.lost += count

    def comment(self, text: str) -> None:
        """Say something about what follows; left out if there is no room."""
        data = text.encode()[:MAX_DATA]
        if self.is_open and self._ledger.has_room(self.rule.uid, self.leg, len(data) + HEAD_SIZE + RESERVE):
            self.leg.write(encode(FrameKind.COMMENT, self._time(None), data))

    def _tell_loss(self, *, from_client: bool) -> None:
        count = self._lost[from_client]
        if count:
            self._lost[from_client] = 0
            self.leg.write(encode_loss(count, self._time(None), from_client=from_client))

    def finished(self, *, from_client: bool) -> None:
        """One side has finished sending."""
        if self.is_open:
            self._tell_loss(from_client=from_client)
            self.leg.write(encode(FrameKind.FINISHED, self._time(None), from_client=from_client))

    def reset(self, *, from_client: bool) -> None:
        """The connection was reset, or nothing more of it is captured."""
        if self.is_open:
            for side in (True, False):
                self._tell_loss(from_client=side)
            self.leg.write(encode(FrameKind.RESET, self._time(None), from_client=from_client))
            self.close()

    def close(self) -> None:
        """Everything is said."""
        if not self.is_open:
            return
        for side in (True, False):
            self._tell_loss(from_client=side)
        self.is_open = False
        self.leg.end(Ending.CLOSE)
        if not self.leg.queued:
            self.lose_leg()

    def drained(self) -> None:
        """Everything is written."""
        if not self.is_open:
            self.lose_leg()

    @property
    def is_cut(self) -> bool:
        """Whether something that was said has not been sent."""
        return not self.is_over and (self.leg.queued > 0 or any(self._lost.values()))

    def lose_leg(self) -> None:
        """The leg is over."""
        self.is_open = False
        if not self.is_over:
            self.is_over = True
            self._ledger.leave(self.rule.uid, self.leg)
            if not self.leg.ending:
                self.leg.end(Ending.ABORT)
