"""The HPACK table of a decoder elsewhere, kept by whoever writes to it (RFC 7541).

`sidestep.protocols.hpack.encode` needs no table and changes none. `DynamicTable` is for a writer that has the decoder
for itself: a field that is in the table is written as its index, one that may be is added to it. What may be, the
caller says, because a field that its sender keeps out of tables has a reason (section 7.1).

Invariant: after each `encode`, and after each `resize` whose updates were written, entries, order and sizes are those
that the decoder has once it has read everything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from sidestep.protocols.hpack import ENTRY, State, encode, integer, written
from sidestep.protocols.hpack_static import LAST_STATIC, STATIC_FIELDS, Field

_INDEXED: Final = [integer(index, 7, 0x80) for index in range(256)]
"""Indexed fields (section 6.1) by their index."""


class DynamicTable:
    """See the module. It begins as the decoder of `state` does."""

    __slots__ = ("_entries", "_inserted", "_numbers", "_size", "capacity")

    def __init__(self, state: State) -> None:
        self._entries: deque[Field] = deque(state.entries)
        self._inserted = len(state.entries)
        """Fields that were ever added: the newest has this number, the one before it the number before it."""
        self._numbers = {field: number for number, field in enumerate(state.entries, 1)}
        """Of a field that is there twice, the later one."""
        self._size = state.size
        self.capacity = state.capacity

    def equals(self, state: State) -> bool:
        """Whether a decoder in that state holds the same."""
        same_shape = self._size == state.size and self.capacity == state.capacity
        return same_shape and len(self._entries) == len(state.entries) and tuple(self._entries) == state.entries

    def resize(self, smallest: int, last: int) -> None:
        """Take size updates into account, which the caller writes (section 4.2)."""
        self._shrink(smallest)
        self.capacity = last

    def encode(
        self,
        fields: Iterable[Field],
        never: frozenset[int],
        *,
        new: AbstractSet[Field],
        earlier: AbstractSet[Field] = frozenset(),
    ) -> bytes:
        """Write a block. Fields in `new` or `earlier` may be added; those at the positions in `never` are marked so."""
        parts: list[bytes] = []
        append = parts.append
        numbers = self._numbers
        for position, field in enumerate(fields):
            number = numbers.get(field, 0)
            if never and position in never:
                append(written(field, 0x10))
            elif number:
                index = LAST_STATIC + 1 + self._inserted - number
                append(_INDEXED[index] if index < len(_INDEXED) else integer(index, 7, 0x80))
            elif field in STATIC_FIELDS or (field not in new and field not in earlier):
                append(encode((field,)))
            else:
                append(self._add(field))
        return b"".join(parts)

    def _add(self, field: Field) -> bytes:
        """A literal with incremental indexing (section 6.2.1)."""
        size = ENTRY + len(field[0]) + len(field[1])
        self._shrink(self.capacity - size)
        if size <= self.capacity:
            self._entries.append(field)
            self._inserted += 1
            self._numbers[field] = self._inserted
            self._size += size
        return written(field, 0x40, 6)

    def _shrink(self, size: int) -> None:
        """Drop the oldest entries until no more than `size` bytes are left, or nothing (section 4.4)."""
        while self._entries and self._size > size:
            field = self._entries.popleft()
            self._size -= ENTRY + len(field[0]) + len(field[1])
            if self._numbers[field] == self._inserted - len(self._entries):
                del self._numbers[field]
