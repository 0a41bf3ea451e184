"""Copies for wiretaps: bounded, lossy, and of no consequence to anybody else.

A *copy* is one tapped HTTP/1 request, or the client's bytes of a whole connection, on a connection of its own to the
wiretap's handler: a leg of role TAP. (HTTP/2: `http2_taps`, streams of one connection.) Its states:

    open     what the client says is written to the leg as well; the leg's queue is the only buffer
    sent     the request is whole (leg ends with AWAIT: the handler has a bounded time to answer, so that a server which
             takes an early end for a client that gave up is not disturbed), or the client has finished (FINISH)
    over     the handler answered or left after that; or the copy was truncated: its leg is reset, so that nobody takes
             it for whole

Invariants: nothing of a tap enters `reads` of another leg, or `done`; a copy that finds no room is dropped (before its
first byte) or truncated, and said to be in `Relay.diverted`. Room is what `Ledger` gives: bytes of one copy, bytes and
number of all copies of one wiretap, number of all copies of the process. One wiretap's hung handler takes no room from
another's, and all hung handlers together not the memory that serves the app. What waits to be copied (`deferred`) takes
no room yet. Before anything is noted `Ledger.gate` is asked whether the copy is to be made at all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sidestep.engine.memory_budget import COPIES, Budget
from sidestep.engine.mirror.gate import TapGate
from sidestep.engine.relay import CopyLeg, Diverted, Ending, Leg, Lost
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import SWITCHES
from sidestep.protocols.http1_responses import ResponseReader

if TYPE_CHECKING:
    from sidestep.engine.http1.routing import RoutedRequest
    from sidestep.engine.relay import Relay
    from sidestep.policy.route import Rule


@dataclass(frozen=True, slots=True)
class TapLimits:
    """Bounds of wiretaps in one pod proxy."""

    copy: int = 1024 * 1024
    """Bytes waiting for the handler in one copy (design, section 4)."""
    tap: int = 4 * 1024 * 1024
    """Bytes waiting in all copies of one wiretap."""
    together: int = COPIES
    """The same of all wiretaps (`engine.memory_budget`)."""
    copies: int = 256
    """Copies of one wiretap at once, those whose handler has yet to answer included."""
    per_connection: int = 64
    """The same of one client connection, of all its wiretaps."""
    process: int = 1024
    """Copies of all wiretaps at once: each may hold a descriptor."""


class Holder(Protocol):
    """Something in which bytes wait for a tap's handler: a leg, a stream."""

    @property
    def queued(self) -> int:
        """How many bytes."""


class Ledger:
    """What all copies of a process hold. One per pod proxy.

    Queues are emptied by the shell, which tells nobody; so per wiretap an upper bound is kept, and the truth is summed
    up when that leaves no room.
    """

    __slots__ = ("_bounds", "_count", "_holders", "budget", "gate", "limits")

    def __init__(
        self, limits: TapLimits | None = None, gate: TapGate | None = None, budget: Budget | None = None
    ) -> None:
        self.limits = limits or TapLimits()
        self.gate = gate or TapGate(0.0)
        self.budget = budget or Budget()
        """What diverted streams hold: it goes wherever the ledger goes."""
        self._holders: dict[str, dict[Holder, None]] = {}
        self._bounds: dict[str, int] = {}
        self._count = 0

    @property
    def count(self) -> int:
        """Copies at present."""
        return self._count

    def admits(self, uid: str, size: int) -> bool:
        """Whether this wiretap may have one holder more, with so many bytes."""
        limits = self.limits
        if size > limits.copy:
            return False
        if len(self._holders.get(uid, ())) < limits.copies and self._count < limits.process and self._takes(uid, size):
            return True
        self.gate.fill(uid)
        return False

    def enter(self, uid: str, holder: Holder) -> None:
        """Take up a new holder of this wiretap."""
        self._holders.setdefault(uid, {})[holder] = None
        self._count += 1

    def leave(self, uid: str, holder: Holder) -> None:
        """A holder is over; leaving twice is the same as once."""
        holders = self._holders.get(uid)
        if holders is None or holder not in holders:
            return
        del holders[holder]
        self._count -= 1
        self.gate.empty(uid)
        if not holders:
            del self._holders[uid]
            self._bounds.pop(uid, None)

    def has_room(self, uid: str, holder: Holder, size: int) -> bool:
        """Whether `holder` may queue so many bytes more; then they count."""
        return not self.gate.cuts and holder.queued + size <= self.limits.copy and self._takes(uid, size)

    def _takes(self, uid: str, size: int) -> bool:
        bounds = self._bounds
        if not self._fits(uid, size):
            for each in bounds:
                bounds[each] = sum(holder.queued for holder in self._holders.get(each, ()))
            if not self._fits(uid, size):
                return False
        bounds[uid] = bounds.get(uid, 0) + size
        return True

    def _fits(self, uid: str, size: int) -> bool:
        """Whether this wiretap stays within its own bound, and within what all of them leave free."""
        bound = self._bounds.get(uid, 0) + size
        return bound <= self.limits.tap and bound <= self.limits.together - sum(self._bounds.values()) - size


