"""HPACK for a relay (RFC 7541): a decoder whose state is a value, and an encoder that needs no state at all.

`State` is immutable: the dynamic table, its size and capacity, and what SETTINGS allow. `decode(state, block)` is a
pure function to a `Block`: the fields, which of them are never-indexed, the size updates at its head, and the state
after it. A caller may go back to an earlier state simply by keeping it.

Because decoding is pure it can be remembered. `Memo` maps (state, block) to `Block`, and two connections whose clients
sent the same blocks hold the same state *object*, the canonical one for that history: it came out of the memo. A gRPC
client that repeats its call repeats one block in one state, and decoding costs a dictionary lookup. The memo is bounded
in bytes and emptied when full: rebuilding what is hot costs one decoding each.

Strict: one error, `HpackError`, for an index outside the tables, an integer over five continuation bytes, a truncated
or badly padded string, a size update anywhere but at the head or above what SETTINGS allow, and a block that begins
without the update it owes after SETTINGS lowered the capacity (4.2). The list it decodes to is bounded too: a table
entry of 4 KiB named by every byte of a block is how 64 KiB become 256 MiB.

The encoder writes literals without indexing, and an index for a field that the static table holds with its value.
Neither changes a table, so the encoder can write into a compression context that somebody else owns. `hpack_table` has
one that owns its context.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from sidestep.model.errors import PeerError
from sidestep.protocols import hpack_huffman
from sidestep.protocols.hpack_static import LAST_STATIC, STATIC, STATIC_FIELDS, STATIC_NAMES, Field

DEFAULT_CAPACITY: Final = 4096
"""Bytes of the dynamic table at the start of a connection (SETTINGS_HEADER_TABLE_SIZE, RFC 9113 section 6.5.2)."""
ENTRY: Final = 32
"""Bytes that a table entry or list field counts beyond its name and value (RFC 7541 section 4.1)."""
COMPRESSION_ERROR: Final = 9
LARGE: Final = 64 * 1024
"""Bytes of a list (as SETTINGS_MAX_HEADER_LIST_SIZE counts) above which a block is marked: too much to be matched."""
REMEMBERED: Final = 64 * 1024
"""Bytes of the longest block that a memo keeps."""
CONTINUATION_BYTES: Final = 5
"""Bytes of an integer after its prefix; enough for 32 bits, more is refused."""
BLOCK_COST: Final = 512
"""Bytes that one remembered block costs in objects, measured roughly, beyond its strings."""

SHORT_VALUE: Final = 128
"""Bytes of a value up to which the written field is worth remembering."""
WRITTEN: Final = 1024
"""Written fields remembered."""
MET: Final = 4096
"""Blocks met once of which a memo keeps the hash."""
EMPTY: Final = 64
"""Empty tables, one for each capacity that is met, that a memo keeps."""

LONGEST_STATIC: Final = max(len(name) + len(value) for name, value in STATIC)
"""Bytes of the longest field of the static table."""
PATH: Final = b":path"
_PATH_FOLLOWS: Final = bytes((STATIC_NAMES[PATH],))
"""A literal path without indexing begins (section 6.2.2)."""
LONGEST_KNOWN_PATH: Final = max(len(value) for name, value in STATIC if name == PATH)
"""Bytes of the longest path that the static table holds whole."""
BYTES: Final = [bytes((number,)) for number in range(0x7F)]
"""Lengths that fit their prefix of seven bits."""
NONE: Final[frozenset[int]] = frozenset()


class HpackError(PeerError):
    """A header block that cannot be decoded, or decodes to more than the limit."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, code=COMPRESSION_ERROR)


class ListTooLargeError(HpackError):
    """A sound block whose list is over the limit. The stream cannot go on, the connection can: with `state`.

    `updates` are the block's size updates, as in `Block`.
    """

    def __init__(self, state: State, updates: tuple[int, int] | None) -> None:
        self.state = state
        self.updates = updates
        super().__init__("header list over the limit")


