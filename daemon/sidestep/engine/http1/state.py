"""The state of one HTTP/1 connection: everything that decides what may happen next.

Rule: what affects the state machine lives here, after the manner of h11's `_state.py`. The other parts of the relay
move bytes; they ask this module what may happen and report events to it.

The client's side is in one `State`; `TRANSITIONS` says which `Event` leads from which state to which. An event without
a row is a bug of ours, and `on` raises BugError for it: the shell then ends the connection.

Beside it stands who answers. An answering side is the app or one handler:

    awaited         what the app has yet to answer: the flags of each request, in order
    diverted        the request that a handler has yet to answer
    answering_leg   the one leg whose bytes answer requests; None between diverted requests
    app_bypassed    a request was diverted since the app was last given one

Invariants, which `must_wait` keeps: `awaited` and `diverted` are never both set, because a request is forwarded only
when every earlier one that the other side answers is complete; a handler has one request at a time; nothing is
forwarded after a request that may switch protocols before that one is answered.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sidestep.model.errors import BugError
from sidestep.protocols.http1 import SWITCHES

if TYPE_CHECKING:
    from sidestep.engine.http1.diverted_request import DivertedRequest
    from sidestep.engine.leg import Leg


class State(enum.Enum):
    """What is done with the bytes of the client."""

    READING = enum.auto()
    """They are read as requests and forwarded."""
    WAITING = enum.auto()
    """They are kept in `unread`: another side has yet to answer, or they go to the app as a wire after it has."""
    SWITCHING = enum.auto()
    """They follow a whole request that may end HTTP (Upgrade, CONNECT), and its answer decides what they are."""
    WIRE = enum.auto()
    """They are passed on unread to one leg, for good."""
    DISCARDING = enum.auto()
    """They are read and dropped, so that the client can read the last answer."""
    OVER = enum.auto()
    """There are none: the connection has ended, or another relay has it."""


class Event(enum.Enum):
    """What changes the state."""

    HELD = enum.auto()
    """A head may not be forwarded yet, or cannot be read while a handler has yet to answer."""
    SWITCH_ASKED = enum.auto()
    """A request that may switch protocols is whole, and not answered yet."""
    ANSWERED = enum.auto()
    """The answers that were waited for are complete, and no protocol was switched."""
    JOINED = enum.auto()
    """The client is joined with one leg: its bytes cannot be read, or that leg agreed to switch protocols."""
    LAST_ANSWER = enum.auto()
    """The last answer is given, and the client is still sending."""
    HANDED_OVER = enum.auto()
    """The HTTP/2 relay goes on."""
    ENDED = enum.auto()
    """Nothing more is said on this connection."""


READING: Final = State.READING
WAITING: Final = State.WAITING
SWITCHING: Final = State.SWITCHING
WIRE: Final = State.WIRE
DISCARDING: Final = State.DISCARDING
OVER: Final = State.OVER

_FROM_ANY_HTTP_STATE: Final = {
    Event.JOINED: WIRE,
    Event.LAST_ANSWER: DISCARDING,
    Event.HANDED_OVER: OVER,
    Event.ENDED: OVER,
}

TRANSITIONS: Final[Mapping[State, Mapping[Event, State]]] = {
    READING: {Event.HELD: WAITING, Event.SWITCH_ASKED: SWITCHING, **_FROM_ANY_HTTP_STATE},
    WAITING: {Event.ANSWERED: READING, **_FROM_ANY_HTTP_STATE},
    SWITCHING: {Event.ANSWERED: READING, **_FROM_ANY_HTTP_STATE},
    WIRE: {Event.ENDED: OVER},
    DISCARDING: {Event.ENDED: OVER},
    OVER: {Event.ENDED: OVER},
}
"""The state that follows, by state and event."""

HELD_BACK: Final = frozenset((WAITING, SWITCHING))
"""States in which bytes of the client are kept until an answer is complete."""
SERVED: Final = frozenset((READING, WAITING, SWITCHING))
"""States in which requests are still answered."""


class ConnectionState:
    """See the module. One per client connection."""

    __slots__ = (
        "answering_leg",
        "app_bypassed",
        "awaited",
        "client",
        "client_ended",
        "diverted",
        "early",
        "request_flags",
        "then_wire",
        "unread",
        "upgrade_head",
    )

    def __init__(self) -> None:
        self.client = READING
        self.client_ended = False
        """The client has sent its FIN or close_notify."""
        self.unread = bytearray()
        """Bytes of the client that wait for an answer; bounded by the limit `hold` and one read."""
        self.early = bytearray()
        """Bytes of the client that were forwarded before the answer said which protocol they are of; same bound."""
        self.request_flags = 0
        """Flags of the request that is received, or was last."""
        self.upgrade_head = b""
        """The last head that asked for another protocol (Upgrade)."""
        self.answering_leg: Leg | None = None
        self.awaited: deque[int] = deque()
        self.diverted: DivertedRequest | None = None
        self.app_bypassed = False
        self.then_wire: str | None = None
        """The anomaly for which the connection becomes a wire when `diverted` is over; None: it does not."""

    def on(self, event: Event) -> None:
        """Change the state. Raises BugError when the event is impossible in it."""
        state = TRANSITIONS[self.client].get(event)
        if state is None:
            raise BugError(f"an HTTP/1 connection cannot be {event.name} while it is {self.client.name}")
        self.client = state

    def must_wait(self, *, for_handler: bool) -> bool:
        """Whether the request whose head has come may not be forwarded yet."""
        if self.diverted is not None:
            return True
        return bool(self.awaited) and (for_handler or self.awaits_switch)

    @property
    def awaits_switch(self) -> bool:
        """Whether the app has yet to answer a request that may switch protocols."""
        return bool(self.awaited and self.awaited[-1] & SWITCHES)

    @property
    def may_resume(self) -> bool:
        """Whether `unread` can be read: every answer that it waited for is complete."""
        return self.client in HELD_BACK and self.diverted is None and not self.awaits_switch

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered, as far as the answers tell."""
        return self.client is READING and not self.awaited and self.diverted is None
