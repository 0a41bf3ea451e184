"""The surface of every relay engine: bytes between legs, nothing else.

One accepted client connection is one `Relay`. Its ends are *legs*: the client, the app (opened when first needed), one
handler leg per intercept that a request matched, and for HTTP/2 a second app leg for streams that fall back. The engine
decides, the shell (`sidestep.proxy`) does the I/O. No sockets, no clock, no log. What others want to know of the
connection is told to its `mirror` (`engine.mirror`), while somebody listens.

What the shell does (`now` is the time of the input, in monotonic seconds; it never goes backwards)
    passes(leg, data)    bytes arrived (never empty). The shell asks once for each chunk. If the answer is a leg, the
                         bytes are that leg's as they are: writing them (what is not taken: by `leg.write`) is all that
                         there is to do
    receive(leg, data, now)
                         the answer was None (or nobody asked: `passes` is faster, never necessary)
    receive_eof(leg, now)
                         the peer finished sending (FIN, close_notify); it may still read
    opened(leg, now)     a leg from `opening` is connected (a handler leg: the handler's end too)
    refused(leg, now)    a leg from `opening` could not be connected; the leg is dead
    drained(leg, now)    `leg.out`, which could not be written at once, is written to the end
    lost(leg, now)       the leg broke (reset, TLS error, timeout); nothing more goes in or out of it
    expired(now)         `deadline` has passed
    take_leave()         the connection, which is `idle`, is about to be ended for reasons of ours
    farewell()           all legs are closed, or moved by the shell itself
    mirror.run()         a bounded time after something was queued there, at once when it is much
  and after each call: opens every leg it finds in `opening` (and empties that list), writes `leg.out` of every leg in
  `legs`, carries out `leg.ending`, and closes everything once `done` is true and the client leg is flushed.

What the engine promises
  * It never raises for bytes of a peer. What it cannot parse becomes a wire or ends the connection as section 4 says.
  * `leg.out` of a leg that is not open yet is kept by the shell until it is.
  * Back-pressure: the shell stops reading a leg while `reads(leg)` is false. The engine answers from `queued` of the
    legs that bytes of this one may go to; it buffers itself at most what its limits name.
  * After `leg.ending` is set nothing is appended to `leg.out`.
  * `drain` is true while more than one HTTP/2 stream is open: the shell then reads a socket until it would block before
    it writes, and merges the writes (measured 0.86 against 1.43 of haproxy's CPU); otherwise it writes after each read.
  * `wired` is set once two legs are joined for good and every byte before is in their `out`: the shell may then move
    bytes itself (os.splice) and calls the engine no more. Legs other than these two are already ended. It is None
    while the mirror listens to these bytes.
  * `successor` is set at the end of a `receive`, when another engine goes on; then `reads` is false for every leg.
  * The mirror influences nothing: not `reads` of any leg, not `done`, not the bytes or their time. Events are queued,
    so that no request waits for those who listen.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from sidestep.engine.mirror.producer import Mirror

if TYPE_CHECKING:
    from collections.abc import MutableSequence

    from sidestep.policy.route import Rule

HIGH_WATER = 256 * 1024
"""Bytes queued towards a leg above which its sources are not read (bytes)."""


SMALL = 2048
"""Bytes below which neighbours in a queue are joined."""


def queue(pieces: MutableSequence[Any], data: bytes) -> None:
    """Append to a queue of bytes, and maybe of what stands between them.

    Small neighbours are joined: a queue is bounded in bytes, and an object costs fifty of them.
    """
    last = pieces[-1] if pieces else None
    if isinstance(last, bytes) and len(data) < SMALL and len(last) < SMALL:
        pieces[-1] = last + data
    else:
        pieces.append(data)


class Role(enum.IntEnum):
    """What stands at the other end of a leg."""

    CLIENT = 0
    APP = 1
    HANDLER = 2


class Ending(enum.IntEnum):
    """How the shell ends a leg."""

    NONE = 0
    AWAIT = 1
    """Only for copies: write what is queued, then read for a bounded time; after that as CLOSE."""
    FINISH = 2
    """Half-close: write what is queued, then FIN or close_notify; go on reading (a copy for a bounded time)."""
    CLOSE = 3
    """Write what is queued, then close in an orderly way."""
    ABORT = 4
    """Drop what is queued and reset, so that the peer cannot take a truncated message for a whole one."""


class OnUnreadable(enum.Enum):
    """What becomes of a connection that cannot be read with certainty.

    The one switch for everything that must not be bypassed. A relay is given it when it is made; `classification`
    decides by it what happens to a connection before there is a relay.
    """

    PASS = enum.auto()
    """It is passed through, raw, to whoever would get it: nobody is harmed."""
    CLOSE = enum.auto()
    """It is closed: not a byte of the client reaches the app unread."""


class Leg:
    """One end of a connection. `io` and `active` belong to the shell; everything else is written by the engine only,
    except `queued`, from which the shell subtracts what it wrote, and `out`, which it empties.
    """

    __slots__ = ("active", "ending", "io", "open", "out", "queued", "role", "rule")

    def __init__(self, role: Role, rule: Rule | None = None, *, is_open: bool = False) -> None:
        self.role = role
        self.rule = rule
        self.open = is_open
        self.out: list[bytes] = []
        self.queued = 0
        self.ending = Ending.NONE
        self.io: Any = None
        self.active = 0.0
        """When it was connected or bytes last came from it, in monotonic seconds."""

    def write(self, data: bytes) -> None:
        """Queue bytes for the peer."""
        out = self.out
        if out and len(data) < SMALL and len(out[-1]) < SMALL:  # as `queue`, without a call
            out[-1] += data
        else:
            out.append(data)
        self.queued += len(data)

    def end(self, ending: Ending) -> None:
        """Ask for an ending; a stronger one replaces a weaker one."""
        self.ending = max(self.ending, ending)

    @property
    def is_over(self) -> bool:
        """Whether it was ended and no byte waits to be written first."""
        return self.ending is Ending.ABORT or (self.ending is not Ending.NONE and not self.out)


class Relay:
    """Base of the engines. Subclasses override the inputs; the attributes are read by the shell after each call."""

    __slots__ = (
        "anomaly",
        "app",
        "client",
        "deadline",
        "done",
        "drain",
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
        """Whoever listens to this connection; nobody by default."""
        self.now = 0.0
        """The time of the input at hand (monotonic seconds), where the engine needs it."""
        self.joined: tuple[Leg, Leg] | None = None
        """See `wired`."""
        self.drain = False
        self.done = False
        self.deadline: float | None = None
        self.protocol: str | None = None
        """What handlers are spoken to in, if that is not what the shell began this connection with."""
        self.successor: Relay | None = None
        """The relay that goes on from here, with the same legs: the shell gives it everything from now on."""
        self.anomaly: str | None = None
        """Why this connection became a wire: a stable, short reason such as "h1-ambiguous-length" (a metric label)."""

    def put_in_place_of_app(self, rule: Rule) -> None:
        """The handler of a global intercept stands where the app would; the app itself when it refuses."""
        self.app.role = Role.HANDLER
        self.app.rule = rule

    def app_after_all(self, leg: Leg) -> bool:
        """A leg was refused: if it is a handler's in the app's place, ask for the app."""
        if leg is not self.app or leg.role is not Role.HANDLER:
            return False
        leg.role = Role.APP
        leg.rule = None
        self.opening.append(leg)
        return True

    def forget_legs(self) -> None:
        """Drop the legs that are over from `legs`, but for the client's and the app's own."""
        self.legs = [leg for leg in self.legs if not leg.is_over or leg is self.client or leg is self.app]

    def succeed(self, other: Relay) -> None:
        """Go on where another relay ends: with its legs and what it has for the shell."""
        self.client, self.app, self.legs = other.client, other.app, other.legs
        self.opening, self.mirror = other.opening, other.mirror
        self.now = other.now
        other.successor = self

    def receive(self, leg: Leg, data: bytes, now: float) -> None:
        """Take bytes from a leg that do not pass as they are (see `passes`)."""
        raise NotImplementedError

    def passes(self, leg: Leg, data: bytes) -> Leg | None:
        """The (open) leg that gets these bytes as they are; None: nothing has happened, `receive` them.

        An answer promises that nothing the shell looks at has changed, but `mirror`: no leg, no ending, no `reads`,
        no deadline.
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

    def take_leave(self) -> None:
        """End an idle connection from our side: say so where the protocol has a word for it."""
        self.client.end(Ending.CLOSE)
        self.app.end(Ending.CLOSE)

    def farewell(self) -> None:
        """Learn that the connection is over, or moved by the shell itself: the mirror is told nothing more."""
        self.mirror.end()

    def drained(self, leg: Leg, now: float) -> None:
        """Learn that everything queued towards a leg was written after it had been held up."""

    def reads(self, leg: Leg) -> bool:
        """Whether the shell should read from this leg now."""
        raise NotImplementedError

    @property
    def wired(self) -> tuple[Leg, Leg] | None:
        """The two legs that are `joined` for good; None while the mirror listens to what passes between them."""
        return self.joined if not self.mirror.is_listening else None

    @property
    def idle(self) -> bool:
        """Whether no exchange is in flight, so that a draining proxy may close the connection."""
        return False

    @property
    def left(self) -> bool:
        """Whether it is idle and nobody but us would ever end it."""
        return False