class State:
    """A decoder between two blocks. `entries` oldest first; `floor` is the capacity that an update owes, or -1."""

    __slots__ = ("allowed", "capacity", "entries", "floor", "size")

    def __init__(self, entries: tuple[Field, ...], size: int, capacity: int, allowed: int, floor: int) -> None:
        self.entries = entries
        self.size = size
        self.capacity = capacity
        self.allowed = allowed
        self.floor = floor

    def with_allowed(self, allowed: int) -> State:
        """The state after SETTINGS_HEADER_TABLE_SIZE was acknowledged; this one when nothing changes."""
        floor = self.floor
        if allowed < self.capacity:
            floor = allowed if floor < 0 else min(floor, allowed)
        if allowed == self.allowed and floor == self.floor:
            return self
        return State(self.entries, self.size, self.capacity, allowed, floor)


def with_added(state: State, states: Iterable[State]) -> State:
    """A decoder that has read, after `state`, blocks that do not refer to its table and do not change its capacity.

    `states` are those in which they would leave a decoder of the same capacity with an empty table.
    """
    entries = list(state.entries)
    size = state.size
    for each in states:
        entries += each.entries
        size += each.size
    first, size = _evict(entries, 0, size, state.capacity)
    return State(tuple(entries[first:]), size, state.capacity, state.allowed, state.floor)


INITIAL: Final = State((), 0, DEFAULT_CAPACITY, DEFAULT_CAPACITY, -1)
"""The state in which every connection begins."""


