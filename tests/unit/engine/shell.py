"""A shell without sockets: drives any relay as `sidestep.proxy` does and checks the promises of `engine.relay`."""

from __future__ import annotations

from collections.abc import Callable

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import HIGH_WATER, Ending, Leg, Role
from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.mirror.ledger import Ledger
from sidestep.engine.mirror.notes import Note
from sidestep.engine.mirror.wiretaps import wiretap_mirror
from sidestep.engine.relay import Relay
from sidestep.policy.route import Route, Rule, SteeredPort


def matches_dev(method: bytes, path: bytes, fields) -> bool:
    return any(name == b"x-dev" and value == b"me" for name, value in fields)


def rule(name: str = "dev", header: bytes = b"me", *, divert_probes: bool = False) -> Rule:
    def matches(method: bytes, path: bytes, fields) -> bool:
        return any(field == b"x-dev" and value == header for field, value in fields)

    return Rule(f"uid-{name}", f"shop/{name}", matches, divert_probes, needle=b"\nx-dev:")


def everything(name: str = "dev") -> Rule:
    return Rule(f"uid-{name}", f"shop/{name}", lambda method, path, fields: True)


class Shell:
    """What was written to each leg is in `sent`; legs that are asked for are opened at once when `auto`.

    `connect` says whether a leg can be connected, `wrote` gets what was written to a leg.
    """

    def __init__(
        self,
        relay: Relay,
        *,
        auto: bool = True,
        app_open: bool = False,
        late: bool = False,
        connect: Callable[[Leg], bool] = lambda leg: True,
        wrote: Callable[[Leg, bytes], None] = lambda leg, data: None,
    ) -> None:
        self.relay = relay
        self.mirror = relay.mirror
        self.auto = auto
        self._connect = connect
        self._wrote = wrote
        self.sent: dict[Leg, bytearray] = {}
        self.legs: list[Leg] = []
        self.waiting: list[Leg] = []
        self.shut: dict[Leg, Ending] = {}
        self.ended: set[Leg] = set()
        """Legs whose peers have finished sending."""
        self.largest = 0
        self.now = 0.0
        self.late = late
        """Events of the mirror wait for `copy`; otherwise they are consumed after each call."""
        self.stuck: set[Leg] = set()
        """Copies that take nothing."""
        relay.app.open = app_open
        self._settle()

    # --- inputs

    def client(self, data: bytes) -> None:
        self.receive(self.relay.client, data)

    def app(self, data: bytes) -> None:
        self.receive(self.relay.app, data)

    def handler(self, data: bytes, index: int = -1) -> None:
        self.receive(self.handlers[index], data)

    def receive(self, leg: Leg, data: bytes) -> None:
        assert data
        leg.active = self.now
        if isinstance(leg, CopyLeg):
            leg.owner.receive(leg, data)
            self._settle()
            return
        if leg is self.relay.client:
            self.mirror.client_data(data)
        to = self._passes(leg, data)
        if to is None:
            self.relay.receive(leg, data, self.now)
        else:
            assert to.open
            to.write(data)
        self._settle()

    def _passes(self, leg: Leg, data: bytes) -> Leg | None:
        if type(self.relay).passes is Relay.passes:
            return None  # it says so of everything: tests of a byte at a time need not ask
        before = self._seen()
        to = self.relay.passes(leg, data)
        assert self._seen() == before, "`passes` changed what the shell looks at"
        return to

    def _seen(self) -> tuple[object, ...]:
        """What a shell acts on."""
        relay = self.relay
        legs = [(id(leg), leg.open, leg.ending, leg.queued, [*leg.out], relay.reads(leg)) for leg in relay.legs]
        rest = (relay.done, relay.drain, relay.deadline, relay.wired, relay.successor, relay.anomaly)
        return legs, [*relay.opening], [*self.notes], rest

    def eof(self, leg: Leg) -> None:
        self.ended.add(leg)
        if isinstance(leg, CopyLeg):
            leg.owner.receive_eof(leg)
        else:
            if leg is self.relay.client:
                self.mirror.client_end()
            self.relay.receive_eof(leg, self.now)
        self._settle()

    def lose(self, leg: Leg) -> None:
        leg.open = False
        leg.out.clear()
        leg.queued = 0
        if isinstance(leg, CopyLeg):
            leg.owner.lost(leg)
        else:
            if leg is self.relay.client:
                self.mirror.client_lost()
            self.relay.lost(leg, self.now)
        self._settle()

    def open(self, leg: Leg) -> None:
        self.waiting.remove(leg)
        leg.open = True
        self._opened(leg)
        self._settle()

    def _opened(self, leg: Leg) -> None:
        leg.active = self.now
        if isinstance(leg, CopyLeg):
            leg.owner.opened(leg)
        else:
            self.relay.opened(leg, self.now)

    def refuse(self, leg: Leg) -> None:
        self.waiting.remove(leg)
        self._refused(leg)
        self._settle()

    def _refused(self, leg: Leg) -> None:
        if isinstance(leg, CopyLeg):
            leg.owner.lost(leg)
        else:
            self.relay.refused(leg, self.now)

    def drained(self, leg: Leg) -> None:
        self.relay.drained(leg, self.now)
        self._settle()

    def expire(self) -> None:
        """Let the relay's deadline pass."""
        assert self.relay.deadline is not None
        self.now = max(self.now, self.relay.deadline)
        self.relay.expired(self.now)
        self._settle()

    def answered(self, call: Callable[[], None]) -> None:
        """Who judges requests beside the relay has answered."""
        self.relay.answered(call, self.now)
        self._settle()

    def farewell(self) -> None:
        """The connection is over; copies are left."""
        self.relay.farewell()
        self.copy()

    def reads(self, leg: Leg) -> bool:
        """Whether the leg is read."""
        return leg.owner.reads(leg) if isinstance(leg, CopyLeg) else self.relay.reads(leg)

    # --- outputs

    @property
    def handlers(self) -> list[Leg]:
        return [leg for leg in self.legs if leg.role is Role.HANDLER and not isinstance(leg, CopyLeg)]

    @property
    def apps(self) -> list[Leg]:
        return [leg for leg in self.legs if leg.role is Role.APP]

    @property
    def taps(self) -> list[Leg]:
        return [leg for leg in self.legs if isinstance(leg, CopyLeg)]

    @property
    def notes(self) -> list[Note]:
        """The requests that sessions are told of."""
        return [note for note in self.mirror.notes if not note.is_answer]

    def to(self, leg: Leg) -> bytes:
        return bytes(self.sent.get(leg, b""))

    @property
    def to_client(self) -> bytes:
        return self.to(self.relay.client)

    @property
    def to_app(self) -> bytes:
        return b"".join(self.to(leg) for leg in self.apps)

    @property
    def to_handler(self) -> bytes:
        return b"".join(self.to(leg) for leg in self.handlers)

    @property
    def opened_handlers(self) -> int:
        return len(self.handlers)

    def _settle(self) -> None:
        self._advance()
        while self.mirror.events and not self.late:
            self.mirror.run()
            self._advance()

    def copy(self) -> None:
        """Have events consumed."""
        self.mirror.run()
        self._advance()

    def _advance(self) -> None:
        relay = self.relay
        while relay.opening or self.mirror.opening:
            asked = relay.opening + self.mirror.opening
            relay.opening = []
            self.legs += self.mirror.opening
            self.mirror.opening.clear()
            for leg in asked:
                assert not leg.open
                assert leg not in self.waiting
                self.waiting.append(leg)
            if self.auto:
                for leg in [*self.waiting]:
                    if not leg.ending or (isinstance(leg, CopyLeg) and leg.out):
                        self.waiting.remove(leg)
                        if self._connect(leg):
                            leg.open = True
                            self._opened(leg)
                        else:
                            self._refused(leg)
        for leg in relay.legs:
            if leg not in self.legs:
                self.legs.append(leg)
        for leg in self.legs:
            self._flush(leg)
        if relay.wired is not None:
            assert relay.wired[0] is relay.client
            others = [leg for leg in relay.legs if leg.open]
            assert all(leg.ending >= Ending.CLOSE or leg in relay.wired for leg in others)
        if relay.done:
            # In HTTP/2, a client that has finished sending needs no more than the same from us.
            finished = isinstance(relay, Http2Relay) and relay.client in self.ended
            assert relay.client.ending >= (Ending.FINISH if finished else Ending.CLOSE)

    def _flush(self, leg: Leg) -> None:
        if not leg.out and not leg.ending:
            assert leg.queued == 0
            return
        if not isinstance(leg, CopyLeg) and leg.queued > self.largest:
            self.largest = leg.queued
        assert leg.queued == sum(map(len, leg.out))
        assert all(leg.out), "empty writes"
        if isinstance(leg, CopyLeg) and leg in self.stuck:
            return
        if leg.out:
            assert leg not in self.shut, "bytes after an ending"
            if leg.ending is Ending.ABORT:
                leg.out.clear()
                leg.queued = 0
        if leg.open and leg.out:
            data = b"".join(leg.out)
            leg.out.clear()
            leg.queued = 0
            self.sent.setdefault(leg, bytearray()).extend(data)
            self._wrote(leg, data)
            if isinstance(leg, CopyLeg):
                leg.owner.drained(leg)
        if leg.ending and not leg.out:
            if leg.ending is Ending.AWAIT:
                assert isinstance(leg, CopyLeg)
            if leg.ending is Ending.FINISH and not leg.open:
                raise AssertionError("an end for a leg that is not open")
            self.shut[leg] = leg.ending


def http1(
    *rules: Rule, auto: bool = True, app_open: bool = False, limits=None, taps: tuple[Rule, ...] = (), ledger=None
) -> Shell:
    port = SteeredPort(8080, Route(rules, taps))
    bounds = {} if limits is None else {"limits": limits}
    mirror = wiretap_mirror(ledger or Ledger(), port=8080)
    return Shell(Http1Relay(port, tls=False, mirror=mirror, **bounds), auto=auto, app_open=app_open)


__all__ = ["HIGH_WATER", "Shell", "everything", "http1", "matches_dev", "rule"]
