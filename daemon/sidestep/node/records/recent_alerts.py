"""The alerts that a daemon has seen last, by the id that a refused client was told: for `sidestep policy except`.

They are kept as the lines that the log has, and bounded: MAX_EXCHANGES exchanges, the oldest of which go first,
MAX_EACH alerts of each, MAX_BYTES together. What an IDS found has no id, and is not kept.

Pod proxies make the ids, and are not trusted: several pods may tell of the same id. Their exchanges are kept apart, so
that none takes the room of another's alerts of that id, and whoever asks for it chooses among them
(`alert_changes.of_one_exchange`). The bounds are those of the daemon: a pod with many alerts takes the room of the
older ones of all pods, which stand in the EVE log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sidestep.protocols.eve_records import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EXCHANGES: Final = 1024
MAX_EACH: Final = 16
MAX_BYTES: Final = 1024 * 1024

_DECODER: Final = msgspec.json.Decoder(Record)


class RecentAlerts:
    """See the module."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, str, int], dict[tuple[str | None, ...], bytes]] = {}
        """By id, namespace and name of the pod, and connection, oldest first; of each by policy, rule and pattern."""
        self._size = 0

    def __len__(self) -> int:
        return len(self._lines)

    def note(self, record: Record, line: bytes) -> None:
        """Keep a record that is an alert, or an `http` record of a rule, and has an id."""
        decided = record.sidestep
        if decided is None or decided.id is None or decided.policy is None or record.fileinfo is not None:
            return
        key = (decided.policy, decided.rule, decided.pattern)
        pod = record.kubernetes
        mine = self._lines.setdefault((decided.id, pod.namespace, pod.pod, record.flow_id or 0), {})
        if key in mine or len(mine) >= MAX_EACH:
            return
        mine[key] = line
        self._size += len(line)
        while len(self._lines) > 1 and (len(self._lines) > MAX_EXCHANGES or self._size > MAX_BYTES):
            oldest = self._lines.pop(next(iter(self._lines)))
            self._size -= sum(map(len, oldest.values()))

    def of(self, exchange: str) -> Iterator[Record]:
        """The records of an id, exchange by exchange."""
        for (named, *_), lines in self._lines.items():
            if named == exchange:
                yield from map(_DECODER.decode, lines.values())
