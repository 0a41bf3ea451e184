"""The ring of a steered port: how its latest requests looked and were answered, for sessions that ask for earlier ones.

In: the lines that a flows session gets, or would get. Out: those that match a later session, as lines of its own.

When it is kept. To tell heads and answers costs what a flows session costs, so nothing is kept unless

    somebody looks     a flows session without filter is shown every request of the port: its lines are kept, too
    somebody asked     the annotation `sidestep.dev/recent-requests.PORT`: a rule of the proxy's own (`KEEPER`) takes
                       the place of such a session, while there is none

A ring of requests that nobody looks at, on every steered port, would be cheaper for HTTP/1 only: answers of HTTP/2 can
be told of connections alone whose header blocks were decoded from the first one on.

Invariants: at most ENTRIES requests and SIZE bytes, the oldest go first; secrets are redacted before a line gets here
(`policy.redaction`), bodies never do; what was kept stays until the port is steered no longer, and nowhere else.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.model.filter import Filter
from sidestep.model.shown import MAX_LAST, is_wanted
from sidestep.policy.matching import compile_filter, needle_of
from sidestep.policy.route import Rule
from sidestep.proxy.control.messages import LoggedAnswer, LoggedRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sidestep.policy.route import Fields

ENTRIES: Final = MAX_LAST
"""Requests of one port."""
SIZE: Final = 512 * 1024
"""Bytes of one port."""
_OVERHEAD: Final = 160
"""Bytes of an entry besides its line."""

KEEPER: Final = Rule("", "", compile_filter(Filter()), needle=needle_of(Filter()), heads_only=True)
"""Has lines made for the ring alone. Its uid is no session's: nothing is sent for it."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_LINES: Final = msgspec.msgpack.Decoder(LoggedRequest)
_ANSWERS: Final = msgspec.msgpack.Decoder(LoggedAnswer)


class Entry:
    """One request: its line as MessagePack, its answer likewise if that came later."""

    __slots__ = ("answer", "at", "line", "number")

    def __init__(self, line: bytes, at: float, number: int) -> None:
        self.line = line
        self.at = at
        """When its head came, in monotonic seconds."""
        self.number = number
        """By which its answer is known that is to come; 0: none is."""
        self.answer = b""

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return _OVERHEAD + len(self.line) + len(self.answer)

    def read(self) -> LoggedRequest:
        """The line, with its answer if there is one."""
        line = _LINES.decode(self.line)
        return msgspec.structs.replace(line, answer=_ANSWERS.decode(self.answer)) if self.answer else line

    def of(self, rule: Rule, now: float) -> LoggedRequest | None:
        """The line that a session gets of it; None if it does not match what the session wants, as far as it shows."""
        line = self.read()
        path = line.path.partition("?")[0].encode()
        if not rule.matches(line.method.encode(), path, _fields(line)):
            return None
        if not is_wanted(line.answer.status if line.answer is not None else 0, rule.shown.statuses):
            return None
        age = max(0.0, now - self.at)
        return msgspec.structs.replace(line, uid=rule.uid, copied=True, age=age, number=0, earlier=True)


class RecentRequests:
    """See the module."""

    def __init__(self, *, entries: int = ENTRIES, size: int = SIZE) -> None:
        self.source: str | None = None
        """The uid of the rule whose lines are kept; None: nothing is kept at present."""
        self._most = entries
        self._room = size
        self._entries: deque[Entry] = deque()
        self._waiting: dict[int, Entry] = {}
        """Those whose answers are to come, by number."""

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, line: LoggedRequest, now: float) -> None:
        """Keep a line of `source`, or the answer to one."""
        if line.is_answer:
            self._answer(line)
            return
        entry = Entry(_ENCODER.encode(line), now - line.age, line.number)
        self._entries.append(entry)
        self._room -= entry.size
        if line.number:
            self._waiting[line.number] = entry
        self._evict()

    def latest_first(self) -> Iterator[Entry]:
        """Those that are kept now: what is added or goes meanwhile changes nothing."""
        return reversed([*self._entries])

    def clear(self) -> None:
        """Forget everything, and keep nothing more."""
        self.source = None
        self._room += sum(entry.size for entry in self._entries)
        self._entries.clear()
        self._waiting.clear()

    def _answer(self, line: LoggedRequest) -> None:
        entry = self._waiting.pop(line.number, None)
        if entry is not None and line.answer is not None:
            entry.answer = _ENCODER.encode(line.answer)
            self._room -= len(entry.answer)
            self._evict()

    def _evict(self) -> None:
        while self._entries and (len(self._entries) > self._most or self._room < 0):
            oldest = self._entries.popleft()
            self._room += oldest.size
            self._waiting.pop(oldest.number, None)


def _fields(line: LoggedRequest) -> Fields:
    """As filters are asked: `host` stands for `:authority`."""
    fields = [(name.encode(), value.encode()) for name, value in line.fields]
    if line.authority and not any(name == b"host" for name, _ in fields):
        fields.append((b"host", line.authority.encode()))
    return fields
