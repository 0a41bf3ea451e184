"""A leg of a served connection - client, app or handler - as the event loop calls it: events go to the conductor."""

from __future__ import annotations

from typing import Protocol

from sidestep.engine.leg import Ending, Leg, Role
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.host import ConnectionHost
from sidestep.proxy.io.leg_io import LegIO
from sidestep.proxy.io.loop import BROKEN, HANG_UP, READ, WRITE, Loop
from sidestep.proxy.io.stream import Stream


class LegOwner(Protocol):
    """A conductor, as its legs see it."""

    host: ConnectionHost
    endpoints: Endpoints
    notify: bool
    """Whether TLS peers are sent close_notify: not once one has ended without it."""

    def read(self, io: ConnectionLeg, stream: Stream, *, hung_up: bool = False) -> None:
        """Read the stream; `hung_up`: the peer has closed both directions."""

    def hung_up(self, io: ConnectionLeg) -> None:
        """Both directions are over, or the stream broke after its peer had finished sending."""

    def apply(self) -> None:
        """Carry out what the relay wants: the stream has room again."""

    def abandon(self) -> None:
        """End the connection: a callback raised."""


class ConnectionLeg(LegIO):
    """The I/O of one leg and whom it belongs to."""

    __slots__ = ("_owner",)

    def __init__(self, loop: Loop, leg: Leg, owner: LegOwner) -> None:
        super().__init__(loop, leg)
        self._owner = owner

    @property
    def has_unsent(self) -> bool:
        """Whether bytes, or the end that follows them, are still to be written."""
        if self.stream is None or self.lingering is not None:
            return False
        return bool(self.leg.out) or (self.leg.ending is not Ending.NONE and not self.finished)

    def ready(self, mask: int) -> None:
        """Pass an event of the stream on."""
        stream = self.stream
        if stream is None:
            return
        if mask == READ and not self.ended and self.lingering is None:
            self._owner.read(self, stream)
        elif self.lingering is not None:
            if self.discard(notify=self._owner.notify):
                self.release(orderly=True)
        elif self.ended and mask & BROKEN:
            self._owner.hung_up(self)
        elif mask & ~WRITE and not self.ended:
            self._owner.read(self, stream, hung_up=bool(mask & HANG_UP))
        else:
            self._owner.apply()

    def end(self, ending: Ending) -> None:
        """Carry out an ending; everything that comes before it is written."""
        self.give_up_waiting()
        if ending is Ending.ABORT:
            self.release(orderly=False)
        elif self.stream is not None:
            self.finish(notify=self._owner.notify)
            if ending is Ending.CLOSE and self.finished and self.lingering is None:
                self.begin_lingering()

    def begin_lingering(self) -> None:
        """Discard what comes, for a bounded time, and close then."""
        self._owner.host.lingering.add(self)
        self.linger(lambda: self.release(orderly=True))

    def release(self, *, orderly: bool) -> None:
        """Close the stream now, as `close`, and tell the host what it keeps account of."""
        owner = self._owner
        if self.lingering is not None:
            owner.host.lingering.discard(self)
        if self.stream is not None and self.leg.role is Role.APP and owner.endpoints.names:
            owner.host.release_name(owner.endpoints, self.stream.sock)
        self.close(orderly=orderly)

    def slow(self) -> None:
        """Read less at a time: the last event took long, and other connections wait for their turn."""
        if self.stream is not None:
            self.stream.shrink()

    def abandon(self) -> None:
        """End the connection: a callback of this leg raised."""
        self._owner.abandon()
