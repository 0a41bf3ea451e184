"""What a running session tells: for people, or as JSON lines.

JSON lines are the tunnel's events as they come (`state`, `request`, `dropped`, `ended`), and two of our own:
`registered` (the intercept's name) and `refused` (a diverted connection found no handler).
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from sidestep.cli.output import LineWriter, harmless
from sidestep.tunnel.messages import AnyEvent, Dropped, Ended, Hello, PodState, Request, State
from sidestep.tunnel.opening import StreamOpening

_ACTIVE = frozenset({"active", "attached"})
_REPEAT = 5.0
"""Seconds in which the same refusal is told once."""


class Report:
    """A `laptop.session.Listener` that prints. `description` says what is diverted where."""

    def __init__(self, writer: LineWriter, *, description: str) -> None:
        self._writer = writer
        self._description = description
        self._name = ""
        self._pods: dict[str, PodState] = {}
        self._conditions: set[tuple[str, str, str]] = set()
        self._told: dict[str, float] = {}
        self.active = asyncio.Event()

    def registered(self, hello: Hello) -> None:
        """As Listener.registered."""
        self._name = f"{hello.namespace}/{hello.name}"

    def event(self, event: AnyEvent) -> None:
        """As Listener.event."""
        match event:
            case State():
                self._state(event)
            case Request():
                verb = "copied" if event.copied else "from"
                self._line(
                    f"{_clock(event.time)}  {event.method} {event.path}  {verb} {_address(event)}  pod {event.pod}"
                )
            case Dropped():
                self._line(f"{event.count} request lines were dropped: they came faster than they could be told")
            case Ended():
                self._line(f"Intercept {self._name} {event.reason}.")

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As Listener.handler_refused."""
        now = time.monotonic()
        if now - self._told.get(reason, now - _REPEAT) >= _REPEAT:
            self._told = {text: when for text, when in self._told.items() if now - when < _REPEAT}
            self._told[reason] = now
            self._line(f"Not diverted, from {opening.client}: {reason}")

    def _state(self, state: State) -> None:
        now = {pod.pod: pod for pod in state.pods}
        before = {name for name, pod in self._pods.items() if pod.state in _ACTIVE}
        active = {name for name, pod in now.items() if pod.state in _ACTIVE}
        count = f"{len(active)} pod" if len(active) == 1 else f"{len(active)} pods"
        if active and not self.active.is_set():
            self.active.set()
            self._line(f"Intercept {self._name} is active on {count}: {self._description}. Ctrl-C ends it.")
        elif active != before:
            for name in sorted(active - before):
                self._line(f"Pod {name} joined: active on {count}.")
            for name in sorted(before - active):
                self._line(f"Pod {name} left: active on {count}.")
        for name, pod in now.items():
            if pod.state not in _ACTIVE and pod != self._pods.get(name):
                self._line(f"Pod {name} is {pod.state}" + (f": {pod.detail}" if pod.detail else "."))
        if not now and (self._pods or not self.active.is_set()):
            self._line(f"Intercept {self._name} waits: the workload has no pod here.")
        self._pods = now
        conditions = {(each.type, each.subject, each.text) for each in state.conditions}
        for kind, subject, text in sorted(conditions - self._conditions):
            self._line(f"{kind}: {subject}: {text}")
        self._conditions = conditions

    def _line(self, text: str) -> None:
        self._writer.line(harmless(text))


class JsonReport:
    """A `laptop.session.Listener` that prints JSON lines."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer
        self.active = asyncio.Event()

    def registered(self, hello: Hello) -> None:
        """As Listener.registered."""
        self._put({"event": "registered", "namespace": hello.namespace, "name": hello.name, "node": hello.node})

    def event(self, event: AnyEvent) -> None:
        """As Listener.event."""
        if isinstance(event, State) and event.active:
            self.active.set()
        self._put(event)

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As Listener.handler_refused."""
        self._put({"event": "refused", "pod": opening.pod, "client": opening.client, "reason": reason})

    def _put(self, value: object) -> None:
        self._writer.line(msgspec.json.encode(value).decode())


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _address(event: Request) -> str:
    return f"[{event.client}]:{event.client_port}" if ":" in event.client else f"{event.client}:{event.client_port}"
