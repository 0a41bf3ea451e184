"""A sink that keeps every event, and wants what it is told to."""

from __future__ import annotations

from sidestep.engine.mirror.events import BODY, HEAD, NOTHING, RESPONSE, Event, Gap, RequestHead, ResponseHead
from sidestep.engine.mirror.producer import Mirror

EVERYTHING = HEAD | BODY | RESPONSE


class Recorder:
    """It wants the same of all exchanges with wiretaps until they are `released`."""

    def __init__(self, interest: int = EVERYTHING) -> None:
        self.interest = interest
        self.events: list[Event] = []
        self.offered: list[int] = []
        self.missed_heads: list[int] = []
        self.released: set[int] = set()

    def wants(self, exchange, offer):
        if not offer.decision.taps:
            return NOTHING
        self.offered.append(exchange)
        return self.interest

    def holds(self, exchange):
        return 0 if exchange in self.released else self.interest

    def missed(self, exchange):
        self.missed_heads.append(exchange)

    def consume(self, event):
        self.events.append(event)

    def of(self, exchange: int) -> list[Event]:
        """The events of one exchange."""
        return [event for event in self.events if getattr(event, "exchange", None) == exchange]

    def kinds(self, exchange: int | None = None) -> list[str]:
        """Names of events, neighbours of the same name told once."""
        names: list[str] = []
        for event in self.events if exchange is None else self.of(exchange):
            name = type(event).__name__
            if not names or names[-1] != name:
                names.append(name)
        return names

    def data(self, kind: type, exchange: int) -> bytes:
        """The bytes of all events of a kind."""
        return b"".join(event.data for event in self.of(exchange) if isinstance(event, kind))

    def head(self, exchange: int) -> RequestHead:
        """The head of a request."""
        (head,) = (event for event in self.of(exchange) if isinstance(event, RequestHead))
        return head

    def answers(self, exchange: int) -> list[ResponseHead]:
        """The heads of its answers."""
        return [event for event in self.of(exchange) if isinstance(event, ResponseHead)]

    @property
    def gaps(self) -> list[Gap]:
        """What was lost."""
        return [event for event in self.events if isinstance(event, Gap)]


def recorded(interest: int = EVERYTHING, **options) -> tuple[Mirror, Recorder]:
    """A mirror with a recorder for its only sink."""
    recorder = Recorder(interest)
    return Mirror(lambda mirror: (recorder,), hears_responses=True, **options), recorder
