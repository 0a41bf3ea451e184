"""What commands share that run a session for each port of a workload, without a handler: sessions and reports."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sidestep.cli.filtering import filter_spec
from sidestep.cli.foreground import claimed_owner
from sidestep.tunnel.messages import AnyEvent, Ended, SessionSpec, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidestep.model.filter import Filter
    from sidestep.tunnel.messages import Hello
    from sidestep.tunnel.opening import StreamOpening


def port_specs(ports: Iterable[str], wanted: Filter, **wants: Any) -> list[SessionSpec]:
    """Return the session of each port for the requests that match; `wants` are further fields of a `SessionSpec`."""
    owner = claimed_owner()
    fields = {"kind": "wiretap", "name": "", "claimed_owner": owner, **filter_spec(wanted), **wants}
    return [SessionSpec(port=port, **fields) for port in ports]


class _PortObserver:
    """The `laptop.session.SessionObserver` of one port's session."""

    def __init__(self, report: PortSessionsReport) -> None:
        self._report = report
        self._active = False

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self._report.interrupted(reason)

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""

    def note(self, text: str) -> None:
        """As SessionObserver.note."""
        self._report.note(text)

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        self._report.event(event)
        if isinstance(event, State) and event.active and not self._active:
            self._active = True
            self._report.joined()


class PortSessionsReport:
    """A `foreground.Reporter`. `text`, if there is one, is said once all sessions are active; each condition is said
    once.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._said: set[tuple[str, str, str]] = set()
        self._noted: set[str] = set()
        self._waiting = 0
        self.active = asyncio.Event()

    def say(self, text: str) -> None:
        """Print a line."""
        raise NotImplementedError

    def observer(self) -> _PortObserver:
        """Return the observer of one session."""
        self._waiting += 1
        return _PortObserver(self)

    def joined(self) -> None:
        """Record that one more session is active."""
        self._waiting -= 1
        if not self._waiting:
            self.active.set()
            if self._text:
                self.say(self._text)

    def registered(self, hello: Hello) -> None:
        """As SessionObserver.registered."""

    def interrupted(self, reason: str) -> None:
        """As SessionObserver.interrupted."""
        self.say(f"Interrupted: {reason}.")

    def handler_refused(self, opening: StreamOpening, reason: str) -> None:
        """As SessionObserver.handler_refused."""

    def note(self, text: str) -> None:
        """As SessionObserver.note; the sessions of several ports have the same to say."""
        if text not in self._noted:
            self._noted.add(text)
            self.say(text)

    def handler_absent(self, reason: str) -> None:
        """As Reporter.handler_absent."""
        self.say(f"Warning: {reason}")

    def event(self, event: AnyEvent) -> None:
        """As SessionObserver.event."""
        match event:
            case State():
                for each in event.conditions:
                    line = (each.type, each.subject, each.text)
                    if line not in self._said:
                        self._said.add(line)
                        self.say(": ".join(line))
            case Ended():
                self.say(f"Ended: {event.reason}.")
