"""The alerts that a daemon has seen last, by the id that a refused client was told: for `sidestep policy except`.

They are kept as the lines that the log has, and bounded: MAX_IDS exchanges, the oldest of which go first, MAX_EACH
alerts of each, MAX_BYTES together. What an IDS found has no id, and is not kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.protocols.eve_records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_IDS: Final = 1024
MAX_EACH: Final = 16
MAX_BYTES: Final = 1024 * 1024

_DECODER: Final = msgspec.json.Decoder(Record)


class RecentAlerts:
    """See the module."""

    def __init__(self) -> None:
        self._lines: dict[str, dict[tuple[str | None, ...], bytes]] = {}
        """By id, oldest first; of each id by policy, rule and pattern."""
        self._size = 0

    def __len__(self) -> int:
        return len(self._lines)

    def note(self, record: Record, line: bytes) -> None:
        """Keep a record that is an alert, or an `http` record of a rule, and has an id."""
        decided = record.sidestep
        if decided is None or decided.id is None or decided.policy is None or record.fileinfo is not None:
            return
        key = (decided.policy, decided.rule, decided.pattern)
        mine = self._lines.setdefault(decided.id, {})
        if key in mine or len(mine) >= MAX_EACH:
            return
        mine[key] = line
        self._size += len(line)
        while len(self._lines) > 1 and (len(self._lines) > MAX_IDS or self._size > MAX_BYTES):
            oldest = self._lines.pop(next(iter(self._lines)))
            self._size -= sum(map(len, oldest.values()))

    def of(self, exchange: str) -> Iterator[Record]:
        """The records of an id, in the order in which they came."""
        return map(_DECODER.decode, self._lines.get(exchange, {}).values())
