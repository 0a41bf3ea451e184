"""Tells sessions of earlier requests (`recent_requests`), once for each session, a few at a time.

    searching   entries are matched, STEP of them in a turn of the loop, the latest first, until `last` are found; those
                older than `since` are left out
    telling     what was found is sent in order of time, STEP lines in a message, a MOMENT apart; what the channel does
                not take is tried again
    over        `messages.Earlier` says how many there were, and whether requests are kept at all

One session is told after the other. One whose rule is gone is told no more. Bounds: a ring's entries for each session
that waits, and the rules of all ports for sessions.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from sidestep.model.shown import MAX_LAST
from sidestep.proxy.control import messages
from sidestep.proxy.mirror.request_log import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidestep.policy.route import Rule
    from sidestep.proxy.control.daemon_link import DaemonLink
    from sidestep.proxy.io.loop import Loop
    from sidestep.proxy.mirror.recent_requests import Entry, RecentRequests

STEP: Final = 32
"""Entries that are matched in one turn, some 20 µs each without regexes, and lines of one message."""
MOMENT: Final = 0.01
"""Seconds between two turns."""
ROOM: Final = messages.MAX_INLINE - 8192
"""Bytes of the lines of one message."""


class RecentPort(Protocol):
    """A port with sessions."""

    recent: RecentRequests
    was_kept: bool
    """Whether requests were kept before its present rules came."""

    def serves(self, uid: str) -> bool:
        """Whether it still has the rule of a session."""


class _Telling:
    """What one session is told."""

    __slots__ = ("count", "entries", "found", "is_kept", "left", "number", "oldest", "port", "rule")

    def __init__(self, port: RecentPort, number: int, rule: Rule, now: float) -> None:
        shown = rule.shown
        self.port = port
        self.number = number
        self.rule = rule
        self.entries: Iterator[Entry] | None = port.recent.latest_first()
        """Those that are yet to be matched; None: all were."""
        self.found: deque[messages.LoggedRequest] = deque()
        """In order of time."""
        self.left = shown.last or MAX_LAST
        self.oldest = now - shown.since if shown.since else 0.0
        self.count = 0
        self.is_kept = port.was_kept

    def search(self, now: float) -> None:
        """Match some more."""
        entries = self.entries
        if entries is None:
            return
        looked = 0
        for entry in islice(entries, STEP):
            looked += 1
            if entry.at < self.oldest:
                continue  # the next one may have come later: it was told at once, and this one with its answer
            line = entry.of(self.rule, now)
            if line is not None:
                self.found.appendleft(line)
                self.count += 1
                self.left -= 1
                if not self.left:
                    looked = 0
                    break
        if looked < STEP:
            self.entries = None

    def next_lines(self) -> list[msgspec.Raw]:
        """What fits into one message, encoded."""
        lines: list[msgspec.Raw] = []
        room = ROOM
        for line in islice(self.found, STEP):
            encoded = encode(line)
            room -= len(encoded)
            if room < 0 and lines:
                break
            lines.append(msgspec.Raw(encoded))
        return lines


class EarlierRequests:
    """See the module."""

    def __init__(self, loop: Loop, link: DaemonLink) -> None:
        self._loop = loop
        self._link = link
        self._queue: deque[_Telling] = deque()

    def tell(self, port: RecentPort, number: int, rule: Rule) -> None:
        """Tell the session of a rule what it is shown of earlier requests to this port."""
        self._queue.append(_Telling(port, number, rule, self._loop.now))
        if len(self._queue) == 1:
            self._loop.later(0.0, self._go_on)

    def _go_on(self) -> None:
        telling = self._queue[0]
        if not telling.port.serves(telling.rule.uid) or self._is_over(telling):
            self._queue.popleft()
        if self._queue and self._link.is_open:
            self._loop.later(MOMENT, self._go_on)
        else:
            self._queue.clear()

    def _is_over(self, telling: _Telling) -> bool:
        if telling.entries is not None:
            telling.search(self._loop.now)
            return False
        lines = telling.next_lines()
        over = len(lines) == len(telling.found)
        told = messages.Earlier(telling.rule.uid, telling.number, telling.count, telling.is_kept)
        earlier = (told,) if over else ()
        raw: Any = tuple(lines)
        message = messages.Requests(self._link.next_seq(), raw, 0, (), earlier)
        if not self._link.send(message, droppable=True):
            return False
        for _ in lines:
            telling.found.popleft()
        return over
