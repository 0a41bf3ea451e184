"""Output of a running session: text, or JSON lines.

JSON lines are the tunnel's events (`state`, `request`, `answered`, `earlier`, `lost`, `dropped`, `ended`) and five
more: `registered` (the intercept's name), `refused` (a diverted connection found no handler), `interrupted` (the tunnel
broke; `registered` follows when it is back), `warning` and `note`. With `--save` a last `note` says what was kept.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sidestep.cli.earlier import earlier_text
from sidestep.cli.joined_requests import JoinedRequests
from sidestep.cli.output import LineWriter, json_line
from sidestep.cli.request_text import RequestText, answer_text, event_line, is_wanted
from sidestep.model.text import harmless
from sidestep.tunnel.messages import Answered, AnyEvent, Dropped, Earlier, Ended, Hello, Lost, PodState, Request, State
from sidestep.tunnel.opening import StreamOpening

if TYPE_CHECKING:
    from sidestep.cli.saved_requests import SavedRequests

_ACTIVE = frozenset({"active", "attached"})
LOST = {"dropped": " not at all (no room), of", "truncated": " in part (no room, or its original ended), of"}
"""Text for a copy that reached its handler in part or not at all."""
HELD_BACK = {
    "handler": "the handler refuses them; it is retried at growing intervals",
    "room": "too many wait for the handler",
    "budget": "copying has used its share of the pod proxy's time",
}
"""Text for the reason why copies are not made."""
PATIENCE = 1.0
"""Seconds for which the line of a request waits for its answer."""
_REPEAT = 5.0
"""Seconds during which an identical message is printed once."""


class Report:
    """A `laptop.session.SessionObserver` that prints text. `description` says what is diverted and where to.

    `expected` is the name that the session has unless another one has it. `statuses`: only requests answered so are
    printed; `coloured`: in colours.
    """

    def __init__(
        self,
        writer: LineWriter,
        *,
        description: str,
        noun: str = "Intercept",
        expected: str = "",
        statuses: tuple[str, ...] = (),
        coloured: bool = False,
        saved: SavedRequests | None = None,
    ) -> None:
        self._writer = writer
        self._saved = saved
        self._text = RequestText(coloured=coloured)
        self._requests = JoinedRequests(self._request, statuses=statuses, patience=PATIENCE)
        self._noun = noun
        self._verb = "copied" if noun == "Wiretap" else "diverted"
        self._description = description
        self._expected = expected
        self._name = ""
        self._pods: dict[str, PodState] = {}
        self._conditions: set[tuple[str, str, str]] = set()
        self._told: dict[str, float] = {}
        self._noted: set[str] = set()
        self._lost: dict[tuple[str, str], tuple[int, float | None]] = {}
        """(pod, reason) to the number of lost copies not printed yet, and the time of the last message."""
        self._interrupted = False
        self.active = asyncio.Event()

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""
        self._name = f"{hello.namespace}/{hello.name}"
        if self._expected and hello.name != self._expected:
            self._line(f"This is {self._noun.lower()}/{hello.name}: another session has the name {self._expected}.")
            self._expected = ""

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        if self._saved is not None:
            self._saved.event(event)
        match event:
            case State():
                self._state(event)
            case Request():
                self._requests.request(event)
            case Answered():
                self._requests.answered(event)
            case Earlier():
                if text := earlier_text(event):
                    self._line(text)
            case Lost():
                self._report_lost(event)
            case Dropped():
                self._line(f"{event.count} request lines were dropped: they came faster than they could be printed")
            case Ended():
                self._requests.close()
                self._line(f"{self._noun} {self._name} {event.reason}.")

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self._requests.interrupted()
        if self._saved is not None:
            self._saved.interrupted()
        if self._interrupted:
            return
        self._interrupted = True
        self._pods = {}
        self._line(f"{self._noun} {self._name} is interrupted: {reason}. Requests go to the workload until it is back.")

    def close(self) -> None:
        """Print the requests that wait for their answers, and finish the file of those that are saved."""
        self._requests.close()
        if self._saved is not None:
            self._line(self._saved.close())
            self._saved = None

    def note(self, text: str) -> None:
        """As SessionObserver.note."""
        if text not in self._noted:
            self._noted.add(text)
            self._line(text)

    def handler_absent(self, reason: str) -> None:
        """As Reporter.handler_absent."""
        self._line(f"Warning: {reason}; nothing is {self._verb} until one does.")

    def _request(self, event: Request, late: bool) -> None:
        verb = f"copied{LOST.get(event.lost, '')}" if event.copied else "from"
        verb = "earlier, from" if event.earlier else verb
        request = f"{event.method} {event.path}" if event.method else "a connection or the rest of a request"
        self._writer.line(request_line(self._text, event, request, f"{verb} {address(event)}", late=late))

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""
        now = time.monotonic()
        if now - self._told.get(reason, now - _REPEAT) >= _REPEAT:
            self._told = {text: when for text, when in self._told.items() if now - when < _REPEAT}
            self._told[reason] = now
            self._line(f"Not {self._verb}, from {opening.client}: {reason}")

    def _report_lost(self, event: Lost) -> None:
        """Print lost copies when they begin, then their number every few seconds."""
        which = event.pod, event.reason
        count, told_at = self._lost.pop(which, (0, None))
        count += event.count
        now = time.monotonic()
        if told_at is None or now - told_at >= _REPEAT:
            reason = HELD_BACK.get(event.reason, event.reason)
            copies = "1 copy was" if count == 1 else f"{count} copies were"
            self._line(f"{copies} not made of requests to pod {event.pod}: {reason}")
            count, told_at = 0, now
        self._lost[which] = count, told_at

    def _state(self, state: State) -> None:
        now = {pod.pod: pod for pod in state.pods}
        before = {name for name, pod in self._pods.items() if pod.state in _ACTIVE}
        active = {name for name, pod in now.items() if pod.state in _ACTIVE}
        count = f"{len(active)} pod" if len(active) == 1 else f"{len(active)} pods"
        if active and not self.active.is_set():
            self.active.set()
            self._line(f"{self._noun} {self._name} is active on {count}: {self._description}. Ctrl-C ends it.")
        elif active and self._interrupted:
            self._line(f"{self._noun} {self._name} is active again on {count}.")
        elif active != before:
            for name in sorted(active - before):
                self._line(f"Pod {name} joined: active on {count}.")
            for name in sorted(before - active):
                self._line(f"Pod {name} left: active on {count}.")
        for name, pod in now.items():
            if pod.state not in _ACTIVE and pod != self._pods.get(name):
                self._line(f"Pod {name} is {pod.state}" + (f": {pod.detail}" if pod.detail else "."))
        self._interrupted = self._interrupted and not active
        if not now and (self._pods or not self.active.is_set()):
            self._line(f"{self._noun} {self._name} waits: the workload has no pod here.")
        self._pods = now
        self._lost = {which: lost for which, lost in self._lost.items() if which[0] in now}
        conditions = {(each.type, each.subject, each.text) for each in state.conditions}
        for kind, subject, text in sorted(conditions - self._conditions):
            self._line(f"{kind}: {subject}: {text}")
        self._conditions = conditions

    def _line(self, text: str) -> None:
        self._writer.line(harmless(text))


class JsonReport:
    """A `laptop.session.SessionObserver` that prints JSON lines, of requests only those with one of `statuses`."""

    def __init__(
        self, writer: LineWriter, *, statuses: tuple[str, ...] = (), saved: SavedRequests | None = None
    ) -> None:
        self._writer = writer
        self._saved = saved
        self._statuses = statuses
        self.active = asyncio.Event()

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""
        self._put({"event": "registered", "namespace": hello.namespace, "name": hello.name, "node": hello.node})

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        if isinstance(event, State) and event.active:
            self.active.set()
        if self._saved is not None:
            self._saved.event(event)
        if not isinstance(event, Request | Answered) or is_wanted(event.answer, self._statuses):
            self._writer.line(event_line(event))

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        if self._saved is not None:
            self._saved.interrupted()
        self._put({"event": "interrupted", "reason": reason})

    def note(self, text: str) -> None:
        """As SessionObserver.note."""
        self._put({"event": "note", "text": text})

    def handler_absent(self, reason: str) -> None:
        """As Reporter.handler_absent."""
        self._put({"event": "warning", "text": reason})

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""
        self._put({"event": "refused", "pod": opening.pod, "client": opening.client, "reason": reason})

    def close(self) -> None:
        """Finish the file, if requests are saved."""
        if self._saved is not None:
            self._put({"event": "note", "text": self._saved.close()})
            self._saved = None

    def _put(self, value: object) -> None:
        self._writer.line(json_line(value))


def request_line(text: RequestText, event: Request, request: str, origin: str, *, late: bool) -> str:
    """Make the line of a request. `late`: it was printed before, without its answer."""
    answer = answer_text(event.answer)
    if not answer and event.number:
        answer = "not answered yet"
    elif late:
        answer = f"answered late: {answer}"
    rest = f"{origin}  pod {event.pod}" + (f"  trace {event.trace}" if event.trace else "")
    status = None if event.answer is None else event.answer.status
    return text.line(clock(event.time), request, answer, rest, status=status)


def clock(seconds: float) -> str:
    """Format the time of day; `seconds` since the epoch. A capture may state times that no calendar has."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return "--:--:--"


def address(event: Request) -> str:
    """Format the client's address and port."""
    return f"[{event.client}]:{event.client_port}" if ":" in event.client else f"{event.client}:{event.client_port}"
