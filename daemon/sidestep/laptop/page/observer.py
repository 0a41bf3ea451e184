"""From the events of sessions to what the page shows: flows in the ring, sessions and notes on the board.

A `SessionObserver` per session. A request with a number gets its answer by a later event of the same pod; what waits
for one is kept for `WAITING` requests of a session, the oldest are forgotten (their flows stay without an answer). A
request without a number has its answer already, or will have none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from sidestep.laptop.page.flow_ring import FlowRing, ShownFlow
from sidestep.laptop.recorded_body import Body
from sidestep.tunnel.messages import Answered, AnyEvent, Dropped, Ended, Hello, Lost, Request, State
from sidestep.tunnel.opening import StreamOpening

WAITING: Final = 4096
"""Requests of a session that wait for an answer."""
NOTES: Final = 100
"""Notes that are kept."""
MAX_SESSIONS: Final = 64
"""Sessions on the board; a command has one per port."""
MAX_CONDITIONS: Final = 20
MAX_PODS: Final = 50
MAX_INTERCEPTS: Final = 200
MAX_INTERCEPT_FIELDS: Final = 10
"""Bounds of the board's document."""
TEXT: Final = 512
"""Characters of a text on the board."""


class SessionShown(msgspec.Struct):
    """One session on the board."""

    name: str
    state: str = "begins"
    pods: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()


class InterceptShown(msgspec.Struct, frozen=True):
    """An intercept, a wiretap or another session, of whomever, on the board."""

    kind: str
    name: str
    """`namespace/name`, by which the answers of its handler are known."""
    fields: tuple[tuple[str, str], ...]
    """What it says of itself, to be shown: workload, port, filter, state, owner."""


class BoardShown(msgspec.Struct):
    """The board, as the page gets it."""

    title: str
    sessions: list[SessionShown]
    intercepts: tuple[InterceptShown, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


class PageBoard:
    """Sessions, the intercepts of others, and notes. `on_change` is called after each change."""

    def __init__(self, title: str, on_change: Callable[[], None]) -> None:
        self._title = title
        self._on_change = on_change
        self._sessions: list[SessionShown] = []
        self._intercepts: tuple[InterceptShown, ...] = ()
        self._problems: tuple[str, ...] = ()
        self._notes: deque[str] = deque(maxlen=NOTES)
        self.version = 0
        """Grows with each change."""

    def add(self, name: str) -> SessionShown:
        """One more session. It is shown if it is among the first MAX_SESSIONS."""
        session = SessionShown(name)
        if len(self._sessions) < MAX_SESSIONS:
            self._sessions.append(session)
            self.changed()
        return session

    def note(self, text: str) -> None:
        """Show a line, until NOTES newer ones have come."""
        self._notes.append(text[:TEXT])
        self.changed()

    def intercepts(self, found: Sequence[InterceptShown], problems: Sequence[str]) -> None:
        """What intercepts and wiretaps there are, and what is wrong."""
        shown = tuple(_bounded(each) for each in found[:MAX_INTERCEPTS])
        told = tuple(each[:TEXT] for each in problems[:MAX_INTERCEPTS])
        if (shown, told) != (self._intercepts, self._problems):
            self._intercepts, self._problems = shown, told
            self.changed()

    def changed(self) -> None:
        """A session has changed."""
        self.version += 1
        self._on_change()

    def document(self) -> bytes:
        """As server.Board."""
        board = BoardShown(self._title, self._sessions, self._intercepts, self._problems, tuple(self._notes))
        return msgspec.json.encode(board)


def _bounded(shown: InterceptShown) -> InterceptShown:
    fields = tuple((name[:TEXT], value[:TEXT]) for name, value in shown.fields[:MAX_INTERCEPT_FIELDS])
    return InterceptShown(shown.kind[:TEXT], shown.name[:TEXT], fields)


class FlowObserver:
    """The `laptop.session.SessionObserver` of one session. `on_flow` is called after each change in the ring."""

    def __init__(self, name: str, *, ring: FlowRing, board: PageBoard, on_flow: Callable[[], None]) -> None:
        self._name = name
        self._ring = ring
        self._board = board
        self._on_flow = on_flow
        self._shown = board.add(name)
        self._waiting: dict[tuple[str, int], ShownFlow] = {}
        self._recent: dict[tuple[str, int], ShownFlow] = {}
        """The last WAITING flows whose requests have a number, by pod and number."""

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""
        self._shown.state = f"registered as {hello.namespace}/{hello.name}"[:TEXT]
        self._board.changed()

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self._waiting.clear()  # the next tunnel counts anew
        self._recent.clear()
        self._shown.state = f"interrupted: {reason}"[:TEXT]
        self._board.changed()

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""
        self._board.note(f"{self._name}: not answered by the handler, from {opening.client}: {reason}")

    def note(self, text: str) -> None:
        """As SessionObserver.note."""
        self._board.note(f"{self._name}: {text}")

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        match event:
            case Request():
                self._request(event)
            case Answered():
                self._answered(event)
            case State():
                self._state(event)
            case Lost() | Dropped():
                self._board.note(f"{self._name}: {event.count} requests are not shown: there was no room for them")
            case Ended():
                self._shown.state = f"ended: {event.reason}"[:TEXT]
                self._board.changed()

    def _request(self, event: Request) -> None:
        flow = ShownFlow(self._ring.new_id(), self._name, event)
        if event.answer is None and event.number:
            self._waiting[event.pod, event.number] = flow
            if len(self._waiting) > WAITING:
                del self._waiting[next(iter(self._waiting))]
        if event.number:
            self._recent[event.pod, event.number] = flow
            if len(self._recent) > WAITING:
                del self._recent[next(iter(self._recent))]
        self._ring.put(flow)
        self._on_flow()

    def recorded(self, request: Request, body: Body) -> None:
        """The copy of a request that was told before: `request` has its fields, `body` what followed."""
        flow = self._recent.pop((request.pod, request.number), None)
        if flow is not None:
            flow.request = replace(flow.request, fields=request.fields)
            self._ring.put_body(flow, body)
            self._on_flow()

    def _answered(self, event: Answered) -> None:
        flow = self._waiting.pop((event.pod, event.number), None)
        if flow is not None:
            flow.request = replace(flow.request, answer=event.answer)
            self._ring.put(flow)
            self._on_flow()

    def _state(self, event: State) -> None:
        self._shown.pods = tuple(f"{each.pod} {each.state}"[:TEXT] for each in event.pods[:MAX_PODS])
        self._shown.conditions = tuple(
            f"{each.type}: {each.subject}: {each.text}"[:TEXT] for each in event.conditions[:MAX_CONDITIONS]
        )
        self._shown.state = "active" if event.active else "waits for a pod"
        self._board.changed()
