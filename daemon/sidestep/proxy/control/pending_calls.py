"""What the daemon was asked and has not answered yet: every question ends exactly once.

It ends when whoever has the answer `take`s it, or when its asker `drop`s it. One that stays open for `patience`
seconds, or that cannot be asked at all, is told to `unanswered`, which takes it. So are all when the daemon falls
silent (`daemon_breaker`); until it answers again none is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from sidestep.proxy.control.daemon_link import DaemonLink
from sidestep.proxy.control.messages import Message
from sidestep.proxy.io.loop import Loop, Timer

Asker = TypeVar("Asker")


class PendingCalls(Generic[Asker]):
    """The open questions of one kind, by a number of the owner's; with each, whom its answer is for."""

    def __init__(self, loop: Loop, link: DaemonLink, *, patience: float, unanswered: Callable[[int], None]) -> None:
        self._loop = loop
        self._link = link
        self._patience = patience
        self._unanswered = unanswered
        self._open: dict[int, tuple[Asker, Timer]] = {}
        link.breaker.call_on_silence(self._give_up)

    def ask(self, number: int, message: Message, asker: Asker) -> bool:
        """Open a question; tell whether the daemon was asked."""
        self._open[number] = asker, self._loop.later(self._patience, lambda: self._unanswered(number))
        link = self._link
        asked = not link.breaker.is_silent and not link.is_backlogged and link.send(message)
        if asked:
            link.breaker.asked(message.seq)
        else:
            self._loop.later(0.0, lambda: self._unanswered(number))  # nobody will answer
        return asked

    def take(self, number: int) -> Asker | None:
        """End a question; whom the answer is for, None if it has ended before."""
        asker, timer = self._open.pop(number, (None, None))
        if timer is not None:
            timer.cancel()
        return asker

    def drop(self, number: int) -> None:
        """End a question whose answer is not wanted any more."""
        self.take(number)

    def __len__(self) -> int:
        return len(self._open)

    def numbers(self) -> list[int]:
        """Those of the open questions."""
        return list(self._open)

    def _give_up(self) -> None:
        for number in self.numbers():
            self._unanswered(number)
