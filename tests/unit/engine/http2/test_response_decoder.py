"""Answers are decoded as their app's encoder meant them, though the table is kept only where a block refers to it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.engine.http2.response_decoder import ResponseDecoder
from sidestep.protocols import hpack
from sidestep.protocols.http2 import DEFAULT_LIMITS, Http2Limits
from tests.effort import examples

NGINX = bytes.fromhex(
    "887689aa6355e580ae212e1f6197dd6d5f4a09f5349fba82009c502ddc6deb816d4c5a37ff5f87497ca58ae819aa5c023932"
)
"""An answer of nginx 1.22: it adds three fields to the table, each time."""


def in_order(blocks):
    """What a decoder says of blocks that keeps the table after each of them."""
    state = hpack.State((), 0, hpack.DEFAULT_CAPACITY, DEFAULT_LIMITS.table, -1)
    for data in blocks:
        try:
            block = hpack.decode(state, data, list_limit=DEFAULT_LIMITS.passed_list, table_limit=DEFAULT_LIMITS.table)
        except hpack.HpackError:
            yield None
            return
        state = block.state
        yield block.fields, block.updates


def watched(blocks, limits=DEFAULT_LIMITS):
    decoder = ResponseDecoder(limits)
    for data in blocks:
        try:
            block = decoder.decode(data)
        except hpack.HpackError:
            yield None
            return
        yield block.fields, block.updates


def literal(name, value, pattern=0x40):
    """A literal with a new name: 0x40 is added to the table, 0x00 is not."""
    return bytes((pattern, len(name))) + name + hpack.integer(len(value), 7, 0) + value


def indexed_name(index, value):
    """A literal whose name stands in the table, and that is added to it."""
    return hpack.integer(index, 6, 0x40) + hpack.integer(len(value), 7, 0) + value


HISTORY = 40
"""Blocks of a connection: those of nginx fill the table with fewer."""

values = st.sampled_from([b"", b"a", b"b" * 40, b"c" * 1500, b"d" * 4090])
names = st.sampled_from([b"x", b"y", b"server"])
fields = st.one_of(
    st.builds(literal, names, values, st.sampled_from([0x40, 0x00, 0x10])),
    st.sampled_from([8, 14, 54]).map(lambda index: bytes((0x80 | index,))),
    st.integers(62, 66).map(lambda index: bytes((0x80 | index,))),
    st.builds(
        lambda index, value: hpack.integer(index, 6, 0x40) + literal(b"", value)[2:], st.integers(62, 64), values
    ),
    st.just(NGINX),
)
updates = st.sampled_from([b""] * 8 + [b"\x20", hpack.integer(100, 5, 0x20), hpack.integer(4096, 5, 0x20)])
blocks = st.builds(lambda update, parts: update + b"".join(parts), updates, st.lists(fields, max_size=5))


@given(st.lists(blocks, max_size=3 * HISTORY), st.lists(fields, min_size=1, max_size=3))
@settings(max_examples=examples(200), deadline=None)
def test_blocks_are_decoded_as_in_order(history, last):
    given_blocks = [*history, b"".join(last)]
    assert list(watched(given_blocks)) == list(in_order(given_blocks))


@given(
    st.lists(st.tuples(blocks, st.sampled_from([1, 2, 3, HISTORY, 3 * HISTORY])), max_size=5),
    st.lists(fields, min_size=1, max_size=3),
)
@settings(max_examples=examples(200), deadline=None)
def test_blocks_that_come_again_and_again_are_decoded_as_in_order(runs, last):
    given_blocks = [block for block, count in runs for _ in range(count)] + [b"".join(last)]
    assert list(watched(given_blocks)) == list(in_order(given_blocks))


@pytest.mark.parametrize("count", [1, 2, HISTORY - 1, HISTORY, HISTORY + 1, 3 * HISTORY])
def test_a_reference_finds_what_the_blocks_before_it_have_added(count):
    history = [literal(b"n", b"%d" % number) for number in range(count)] + [b"\xbe"]
    assert list(watched(history))[-1] == (((b"n", b"%d" % (count - 1)),), None)


def test_answers_that_add_the_same_fields_again_and_again_are_decoded_once():
    decoder = ResponseDecoder(Http2Limits())
    made = [decoder.decode(NGINX) for _ in range(3 * HISTORY)]
    assert len({id(block) for block in made[1:]}) == 1
    assert made[0].fields == made[-1].fields
    assert decoder.decode(b"\xbe").fields == (made[0].fields[-1],)


def test_a_connection_that_refers_to_its_table_is_decoded_in_order():
    decoder = ResponseDecoder(DEFAULT_LIMITS)
    decoder.decode(literal(b"a", b"1"))
    for _ in range(3):
        assert decoder.decode(b"\xbe").fields == ((b"a", b"1"),)
    with pytest.raises(hpack.HpackError):
        decoder.decode(b"\xbf")