class Block:
    """One decoded header block. `note`, `shown`, `lines` and `cleared` belong to the caller; they live and die with
    what is remembered.
    """

    __slots__ = (
        "_literal",
        "_size",
        "cleared",
        "fields",
        "large",
        "lines",
        "never",
        "note",
        "shown",
        "state",
        "updates",
    )

    def __init__(
        self, fields: tuple[Field, ...], never: frozenset[int], updates: tuple[int, int] | None, state: State
    ) -> None:
        self.fields = fields
        self.never = never
        """Positions of the fields that must never be indexed."""
        self.updates = updates
        """(smallest, last) size update at the head of the block."""
        self.state = state
        """The state after this block."""
        self.large = False
        """Its list is over `LARGE`."""
        self.note: Any = None
        self.shown: Any = None
        self.lines: bytes | None = None
        self.cleared: object = None
        self._literal: bytes | None = None
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of its list; see `list_size`."""
        if not self._size:
            self._size = list_size(self.fields)
        return self._size

    @property
    def literal(self) -> bytes:
        """The fields as literals without indexing, never-indexed ones marked so."""
        if self._literal is None:
            self._literal = encode(self.fields, self.never)
        return self._literal


def decode(state: State, block: bytes, *, list_limit: int, table_limit: int) -> Block:
    """Decode a whole header block.

    `list_limit` bounds the list (bytes, as SETTINGS_MAX_HEADER_LIST_SIZE counts), `table_limit` the capacity that a
    size update may ask for whatever SETTINGS allow. Raises HpackError; ListTooLargeError when only
    the list is too long.
    """
    try:
        return _decode(state, block, list_limit, table_limit)
    except IndexError:
        raise HpackError("truncated header block") from None
    except ValueError as error:
        raise HpackError(str(error)) from None


def _decode(state: State, block: bytes, list_limit: int, table_limit: int) -> Block:
    # Hot for clients whose paths differ: locals, one list for the table once it changes, the list's size at the end.
    position = 0
    updates = None
    capacity = state.capacity
    table: Any = state.entries
    size = state.size
    first = 0  # entries before it are evicted
    if state.floor >= 0 or (block and block[0] & 0xE0 == 0x20):
        updates, position = _updates(state, block, table_limit)
        capacity = updates[1]
        first, size = _evict(table, 0, size, updates[0])
    never = NONE
    fields: list[Field] = []
    append = fields.append
    end = len(block)
    while position < end:
        byte = block[position]
        position += 1
        if byte >= 0x80:
            index = byte & 0x7F
            if index == 0x7F:
                index, position = _integer(block, position, index)
            if index <= LAST_STATIC:
                if not index:
                    raise HpackError("index 0")
                append(STATIC[index])
            else:
                index -= LAST_STATIC
                if index > len(table) - first:
                    raise HpackError("index outside the dynamic table")
                append(table[-index])
            continue
        field, position = _literal(block, position, byte, table, first)
        if byte >= 0x40:
            if table is state.entries:
                table = list(table)
            table.append(field)
            size += ENTRY + len(field[0]) + len(field[1])
            if size > capacity:
                first, size = _evict(table, first, size, capacity)
        elif byte >= 0x10:
            never |= {len(fields)}
        append(field)
    largest = max(capacity, state.capacity)
    if table is not state.entries or updates is not None:
        state = State(tuple(table[first:]), size, capacity, state.allowed, -1)
    result = Block(tuple(fields), never, updates, state)
    if _may_exceed(len(fields), largest, end, min(list_limit, LARGE)):
        _judge_size(result, list_limit)
    return result


def _judge_size(block: Block, limit: int) -> None:
    """Mark a large block. Raises ListTooLargeError."""
    size = list_size(block.fields)
    if size > limit:
        raise ListTooLargeError(block.state, block.updates)
    block.large = size > LARGE


def _may_exceed(count: int, capacity: int, size: int, limit: int) -> bool:
    """Whether a list of `count` fields out of a block of `size` bytes may be above the limit.

    An entry of the dynamic table is no larger than its capacity, and no Huffman code shorter than five bits. Most lists
    need not be added up (0.6 µs for ten fields).
    """
    return count * (ENTRY + LONGEST_STATIC + capacity) + 2 * size > limit


def list_size(fields: Iterable[Field]) -> int:
    """Bytes of a list as SETTINGS_MAX_HEADER_LIST_SIZE counts them (RFC 9113 section 6.5.2)."""
    total = 0
    for name, value in fields:
        total += ENTRY + len(name) + len(value)
    return total


def _literal(block: bytes, position: int, byte: int, table: Sequence[Field], first: int) -> tuple[Field, int]:
    """Read a literal field whose first byte has been read (section 6.2): (field, position after it)."""
    if byte >= 0x40:
        mask = 0x3F
    elif byte >= 0x20:
        raise HpackError("size update after a field")
    else:
        mask = 0x0F
    index = byte & mask
    if index == mask:
        index, position = _integer(block, position, mask)
    if not index:
        name, position = _string(block, position)
    elif index <= LAST_STATIC:
        name = STATIC[index][0]
    elif index - LAST_STATIC <= len(table) - first:
        name = table[LAST_STATIC - index][0]
    else:
        raise HpackError("index outside the dynamic table")
    value, position = _string(block, position)
    return (name, value), position


def _updates(state: State, block: bytes, table_limit: int) -> tuple[tuple[int, int], int]:
    """Read the size updates at the head: ((smallest, last), position after them)."""
    position = 0
    smallest = last = -1
    while position < len(block) and block[position] & 0xE0 == 0x20:
        last = block[position] & 0x1F
        position += 1
        if last == 0x1F:
            last, position = _integer(block, position, last)
        if last > state.allowed:
            raise HpackError("size update above what SETTINGS allow")
        if last > table_limit:
            raise HpackError("size update above our limit")
        smallest = last if smallest < 0 else min(smallest, last)
    if smallest < 0 or 0 <= state.floor < smallest:
        raise HpackError("no size update after SETTINGS lowered the capacity")
    return (smallest, last), position


def _evict(table: Sequence[Field], first: int, size: int, capacity: int) -> tuple[int, int]:
    """Drop the oldest entries until the size fits: (index of the first one left, size)."""
    while size > capacity:
        name, value = table[first]
        size -= ENTRY + len(name) + len(value)
        first += 1
    return first, size


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    """Read the rest of an integer whose prefix is all ones (section 5.1). Raises IndexError when it is cut short."""
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift >= 7 * CONTINUATION_BYTES:
            raise HpackError("integer too long")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Read a string literal (section 5.2). Raises IndexError when it is cut short, ValueError on bad Huffman code."""
    byte = block[position]
    position += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, length)
    stop = position + length
    if stop > len(block):
        raise IndexError
    text = block[position:stop]
    if byte >= 0x80:
        text = hpack_huffman.decode(text)
    return text, stop


