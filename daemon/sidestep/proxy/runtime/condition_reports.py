"""Tells the daemon of conditions that connections of a port meet, and takes them back.

A condition is told when it is first met and when its text changes; the first connection that does not meet it takes it
back. Clients choose which connections meet a condition, and could make it come and go a thousand times a second. So for
PAUSE seconds after it was told it is neither reworded nor taken back. What should have been taken back in that time is
taken back after it, unless the condition was met again.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from sidestep.model.condition import ConditionType
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.messages import Report
from sidestep.proxy.io.loop import Loop

PAUSE: Final = 1.0
"""Seconds in which a condition that holds is neither reworded nor taken back."""
MAX_TEXT: Final = 2048
"""Characters of a condition's text."""


class ConditionReports:
    """Reports of all ports; what was told of a port is kept with it (`LivePort.conditions`)."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link

    def report(self, port: LivePort, kind: ConditionType, text: str) -> None:
        """Tell of a condition; an empty `text` takes it back. Unprintable characters become "?": clients are quoted."""
        text = "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_TEXT])
        known = port.conditions.get(kind, "")
        if text:
            port.clearing.discard(kind)
        if known == text:
            return
        if known and self._loop.now - port.reported.get(kind, -PAUSE) < PAUSE:
            if not text and kind not in port.clearing:
                port.clearing.add(kind)
                self._loop.later(PAUSE, partial(self._clear, port, kind))
            return
        port.reported[kind] = self._loop.now
        if not self._link.advise(Report(self._link.next_seq(), port.steered.number, kind.value, text)):
            return  # the next connection that meets it says so again
        if text:
            port.conditions[kind] = text
        else:
            port.conditions.pop(kind, None)

    def _clear(self, port: LivePort, kind: ConditionType) -> None:
        """Take a condition back that no connection has met since."""
        if kind in port.clearing:
            port.clearing.discard(kind)
            self.report(port, kind, "")
