"""The interface of those who consume a connection's mirror events: sinks.

A sink of a connection is asked twice:

    wants(exchange, offer)   synchronously, while the client waits, when the head of a request has come: what of this
                             exchange it wants (constants of `events`: head, body, response head, response body). It
                             must be cheap, and keep to itself what it decided
    consume(event)           later, in order, driven by the shell's scheduler within the budget of time. A sink gets all
                             events that any sink of the connection wants, and ignores what is not its own

What a sink can rely on:

    * What it did not ask for costs the relay nothing: a request that nobody wants leaves no event.
    * `offer.decision` is what the route decided for the head. It is remembered with it, and so is `offer.tally`.
    * An event that found no room is counted in a `Gap`, which names the exchanges that end there. A head that found no
      room is told by `missed`, at once, in place of `consume`.
    * A sink that wants no more of an exchange calls `Source.release`; once no sink holds it the relay queues no more.
    * Responses are told if the mirror was made for sinks that may want them (`Mirror.hears_responses`): HTTP/2 header
      blocks can only be decoded from the first one of a connection.
    * An exception ends the mirroring of this connection, and nothing else.

Whole connections. A sink that is added to the mirror with an interest in the exchange WHOLE gets all bytes of the
connection, whatever is read in them.

Observers. What costs less than to queue an event and to consume it later is no sink: a `ByteObserver` is told of the
bytes of a whole connection at once, by the same calls of the shell.

A sink has no socket. What it sends goes to `CopyLeg`s, which the shell connects, writes and reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sidestep.engine.mirror.copy_leg import CopyLeg
    from sidestep.engine.mirror.events import Event
    from sidestep.engine.mirror.gate import Tally
    from sidestep.engine.mirror.notes import Note
    from sidestep.policy.route import Decision


class Offer(Protocol):
    """A head that sinks may want."""

    @property
    def decision(self) -> Decision:
        """What the route decided for it."""

    tally: Tally | None
    """Where the head is counted while it is valid, with no sink asked. A sink sets it only if it speaks for all."""


class Sink(Protocol):
    """See the module."""

    def wants(self, exchange: int, offer: Offer) -> int:
        """What is wanted of a new exchange."""

    def holds(self, exchange: int) -> int:
        """What is still wanted of an exchange."""

    def missed(self, exchange: int) -> None:
        """There was no room for the head of an exchange that was wanted."""

    def consume(self, event: Event) -> None:
        """Take an event."""


class Source(Protocol):
    """What a sink sees of the mirror that feeds it."""

    opening: list[CopyLeg]
    """Legs for which the shell is to get a connection; it takes them out."""
    notes: list[Note]
    """What sessions are told of; the shell takes them out."""
    hears_responses: bool
    """Whether responses are told of all exchanges; otherwise `RequestHead.heard` says of which."""
    waiting: Waiting | None
    """Whom the shell tells the time about once a second, after the events at hand were consumed."""

    def release(self, exchange: int) -> None:
        """The sink wants no more of an exchange, or less."""


class Waiting(Protocol):
    """A sink that waits for something, but not for ever: it gets the time now and then."""

    def expire(self, now: float) -> None:
        """Take the time, in monotonic seconds."""


class ByteObserver(Protocol):
    """Is told what both sides of a connection say, while the client waits: nothing it does may take long, or raise."""

    is_open: bool
    """Whether it still takes bytes."""

    def said(self, data: bytes, *, from_client: bool) -> None:
        """One side has said something."""

    def finished(self, *, from_client: bool) -> None:
        """One side has finished (FIN)."""

    def over(self) -> None:
        """The connection is over, or nothing more is told of it. Called twice is the same as once."""
