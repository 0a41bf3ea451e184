"""Calls to the daemon that are not answered yet.

Each call ends exactly once:

    finish       its answer has come; the owner finishes it and tells the caller
    cancel       the caller does not want the answer any more
    unanswered   the call could not be made, or was not answered within `patience` seconds, or the daemon has become
                 silent (`daemon_breaker`). The owner's `unanswered(number)` is called, and finishes it

While the daemon is silent no call is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.messages import Message
from sidestep.proxy.io.loop import Loop, Timer

Caller = TypeVar("Caller")


class PendingCalls(Generic[Caller]):
    """Pending calls of one kind, by a number of the owner's choice; with each, the caller that gets the answer."""

    def __init__(self, loop: Loop, link: DaemonLink, *, patience: float, unanswered: Callable[[int], None]) -> None:
        self._loop = loop
        self._link = link
        self._patience = patience
        self._unanswered = unanswered
        self._pending: dict[int, tuple[Caller, Timer]] = {}
        link.breaker.call_on_silence(self._give_up)

    def call(self, number: int, message: Message, caller: Caller) -> bool:
        """Make a call; return whether it was sent. If not, `unanswered` is called soon."""
        self._pending[number] = caller, self._loop.later(self._patience, lambda: self._unanswered(number))
        link = self._link
        sent = not link.breaker.is_silent and not link.is_backlogged and link.send(message)
        if sent:
            link.breaker.called(message.seq)
        else:
            self._loop.later(0.0, lambda: self._unanswered(number))
        return sent

    def finish(self, number: int) -> Caller | None:
        """End a call; returns its caller, None if it has ended before."""
        caller, timer = self._pending.pop(number, (None, None))
        if timer is not None:
            timer.cancel()
        return caller

    def cancel(self, number: int) -> None:
        """End a call whose answer is not wanted any more."""
        self.finish(number)

    def __len__(self) -> int:
        return len(self._pending)

    def numbers(self) -> list[int]:
        """The numbers of the pending calls."""
        return list(self._pending)

    def _give_up(self) -> None:
        for number in self.numbers():
            self._unanswered(number)