def integer(value: int, bits: int, pattern: int) -> bytes:
    """Encode an integer with a prefix of `bits` bits, or-ed with `pattern` (section 5.1)."""
    mask = (1 << bits) - 1
    if value < mask:
        return bytes((pattern | value,))
    result = bytearray((pattern | mask,))
    value -= mask
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def size_updates(smallest: int, last: int) -> bytes:
    """The updates that begin a block: the last one alone, or the smallest before it (section 4.2)."""
    if smallest < last:
        return integer(smallest, 5, 0x20) + integer(last, 5, 0x20)
    return integer(last, 5, 0x20)


def encode(fields: Iterable[Field], never: frozenset[int] = NONE) -> bytes:
    """A header block that changes no table: static indexes where a field is there whole, else plain literals."""
    parts: list[bytes] = []
    append = parts.append
    for position, field in enumerate(fields):
        size = len(field[1])
        if never and position in never:
            append(written(field, 0x10))
        elif size > SHORT_VALUE:
            append(written(field, 0x00))
        elif LONGEST_KNOWN_PATH < size < 0x7F and field[0] == PATH:
            # Paths differ from request to request: not worth remembering (measured: 2 µs less per block).
            append(_PATH_FOLLOWS + BYTES[size] + field[1])
        else:
            append(_write(field))
    return b"".join(parts)


def written(field: Field, pattern: int, bits: int = 4) -> bytes:
    """One field as a literal (section 6.2): `pattern` 0x00 without indexing, 0x10 never to be indexed, or 0x40, which
    leaves 6 `bits` to the index of the name, with incremental indexing."""
    name, value = field
    index = STATIC_NAMES.get(name, 0)
    start = integer(index, bits, pattern)
    if not index:
        start += integer(len(name), 7, 0) + name
    return start + integer(len(value), 7, 0) + value


@lru_cache(WRITTEN)
def _write(field: Field) -> bytes:
    index = STATIC_FIELDS.get(field, 0)
    if index:
        return bytes((0x80 | index,))
    return written(field, 0x00)


class Memo:
    """What was decoded before, by every connection that shares this memo. Bounded in bytes (`limit`).

    A block is kept the second time it is met: of the first time only a hash is noted (`_met`), so that paths which are
    all different pass by without filling the memo (measured: 16 µs against 20 for such a request, both ways).
    """

    __slots__ = ("_blocks", "_empty", "_met", "_states", "limit", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._blocks: dict[tuple[State, bytes], Block] = {}
        self._states: dict[tuple[State, int], State] = {}
        self._met: set[int] = set()
        self._empty: dict[tuple[int, int], State] = {}

    def recall(self, state: State, data: bytes) -> Block | None:
        """The block, if it is remembered."""
        return self._blocks.get((state, data))

    def decode(self, state: State, data: bytes, *, list_limit: int, table_limit: int) -> Block:
        """As `decode`. The limits must be the same for all users of one memo. Raises HpackError."""
        key = (state, data)
        block = self._blocks.get(key)
        if block is not None:
            return block
        block = decode(state, data, list_limit=list_limit, table_limit=table_limit)
        if len(data) > REMEMBERED:
            return block
        digest = hash(key)
        if digest in self._met:
            cost = BLOCK_COST + 3 * len(data)
            if block.state is not state:
                cost += 8 * len(block.state.entries)
            self._charge(cost)
            self._blocks[key] = block
        else:
            if len(self._met) >= MET:
                self._met.clear()
            self._met.add(digest)
        return block

    def empty(self, capacity: int, allowed: int) -> State:
        """A state with an empty table, the same object for all who ask."""
        key = (capacity, allowed)
        made = self._empty.get(key)
        if made is None:
            if len(self._empty) >= EMPTY:
                self._empty.clear()
            made = self._empty[key] = State((), 0, capacity, allowed, -1)
        return made

    def with_allowed(self, state: State, allowed: int) -> State:
        """As `State.with_allowed`, giving every connection the same object."""
        key = (state, allowed)
        changed = self._states.get(key)
        if changed is None:
            changed = state.with_allowed(allowed)
            self._charge(BLOCK_COST)
            self._states[key] = changed
        return changed

    def _charge(self, cost: int) -> None:
        self.size += cost
        if self.size > self.limit:
            self._blocks.clear()
            self._states.clear()
            self.size = cost
