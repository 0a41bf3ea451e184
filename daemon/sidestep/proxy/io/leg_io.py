"""The I/O of one leg of a connection: its stream, registered with the event loop.

States

    waiting      no stream yet: a dial or a call to the daemon is under way. What the relay writes stays in `leg.out`
    open         connected and registered
    finished     half-closed by us (FIN, close_notify); still read
    lingering    closed by us while the peer may still send: FIN is sent, then everything is read and discarded for at
                 most LINGER seconds. Closing a socket with unread bytes sends a reset, which could overtake the last
                 bytes that we sent
    closed       the stream is closed and forgotten

    waiting --attach--> open --finish--> finished --linger--> lingering --(its end, or time)--> closed
    `close` leads from every state to closed. `ended` (the peer has finished sending) is independent of these states.

Invariants

  * The descriptor is registered with the loop exactly while there is a stream, and `mask` is what the loop was told.
  * `cancel` is set only while the leg is waiting; it gives the dial or the call up.
  * `close` is idempotent. Nothing is read or written after it.

Who owns a leg decides when to read, write and end (`proxy.connection.conductor` for client, app and handlers,
`proxy.mirror.copy_connection` for copies). A subclass handles events of the descriptor in `ready`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sidestep.engine.leg import Leg
from sidestep.proxy.io.loop import READ, WRITE, Loop, Timer
from sidestep.proxy.io.stream import Stream

LINGER: Final = 2.0
"""Seconds for which a lingering stream is read."""
DISCARDS: Final = 16
"""Reads of a lingering stream per event; then other descriptors get a turn."""
MERGE: Final = 64
"""Chunks of `leg.out` that are joined into one write."""


class LegIO:
    """The stream of one leg; see the module."""

    __slots__ = ("cancel", "congested", "ended", "finished", "leg", "lingering", "loop", "mask", "stream")

    def __init__(self, loop: Loop, leg: Leg) -> None:
        self.loop = loop
        self.leg = leg
        self.stream: Stream | None = None
        self.mask = 0
        self.congested = False
        """The stream did not take all that was written last."""
        self.ended = False
        """The peer has finished sending."""
        self.finished = False
        """We have finished sending."""
        self.lingering: Timer | None = None
        self.cancel: Callable[[], None] | None = None

    def ready(self, mask: int) -> None:
        """Handle an event of the stream's descriptor (epoll's mask)."""
        raise NotImplementedError

    def attach(self, stream: Stream, *, watched: bool = False) -> None:
        """Take a connected stream and watch it. `watched`: its descriptor is registered with the loop already."""
        self.stream = stream
        self.mask = READ
        self.leg.open = True
        if watched:
            self.loop.rebind(stream.fd, self.ready, READ)
        else:
            self.loop.add(stream.fd, self.ready, READ)

    def watch(self, mask: int) -> None:
        """Set the events that are waited for."""
        if mask != self.mask and self.stream is not None:
            self.mask = mask
            self.loop.modify(self.stream.fd, mask)

    def write(self, stream: Stream) -> bool:
        """Write `leg.out`; return whether all of it was taken. Raises OSError when the stream is broken."""
        leg = self.leg
        out = leg.out
        while out:
            count = len(out)
            if count == 1:
                data = out[0]
            else:
                count = min(count, MERGE)
                data = b"".join(out[:count])
            taken = stream.write(data)
            leg.queued -= taken
            if taken != len(data):
                out[:count] = [data[taken:]]
                return False
            del out[:count]
        return True

    def finish(self, *, notify: bool) -> None:
        """Half-close, once. With `notify` a TLS peer is sent close_notify, which a full socket may not take at once:
        `finished` stays false until it has."""
        if self.stream is not None and not self.finished:
            self.finished = self.stream.finish(notify=notify)

    def give_up_waiting(self) -> None:
        """Cancel the dial or the call that is under way."""
        if self.cancel is not None:
            cancel, self.cancel = self.cancel, None
            cancel()

    def linger(self, give_up: Callable[[], None]) -> None:
        """Begin to discard what the peer sends; `give_up` is called when the time is over, and should close."""
        self.lingering = self.loop.later(LINGER, give_up)
        self.watch(READ if self.finished else READ | WRITE)

    def discard(self, *, notify: bool) -> bool:
        """Read from a lingering stream; return whether it has ended, so that it can be closed."""
        stream = self.stream
        if stream is None:
            return False
        if not self.finished and stream.finish(notify=notify):
            self.finished = True
            self.watch(READ)
        try:
            for _ in range(DISCARDS):
                data = stream.read()
                if data is None:
                    return False
                if not data:
                    return True
        except OSError:
            return True
        return False

    def close(self, *, orderly: bool) -> None:
        """Close the stream now: with FIN if `orderly` (and nothing is unread), else with a reset."""
        self.give_up_waiting()
        if self.lingering is not None:
            self.lingering.cancel()
            self.lingering = None
        stream, self.stream = self.stream, None
        self.leg.open = False
        if stream is not None:
            self.loop.remove(stream.fd)
            if orderly:
                stream.close()
            else:
                stream.reset()