class _State(enum.IntEnum):
    OPEN = 0
    SENT = 1
    OVER = 2


class Copy:
    """One copy; see the module. `flags` are those of the request copied, None for raw bytes."""

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


class Taps:
    """The copies of the requests of one HTTP/1 connection.

    The engine queues what happens to a request (`Relay.deferred`), and its copies are written later, in the same order.
    Only `copying` is decided at once: whether the bytes of the request are wanted. Attributes: first the producer's
    state (`_undecided` to `_received`), then the consumer's (`_copies` to `_whole`).
    """

    __slots__ = (
        "_copies",
        "_current",
        "_gate",
        "_ledger",
        "_made",
        "_make",
        "_port",
        "_received",
        "_relay",
        "_undecided",
        "_whole",
        "copying",
    )

    def __init__(self, relay: Relay, ledger: Ledger, make: MakeLeg, *, port: int) -> None:
        self._relay = relay
        self._ledger = ledger
        self._gate = ledger.gate
        self._port = port
        self._make = make
        self._undecided = False
        """The request was received whole and may yet switch to another protocol."""
        self.copying = False
        """The request being received is copied."""
        self._received = 0
        """Requests so far."""
        self._copies: dict[Leg, Copy] = {}
        self._current: tuple[Copy, ...] = ()
        """Copies of the request being copied."""
        self._made = 0
        """Requests so far."""
        self._whole = False
        """The request being copied is whole."""

    # --- the request ------------------------------------------------------------------------------------------------

    def begin(self, request: RoutedRequest, head: bytes) -> None:
        """A request whose head has come is copied to those taps of its decision that are not held back."""
        rules = self._gate.choose(self._port, request.decision.taps)
        self.copying = not all(rule.heads_only for rule in rules)
        self._undecided = self.copying and bool(request.flags & SWITCHES)
        if rules:
            self._received += 1
            self._relay.deferred.put(len(head), self._begin, request, head, rules)

    def whole(self, request: RoutedRequest, head: bytes) -> bool:
        """As `begin`, for a request that is its head and asks for no other protocol. False: no room to queue it."""
        gate = self._gate
        rules = request.decision.taps
        if gate.holds:
            tally = request.tally
            if tally is None or tally.version != gate.version:
                tally = request.tally = gate.tally(self._port, rules)
            if tally is not None:
                tally.count += 1
                return True
        deferred = self._relay.deferred
        if deferred.is_full:
            return False
        rules = gate.choose(self._port, rules)
        if not rules:
            return True
        self._received += 1
        self._undecided = False
        deferred.note(len(head), self._copy_whole, request, head, rules)
        return True

    def body(self, data: bytes) -> None:
        """Bytes of its body, framing included."""
        self._relay.deferred.put(len(data), self._body, data)

    def sent(self) -> None:
        """It is whole. If it may be answered by another protocol, `switched` or the next `cut` tells."""
        self.copying = False
        self._relay.deferred.put(0, self._sent)

    def switched(self) -> tuple[Copy, ...]:
        """The connection speaks another protocol now: the copies that go on, raw."""
        self._relay.deferred.catch_up()
        self.copying = self._undecided = False
        copies, self._current = self._current, ()
        for copy in copies:
            copy.go_raw()
        return copies

    def cut(self) -> None:
        """Nothing more of the current request will be copied: what is not whole is truncated."""
        if self.copying or self._undecided:
            self.copying = self._undecided = False
            self._relay.deferred.put(0, self._cut)

    # --- its copies, later ------------------------------------------------------------------------------------------

    def _copy_whole(self, request: RoutedRequest, head: bytes, rules: tuple[Rule, ...]) -> None:
        self._begin(request, head, rules)
        self._sent()

    def _begin(self, request: RoutedRequest, head: bytes, rules: tuple[Rule, ...]) -> None:
        self._cut()
        self._made += 1
        self._whole = False
        copies = []
        for rule in rules:
            if not self._gate.still(self._port, rule):
                continue
            lost = Lost.NOTHING
            if not rule.heads_only:
                copy = self._open(rule, request.flags, len(head))
                if copy is None:
                    lost = Lost.ALL
                else:
                    copy.leg.write(head)
                    copies.append(copy)
            self._tell(rule, request, lost)
        self._current = tuple(copies)
        self._look()

    def _look(self) -> None:
        """Want no more bytes when no copy takes them."""
        if self._made == self._received and not any(copy.is_open for copy in self._current):
            self.copying = False

    def _body(self, data: bytes) -> None:
        for copy in self._current:
            if not copy.write(data):
                self._relay.diverted.append(truncated(copy.rule))
        self._look()

    def _sent(self) -> None:
        self._whole = True
        for copy in self._current:
            if copy.flags is not None and not copy.flags & SWITCHES:
                copy.complete()
        if not any(copy.is_open for copy in self._current):
            self._current = ()

    def _cut(self) -> None:
        copies, self._current = self._current, ()
        for copy in copies:
            if self._whole:
                copy.complete()
            elif copy.is_open:
                copy.close(Ending.ABORT)
                self._relay.diverted.append(truncated(copy.rule))

    # --- the handlers -----------------------------------------------------------------------------------------------

    def receive(self, leg: Leg, data: bytes) -> None:
        """Take bytes of a handler."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.receive(data)
            self._forget(copy)

    def receive_eof(self, leg: Leg) -> None:
        """Take the end of a handler's bytes."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.receive_eof()
            self._forget(copy)

    def drained(self, leg: Leg) -> None:
        """A handler has taken everything that was written."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.drained()
            self._forget(copy)

    def lost(self, leg: Leg) -> None:
        """A handler refused, or broke."""
        copy = self._copies.get(leg)
        if copy is not None:
            if not copy.is_sent and not copy.is_over:
                self._relay.diverted.append(truncated(copy.rule))
            copy.close(Ending.ABORT)
            self._forget(copy)

    def _forget(self, copy: Copy) -> None:
        if copy.is_over:
            self._copies.pop(copy.leg, None)

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(self, rule: Rule, flags: int, size: int) -> Copy | None:
        for over in [each for each in self._copies.values() if each.is_over]:
            del self._copies[over.leg]
        if len(self._copies) >= self._ledger.limits.per_connection:
            return None
        copy = open_copy(rule, self._ledger, self._make, flags=flags, size=size)
        if copy is not None:
            self._copies[copy.leg] = copy
        return copy

    def _tell(self, rule: Rule, request: RoutedRequest, lost: Lost) -> None:
        self._relay.diverted.append(
            Diverted(
                rule,
                request.method,
                request.target,
                request.authority,
                copied=True,
                lost=lost,
                fields=request.fields if rule.heads_only else (),
            )
        )


class MakeLeg(Protocol):
    """Adds a leg to a relay and asks for its connection."""

    def __call__(self, rule: Rule) -> CopyLeg:
        """A new leg of role TAP."""


def open_copy(rule: Rule, ledger: Ledger, make: MakeLeg, *, flags: int | None, size: int) -> Copy | None:
    """A copy with room for its first `size` bytes, None when there is none."""
    if not ledger.admits(rule.uid, size):
        return None
    leg = make(rule)
    ledger.enter(rule.uid, leg)
    return Copy(leg, rule, ledger, flags)


def truncated(rule: Rule) -> Diverted:
    """The note of a copy that ends before its original."""
    return Diverted(rule, b"", b"", b"", copied=True, lost=Lost.REST)
