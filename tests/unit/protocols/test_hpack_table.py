"""An encoder with a table, read by another implementation's decoder."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols.hpack import INITIAL, NONE, State, decode, size_updates
from sidestep.protocols.hpack_table import DynamicTable

LIMITS = {"list_limit": 1 << 20, "table_limit": 1 << 16}

names = st.sampled_from([b":path", b":authority", b"accept", b"x-a", b"x-b", b"cookie"])
values = st.one_of(st.sampled_from([b"", b"/", b"v", b"w" * 60]), st.binary(max_size=200))
blocks = st.lists(
    st.tuples(st.tuples(names, values), st.sampled_from(["new", "earlier", "plain", "never"])), max_size=8
)
steps = st.lists(st.one_of(blocks, st.tuples(st.integers(0, 300), st.integers(0, 300))), max_size=12)


def test_a_field_that_may_be_added_is_an_index_the_next_time():
    table = DynamicTable(INITIAL)
    field = (b"x-token", b"t" * 40)
    first = table.encode([field], NONE, new={field})
    assert first[0] == 0x40
    assert table.encode([field], NONE, new=frozenset()) == b"\xbe"
    assert decode(decode(INITIAL, first, **LIMITS).state, b"\xbe", **LIMITS).fields == (field,)


@pytest.mark.parametrize("field", [(b":method", b"GET"), (b"x-token", b"t")])
def test_a_field_that_may_not_be_added_changes_no_table(field):
    table = DynamicTable(INITIAL)
    table.encode([field], NONE, new=frozenset())
    assert table.equals(INITIAL)


def test_a_field_that_must_never_be_indexed_is_not_even_if_the_table_has_it():
    field = (b"authorization", b"secret")
    table = DynamicTable(State((field,), 32 + 19, 4096, 4096, -1))
    assert table.encode([field], frozenset({0}), new={field})[0] & 0xF0 == 0x10


def test_a_field_that_is_larger_than_the_table_empties_it():
    table = DynamicTable(State(((b"a", b"b"),), 34, 100, 100, -1))
    table.encode([(b"x", b"v" * 100)], NONE, new={(b"x", b"v" * 100)})
    assert table.equals(State((), 0, 100, 100, -1))


def test_of_a_field_that_is_there_twice_the_later_one_stays():
    field, other = (b"a", b"b"), (b"c", b"d")
    table = DynamicTable(State((field, field, other), 3 * 34, 3 * 34, 4096, -1))
    assert table.encode([field], NONE, new=frozenset()) == b"\xbf"
    table.encode([(b"e", b"f")], NONE, new={(b"e", b"f")})
    assert table.encode([field], NONE, new=frozenset()) == bytes([0x80 | 64])
    table.resize(34, 34)
    assert table.encode([field], NONE, new=frozenset()) == b"\x00\x01a\x01b"


@given(steps)
def test_a_decoder_elsewhere_reads_what_was_written_and_holds_what_the_table_says(steps):
    table, theirs, ours = DynamicTable(INITIAL), hpack.Decoder(), INITIAL
    theirs.max_allowed_table_size = 4096
    updates = b""
    for step in steps:
        if isinstance(step, tuple):
            smallest, last = min(step), step[1]
            table.resize(smallest, last)
            updates += size_updates(smallest, last)
            continue
        added = {kind: {field for field, of in step if of == kind} for kind in ("new", "earlier")}
        never = frozenset(position for position, (_, kind) in enumerate(step) if kind == "never")
        fields = tuple(field for field, _ in step)
        data = updates + table.encode(fields, never, **added)
        updates = b""
        ours = decode(ours, data, **LIMITS).state
        read = theirs.decode(data, raw=True)
        assert tuple(map(tuple, read)) == fields
        assert {position for position, field in enumerate(read) if not field.indexable} == never
        assert table.equals(ours)
        assert list(ours.entries)[::-1] == [tuple(map(bytes, entry)) for entry in theirs.header_table.dynamic_entries]
