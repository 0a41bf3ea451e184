"""A connection of a port with global wiretaps: what the client says, every byte, goes to each of them as it is.

A relay around the relay that serves the connection. One copy per wiretap and connection, begun even before the client
says anything, ended when the client has finished or the connection is over, reset when the client was. Whatever is done
to a copy is deferred. What the inner relay makes of the bytes does not matter here: a wire, TLS end to end included, or
requests of which some are diverted or copied once more by filters.

`wired` is kept from the shell while a copy is alive or about to be, because the shell would move the bytes past us;
once the last one is over it shows. Nothing of this is paid for on ports without a global wiretap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sidestep.engine.mirror.copies import Copy, Ledger, open_copy, truncated
from sidestep.engine.relay import CopyLeg, Diverted, Ending, Leg, Lost, Relay
from sidestep.policy.route import Rule


def _inner(name: str) -> Any:
    """An attribute that is the inner relay's."""

    def get(self: TappedRelay) -> Any:
        return getattr(self.inner, name)

    def put(self: TappedRelay, value: Any) -> None:
        setattr(self.inner, name, value)

    return property(get, put)


class TappedRelay(Relay):
    """See the module. Make it before the first byte is given to `inner`."""

    __slots__ = ("_began_as", "_copies", "_copying", "_port", "inner")

    anomaly = _inner("anomaly")
    app = _inner("app")
    client = _inner("client")
    deadline = _inner("deadline")
    deferred = _inner("deferred")
    diverted = _inner("diverted")
    done = _inner("done")
    drain = _inner("drain")
    legs = _inner("legs")
    opening = _inner("opening")
    protocol = _inner("protocol")

    def __init__(self, inner: Relay, rules: Iterable[Rule], ledger: Ledger, *, port: int = 0) -> None:
        self.inner = inner
        self._port = port
        self.successor = None
        self._began_as = inner.protocol
        self._copies: dict[Leg, Copy] = {}
        self._copying = True
        """There is, or will be, a copy that wants more."""
        inner.deferred.put(0, self._begin, tuple(rules), ledger)

    def _begin(self, rules: tuple[Rule, ...], ledger: Ledger) -> None:
        for rule in rules:
            if not ledger.gate.still(self._port, rule):
                continue
            copy = open_copy(rule, ledger, self._make, flags=None, size=0)
            if copy is not None:
                self._copies[copy.leg] = copy
            else:
                self.inner.diverted.append(Diverted(rule, b"", b"", b"", copied=True, lost=Lost.ALL))
        self._look()

    def _look(self) -> None:
        """See whether anything is still to be copied."""
        self._copying = any(copy.is_open for copy in self._copies.values())

    def _make(self, rule: Rule) -> CopyLeg:
        leg = CopyLeg(rule, self, self._began_as)
        self.inner.legs.append(leg)
        self.inner.opening.append(leg)
        return leg

    @property
    def wired(self) -> tuple[Leg, Leg] | None:
        """As Relay.wired, once no copy is alive."""
        return None if self._copying or self.inner.deferred.calls else self.inner.wired

    @wired.setter
    def wired(self, value: tuple[Leg, Leg] | None) -> None:
        self.inner.wired = value

    @property
    def idle(self) -> bool:
        """Whether no exchange is in flight."""
        return self.inner.idle

    @property
    def left(self) -> bool:
        """Whether it is idle and nobody but us would ever end it."""
        return self.inner.left

    def passes(self, leg: Leg, data: bytes) -> Leg | None:
        """Hot path: as Relay.passes."""
        inner = self.inner
        copying = self._copying and leg is inner.client
        if copying and inner.deferred.is_full:
            return None
        to = inner.passes(leg, data)
        if to is not None and copying:
            inner.deferred.note(len(data), self._copy, data)
        return to

    def receive(self, leg: Leg, data: bytes, now: float) -> None:
        """Take bytes from a leg."""
        if leg is self.inner.client:
            if self._copying:
                self.inner.deferred.put(len(data), self._copy, data)
        elif leg in self._copies:
            return  # what a handler says to a copy is discarded
        self.inner.receive(leg, data, now)
        if self.inner.successor is not None:
            self.inner = self.inner.successor

    def receive_eof(self, leg: Leg, now: float) -> None:
        """Take the end of a leg's bytes."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.receive_eof()
            return
        if leg is self.inner.client:
            self.inner.deferred.put(0, self._finish)
        self.inner.receive_eof(leg, now)

    def opened(self, leg: Leg, now: float) -> None:
        """Learn that a leg is connected."""
        if leg in self._copies:
            leg.open = True
        else:
            self.inner.opened(leg, now)

    def refused(self, leg: Leg, now: float) -> None:
        """Learn that a leg could not be connected."""
        if leg in self._copies:
            self.lost(leg, now)
        else:
            self.inner.refused(leg, now)

    def lost(self, leg: Leg, now: float) -> None:
        """Learn that a leg broke."""
        copy = self._copies.get(leg)
        if copy is not None:
            if not copy.is_sent and not copy.is_over:
                self.inner.diverted.append(truncated(copy.rule))
            copy.close(Ending.ABORT)
            self._look()
            return
        if leg is self.inner.client:
            self.inner.deferred.put(0, self._abort)
        self.inner.lost(leg, now)

    def expired(self, now: float) -> None:
        """Learn that `deadline` has passed."""
        self.inner.expired(now)

    def drained(self, leg: Leg, now: float) -> None:
        """Learn that everything queued towards a leg was written."""
        copy = self._copies.get(leg)
        if copy is not None:
            copy.drained()
        else:
            self.inner.drained(leg, now)

    def take_leave(self) -> None:
        """End an idle connection from our side."""
        self.inner.take_leave()

    def farewell(self) -> None:
        """Learn that only taps are left."""
        self.inner.deferred.put(0, self._finish)
        self.inner.farewell()

    def reads(self, leg: Leg) -> bool:
        """Whether the shell should read from this leg now."""
        return leg in self._copies or self.inner.reads(leg)

    def _copy(self, data: bytes) -> None:
        for copy in self._copies.values():
            if not copy.write(data):
                self.inner.diverted.append(truncated(copy.rule))
        self._look()

    def _abort(self) -> None:
        for copy in self._copies.values():
            if copy.is_cut_short:
                self.inner.diverted.append(truncated(copy.rule))
            copy.close(Ending.ABORT)
        self._look()

    def _finish(self) -> None:
        for copy in self._copies.values():
            copy.finish()
        self._look()
