"""Dials to the apps of a pod's ports: each has a deadline, and its outcome tells whether the app can be reached.

A dial that is not answered within PATIENCE seconds (time for one retransmission of the SYN) is given up, unless another
dial to the same port and family was answered since it began: then the app is there and busy, and the dial has up to
LAST_PATIENCE. A dial that was given up, or that failed in another way than by the app's refusal, is reported as a
hindrance of its port and family, and the daemon unsteers them. From then on the app is dialled now and then, with
growing pauses, until it answers, so that no client has to find out.

An open connection to the app whose data are not acknowledged any more (`cut_off`) is such a hindrance, too.

One timer looks at all pending dials, and runs only while there are any: most are answered at once.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Container
from typing import Final

from sidestep.proxy.connection.dial import Dial, Done, Naming
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.control.readiness import EXHAUSTED, Readiness
from sidestep.proxy.io.loop import Loop
from sidestep.snapshots.hindrance import Hindrance

PATIENCE: Final = 1.5
"""Seconds for an app to answer; the kernel repeats its SYN after one (RFC 6298 section 2)."""
LAST_PATIENCE: Final = 10.0
"""Seconds for an app that answers others."""
LOOK: Final = 0.25
"""Seconds between two looks at pending dials."""
LEAD: Final = 0.1
"""Seconds by which the daemon learns of an app that does not answer before the client does."""
FIRST_TRY: Final = 1.0
LAST_TRY: Final = 10.0
"""Seconds until an app that could not be reached is dialled again, doubling up to the last."""

ANSWERS: Final = frozenset({0, errno.ECONNREFUSED, errno.ECONNRESET})
"""Outcomes by which the app, or its kernel, has answered: no hindrance."""
ONE_DIAL: Final = frozenset({errno.EINVAL})
"""Errors of one dial only: the address needs a zone."""
PASSING: Final = frozenset({errno.EADDRNOTAVAIL})
"""Errors of a trial after which the hindrance is taken back, because no dial can tell when they are over: no port is
free at the address, or the pod has lost it."""

CANNOT_DIAL: Final = "cannot-dial"

Place = tuple[int, int]
"""(port, family)."""


class _Pending:
    """One dial on behalf of a client."""

    __slots__ = ("dial", "done", "host", "place")

    def __init__(self, place: Place, host: str, done: Done) -> None:
        self.place = place
        self.host = host
        self.done = done
        self.dial: Dial | None = None


class _Unreachable:
    """An app that could not be reached, and the dial that tries it again."""

    __slots__ = ("dial", "host", "pause", "place")

    def __init__(self, place: Place, host: str) -> None:
        self.place = place
        self.host = host
        self.pause = FIRST_TRY
        self.dial: Dial | None = None


class AppDials:
    """The dials of one process."""

    def __init__(self, loop: Loop, readiness: Readiness) -> None:
        self._loop = loop
        self._readiness = readiness
        self._pending: set[_Pending] = set()
        self._answered: dict[Place, float] = {}
        self._unreachable: dict[Place, _Unreachable] = {}
        self._looking = False

    def dial(self, endpoints: Endpoints, done: Done, *, naming: Naming | None = None) -> Callable[[], None]:
        """Connect to the app on behalf of a client; returns a function that cancels the dial."""
        pending = _Pending(_place(endpoints), endpoints.host, done)
        self._pending.add(pending)

        def over(sock: socket.socket | None, error: OSError | None) -> None:
            self._pending.discard(pending)
            self._record_outcome(pending, error)
            done(sock, error)

        def cancel() -> None:
            self._pending.discard(pending)
            if pending.dial is not None:
                pending.dial.cancel()

        pending.dial = Dial(self._loop, endpoints.host, endpoints.port, over, naming=naming)
        if not self._looking:
            self._looking = True
            self._loop.later(LOOK, self._look)
        return cancel

    def keep_ports(self, ports: Container[int]) -> None:
        """Forget what was learnt about other ports."""
        for place in [place for place in self._unreachable if place[0] not in ports]:
            unreachable = self._unreachable.pop(place)
            if unreachable.dial is not None:
                unreachable.dial.cancel()
        for place in [place for place in self._answered if place[0] not in ports]:
            del self._answered[place]

    def _look(self) -> None:
        """Give up what has been pending for too long."""
        self._looking = bool(self._pending)
        if self._looking:
            self._loop.later(LOOK, self._look)
        for pending in list(self._pending):
            since = pending.dial.since if pending.dial is not None else None
            if since is None or self._loop.now - since < PATIENCE:
                continue
            answers_others = self._answered.get(pending.place, since) > since
            if answers_others and self._loop.now - since < LAST_PATIENCE:
                continue
            self._give_up(pending)

    def _give_up(self, pending: _Pending) -> None:
        """Tell the daemon, and LEAD seconds later the client, which finds the app when it comes again."""
        if pending.dial is not None:
            pending.dial.cancel()
            pending.dial = None
        error = OSError(errno.ETIMEDOUT, "connect")
        self._record_outcome(pending, error)

        def fail() -> None:
            if pending in self._pending:  # not given up by its client meanwhile
                self._pending.discard(pending)
                pending.done(None, error)

        self._loop.later(LEAD, fail)

    def _record_outcome(self, pending: _Pending, error: OSError | None) -> None:
        """Update readiness from the outcome of a dial."""
        code = 0 if error is None else error.errno or errno.EIO
        place = pending.place
        if code in ANSWERS:
            self._answered[place] = self._loop.now
            if place in self._unreachable:
                self._reached(self._unreachable[place])
        elif code in EXHAUSTED:
            self._readiness.exhausted(code)
        elif code not in ONE_DIAL:
            self._hinder(place, pending.host, code)

    def cut_off(self, endpoints: Endpoints) -> None:
        """Report that what an open connection to the app sends is not acknowledged any more."""
        self._hinder(_place(endpoints), endpoints.host, errno.ETIMEDOUT)

    def _hinder(self, place: Place, host: str, code: int) -> None:
        if place not in self._unreachable:
            unreachable = self._unreachable[place] = _Unreachable(place, host)
            self._readiness.hinder(Hindrance(CANNOT_DIAL, *place, code))
            self._try_later(unreachable)

    # --- apps that could not be reached -----------------------------------------------------------------------------

    def _try_later(self, unreachable: _Unreachable) -> None:
        self._loop.later(unreachable.pause, lambda: self._try(unreachable))
        unreachable.pause = min(2 * unreachable.pause, LAST_TRY)

    def _try(self, unreachable: _Unreachable) -> None:
        if self._unreachable.get(unreachable.place) is not unreachable:
            return

        def over(sock: socket.socket | None, error: OSError | None) -> None:
            timer.cancel()
            unreachable.dial = None
            if sock is not None:
                sock.close()
            if self._unreachable.get(unreachable.place) is not unreachable:
                return
            if error is None or error.errno in ANSWERS | PASSING:
                self._reached(unreachable)
            else:
                self._try_later(unreachable)

        def overdue() -> None:
            if unreachable.dial is not None:
                unreachable.dial.cancel()
            over(None, OSError(errno.ETIMEDOUT, "connect"))

        timer = self._loop.later(PATIENCE, overdue)
        unreachable.dial = Dial(self._loop, unreachable.host, unreachable.place[0], over)

    def _reached(self, unreachable: _Unreachable) -> None:
        self._unreachable.pop(unreachable.place)
        if unreachable.dial is not None:
            unreachable.dial.cancel()
        self._readiness.clear(Hindrance(CANNOT_DIAL, *unreachable.place))


def _place(endpoints: Endpoints) -> Place:
    return endpoints.port, int(socket.AF_INET6 if ":" in endpoints.host else socket.AF_INET)
