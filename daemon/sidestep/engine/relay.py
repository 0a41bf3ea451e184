"""The surface of every relay engine: bytes and the time in, bytes and decisions out.

One client connection has one `Relay`. Its ends are *legs*: the client; the app, opened when it is first needed; one
handler leg per intercept that a request matched; and for HTTP/2 a second app leg, for streams that fall back to the
app. The engine decides, the shell (`proxy.connection.conductor`) does the I/O. The engine has no sockets, no clock and
no log. It tells the connection's `mirror` (`engine.mirror`) what happens, while somebody listens.

What the shell calls. `now` is the time of the input in monotonic seconds; it never goes backwards

    passes(leg, data)        bytes have arrived (never empty). The shell asks once for each chunk. If the answer is a
                             leg, the bytes go to that leg as they are: the shell writes them, and gives what the
                             socket does not take to `leg.write`
    receive(leg, data, now)  the same bytes, if the answer was None. `passes` is an optimisation: calling `receive`
                             without asking has the same effect
    receive_eof(leg, now)    the peer has finished sending (FIN, close_notify); it may still read
    opened(leg, now)         a leg from `opening` is connected; a handler's leg up to the handler
    refused(leg, now)        a leg from `opening` could not be connected, and never will be
    drained(leg, now)        `leg.out`, which could not be written at once, is written to the end
    lost(leg, now)           the leg broke (reset, TLS error, timeout): nothing more goes in or out of it
    expired(now)             `deadline` has passed
    answered(call, now)      who judges requests beside the relay has answered: `call` is what the gate asked for
    close_idle()             the connection, which is `idle`, is about to be ended by us
    farewell()               all legs are closed, or the shell moves their bytes itself
    mirror.run()             a bounded time after events were queued there, at once when they are many

After each call the shell opens every leg in `opening` and empties that list, writes `leg.out` of every leg in `legs`,
carries out `leg.ending`, sets a timer for `deadline`, and closes everything once `done` is true and nothing is left to
be written.

What the engine promises

  * It never raises for bytes of a peer. What it cannot parse is passed through, or ends the connection (docs/design.md,
    "A connection").
  * `leg.out` of a leg that is not open yet is kept by the shell until it is.
  * Back-pressure: the shell does not read a leg while `reads(leg)` is false. The engine decides that from `queued` of
    the legs that get the bytes of this one. What it buffers itself is bounded by its limits.
  * After `leg.ending` is set nothing is appended to `leg.out`.
  * `drain` is true while more than one HTTP/2 stream is open: then the shell reads a socket until it would block before
    it writes, and merges the writes (measured 0.86 against 1.43 of haproxy's CPU). Otherwise it writes after each read.
  * `wired` is set once two legs are joined for good and every byte before that is in their `out`. Then the shell may
    move bytes itself (splice(2)), and calls the engine no more. All other legs are ended. It is None while the mirror
    listens.
  * `successor` is set at the end of a `receive`, when another engine goes on; then `reads` is false for every leg.
  * The mirror changes nothing: not `reads` of any leg, not `done`, not the bytes or when they are written.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from sidestep.engine.leg import Ending, Leg, Role
from sidestep.engine.mirror.producer import Mirror

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidestep.engine.inspection.gate import Gate
    from sidestep.policy.route import Rule


class OnUnreadable(enum.Enum):
    """What becomes of a connection that cannot be read with certainty.

    Ports on which nothing may be bypassed have CLOSE. A relay gets the policy when it is made; `engine.classification`
    applies it before there is a relay.
    """

    PASS = enum.auto()
    """Its bytes are passed through, to the app or to the handler that stands in its place."""
    CLOSE = enum.auto()
    """It is closed: no byte of the client reaches the app unread."""


class Relay:
    """Base of the engines. Subclasses override the inputs; the attributes are read by the shell after each call."""

    __slots__ = (
        "anomaly",
        "app",
        "client",
        "deadline",
        "done",
        "drain",
        "gate",
        "joined",
        "legs",
        "mirror",
        "now",
        "opening",
        "protocol",
        "successor",
    )

    def __init__(self, mirror: Mirror | None = None) -> None:
        self.client = Leg(Role.CLIENT, is_open=True)
        self.app = Leg(Role.APP)
        self.legs: list[Leg] = [self.client, self.app]
        self.opening: list[Leg] = []
        self.mirror = mirror or Mirror()
        """Those who listen to this connection; nobody by default."""
        self.gate: Gate | None = None
        """What inspects it; None if nothing does. The shell tells it the end of the connection."""
        self.now = 0.0
        """The time of the input that is being handled (monotonic seconds), in engines that need it."""
        self.joined: tuple[Leg, Leg] | None = None
        """See `wired`."""
        self.drain = False
        self.done = False
        self.deadline: float | None = None
        self.protocol: str | None = None
        """The protocol that handlers are spoken to in, if another than the shell began this connection with."""
        self.successor: Relay | None = None
        """The relay that goes on with the same legs; the shell calls it from now on."""
        self.anomaly: str | None = None
        """Why this connection is passed through: a stable, short reason such as "h1-ambiguous-length" (a metric
        label)."""

    def replace_app(self, rule: Rule) -> None:
        """Put the handler of a global intercept in the place of the app. If it refuses, the app is asked after all."""
        self.app.role = Role.HANDLER
        self.app.rule = rule

    def fall_back_to_app(self, leg: Leg) -> bool:
        """A leg was refused: if it is a handler in the place of the app, ask for the app. Returns whether it was."""
        if leg is not self.app or leg.role is not Role.HANDLER:
            return False
        leg.role = Role.APP
        leg.rule = None
        self.opening.append(leg)
        return True

    def forget_legs(self) -> None:
        """Drop the legs that are over from `legs`, except the client's and the app's."""
        self.legs = [leg for leg in self.legs if not leg.is_over or leg is self.client or leg is self.app]

    def take_over(self, other: Relay) -> None:
        """Become the successor of another relay: take its legs, what it asks of the shell, and its mirror."""
        self.client, self.app, self.legs = other.client, other.app, other.legs
        self.opening, self.mirror = other.opening, other.mirror
        self.now = other.now
        self.gate = other.gate
        other.successor = self

    def receive(self, leg: Leg, data: bytes, now: float) -> None:
        """Take bytes from a leg that do not pass as they are (see `passes`)."""
        raise NotImplementedError

    def passes(self, leg: Leg, data: bytes) -> Leg | None:
        """Return the (open) leg that gets these bytes as they are, or None: then nothing has changed, `receive` them.

        After an answer that is a leg, nothing that the shell looks at has changed, except `mirror`: no leg, no ending,
        no `reads`, no deadline.
        """
        del leg, data
        return None

    def receive_eof(self, leg: Leg, now: float) -> None:
        """Take the end of a leg's bytes."""
        raise NotImplementedError

    def opened(self, leg: Leg, now: float) -> None:
        """Learn that a leg is connected."""
        raise NotImplementedError

    def refused(self, leg: Leg, now: float) -> None:
        """Learn that a leg could not be connected."""
        raise NotImplementedError

    def lost(self, leg: Leg, now: float) -> None:
        """Learn that a leg broke."""
        raise NotImplementedError

    def expired(self, now: float) -> None:
        """Learn that `deadline` has passed. `now` is monotonic seconds."""

    def answered(self, call: Callable[[], None], now: float) -> None:
        """Take an answer about a request that is held (`Gate.wake`)."""
        self.now = now
        call()

    def close_idle(self) -> None:
        """End an idle connection from our side; HTTP/2 tells the client which requests nobody has seen (GOAWAY)."""
        self.client.end(Ending.CLOSE)
        self.app.end(Ending.CLOSE)

    def farewell(self) -> None:
        """Learn that the connection is over, or that the shell moves its bytes: the mirror is told nothing more."""
        self.mirror.end()

    def drained(self, leg: Leg, now: float) -> None:
        """Learn that everything queued for a leg is written, after its socket had been full."""

    def reads(self, leg: Leg) -> bool:
        """Whether the shell should read from this leg now."""
        raise NotImplementedError

    @property
    def wired(self) -> tuple[Leg, Leg] | None:
        """The two legs that are `joined` for good; None while the mirror listens to what passes between them."""
        return self.joined if not self.mirror.is_listening else None

    @property
    def idle(self) -> bool:
        """Whether no request is unanswered, so that a draining proxy may close the connection."""
        return False

    @property
    def is_orphaned(self) -> bool:
        """Whether it is idle, and the app, whose timeouts end idle connections, has no part in it any more."""
        return False
