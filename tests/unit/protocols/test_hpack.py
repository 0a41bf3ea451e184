"""The HPACK decoder and encoder, against RFC 7541's examples and the `hpack` library."""

from __future__ import annotations

import hpack as reference
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols import hpack, hpack_huffman
from sidestep.protocols.hpack_static import STATIC
from tests.effort import examples

LIMITS = {"list_limit": 1 << 20, "table_limit": 1 << 16}
huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def decode(block: bytes, state: hpack.State = hpack.INITIAL) -> hpack.Block:
    return hpack.decode(state, block, **LIMITS)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_static_table_is_the_rfcs() -> None:
    assert STATIC[1:] == reference.table.HeaderTable.STATIC_TABLE


def test_the_huffman_codes_are_the_rfcs() -> None:
    assert hpack_huffman.codes() == list(REQUEST_CODES)
    assert list(hpack_huffman.LENGTHS) == list(REQUEST_CODES_LENGTH)


@given(st.binary(max_size=300))
def test_huffman_strings_decode(text: bytes) -> None:
    assert hpack_huffman.decode(huffman.encode(text)) == text


@given(st.binary(max_size=40))
def test_any_huffman_bytes_decode_or_are_refused_as_the_code_says(data: bytes) -> None:
    try:
        text = hpack_huffman.decode(data)
    except ValueError:
        return
    assert huffman.encode(text) == data  # the encoding of a text is unique: same bits, padded with ones


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xff\xff\xff", id="EOS"),
        pytest.param(b"\xff", id="a whole byte of padding"),
        pytest.param(huffman.encode(b"a")[:-1] + b"\x18", id="padding of zeros"),
        pytest.param(huffman.encode(b"www") + b"\xff", id="padding of eight bits and more"),
    ],
)
def test_bad_huffman_strings_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="Huffman"):
        hpack_huffman.decode(data)


# --- the RFC's examples (appendix C) ----------------------------------------------------------------------------------


def test_appendix_c4_requests_with_huffman_coding() -> None:
    first = decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    assert first.fields == (
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", b"/"),
        (b":authority", b"www.example.com"),
    )
    assert first.state.size == 57
    second = decode(bytes.fromhex("828684be5886a8eb10649cbf"), first.state)
    assert second.fields[-1] == (b"cache-control", b"no-cache")
    assert second.state.size == 110
    third = decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"), second.state)
    assert third.fields[-1] == (b"custom-key", b"custom-value")
    assert third.state.size == 164
    assert [name for name, _ in reversed(third.state.entries)] == [b"custom-key", b"cache-control", b":authority"]


def test_a_sensitive_field_stays_sensitive() -> None:
    block = decode(bytes.fromhex("100870617373776f726406736563726574"))  # C.2.3
    assert block.fields == ((b"password", b"secret"),)
    assert block.never == {0}
    assert block.literal == bytes.fromhex("100870617373776f726406736563726574")


# --- strictness -------------------------------------------------------------------------------------------------------

BAD = {
    "index 0": "80",
    "index outside the static table, dynamic empty": "be",
    "name index outside the tables": "7e 01 61",
    "truncated after a literal's first byte": "40",
    "truncated name": "40 05 61",
    "truncated value": "40 01 61 05 61",
    "truncated integer": "ff",
    "endless integer": "ff 80 80 80 80 80 80 01",
    "huge string length": "40 7f ff ff ff ff 07 61",
    "size update after a field": "82 20",
    "size update above SETTINGS": "3f e2 1f",
    "bad Huffman padding": "40 81 18 01 61",
    "EOS in a string": "40 84 ff ff ff ff 01 61",
}


@pytest.mark.parametrize("block", [pytest.param(bytes.fromhex(text), id=name) for name, text in BAD.items()])
def test_bad_blocks_raise_the_one_error(block: bytes) -> None:
    with pytest.raises(hpack.HpackError) as caught:
        decode(block)
    assert caught.value.code == 9
    with pytest.raises(reference.HPACKError):
        reference.Decoder().decode(block)


def test_a_list_over_the_limit_is_refused() -> None:
    state = decode(hpack.integer(0, 6, 0x40) + b"\x01a" + hpack.integer(4000, 7, 0) + b"b" * 4000).state
    with pytest.raises(hpack.HpackError, match="limit"):
        hpack.decode(state, b"\xbe" * 100, list_limit=65536, table_limit=4096)


def test_an_update_above_our_own_limit_is_refused() -> None:
    state = hpack.INITIAL.with_allowed(1 << 20)
    assert decode(hpack.size_updates(1 << 16, 1 << 16), state).state.capacity == 1 << 16
    with pytest.raises(hpack.HpackError, match="limit"):
        decode(hpack.size_updates(1 << 17, 1 << 17), state)


def test_a_block_owes_the_update_after_settings_lowered_the_capacity() -> None:
    state = hpack.INITIAL.with_allowed(100).with_allowed(2000)
    for block in (b"", b"\x82", hpack.size_updates(101, 101)):
        with pytest.raises(hpack.HpackError, match="update"):
            decode(block, state)
    after = decode(hpack.size_updates(100, 2000) + b"\x82", state)
    assert after.updates == (100, 2000)
    assert (after.state.capacity, after.state.floor) == (2000, -1)


def test_raising_the_allowance_owes_nothing() -> None:
    state = hpack.INITIAL.with_allowed(8192)
    assert decode(b"\x82", state).state is state


def test_an_entry_larger_than_the_table_empties_it() -> None:
    state = decode(b"\x40\x01a\x01b").state
    block = decode(b"\x40\x01c" + hpack.integer(5000, 7, 0) + b"d" * 5000, state)
    assert block.state.entries == ()
    assert block.state.size == 0


# --- against the library ----------------------------------------------------------------------------------------------

names = st.one_of(
    st.sampled_from([b":path", b":method", b"cookie", b"grpc-timeout", b"x", b"user-agent"]),
    st.binary(min_size=1, max_size=20),
)
values = st.one_of(st.sampled_from([b"", b"GET", b"/", b"gzip, deflate"]), st.binary(max_size=60))
lists = st.lists(st.tuples(names, values, st.booleans()), max_size=12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("block"), lists, st.booleans()),
        st.tuples(st.just("size"), st.sampled_from([0, 33, 64, 100, 500, 4096, 8192]), st.just(None)),
    ),
    max_size=20,
)


@settings(deadline=None, max_examples=examples())
@given(steps)
def test_decoding_equals_the_library(script: list) -> None:
    encoder, other = reference.Encoder(), reference.Decoder(max_header_list_size=1 << 20)
    state = hpack.INITIAL
    last = -1  # the library's encoder is wrong when the size falls, or stays, between two changes without a block
    for kind, argument, with_huffman in script:
        if kind == "size":
            if argument <= last or argument == encoder.header_table_size:
                continue
            last = argument
            encoder.header_table_size = argument
            other.max_allowed_table_size = argument
            state = state.with_allowed(argument)
            continue
        last = -1
        fields = [reference.NeverIndexedHeaderTuple(n, v) if never else (n, v) for n, v, never in argument]
        data = encoder.encode(fields, huffman=with_huffman)
        expected = other.decode(data, raw=True)
        block = decode(data, state)
        state = block.state
        assert list(block.fields) == [tuple(field) for field in expected]
        assert block.never == {i for i, field in enumerate(expected) if not getattr(field, "indexable", True)}
        assert [*reversed(state.entries)] == [tuple(entry) for entry in other.header_table.dynamic_entries]
        # and what we would write in its place says the same, to a decoder that never saw the table
        rewritten = reference.Decoder(max_header_list_size=1 << 20)
        again = rewritten.decode(block.literal, raw=True)
        assert [tuple(field) for field in again] == list(block.fields)
        assert {i for i, field in enumerate(again) if not getattr(field, "indexable", True)} == block.never
        assert not rewritten.header_table.dynamic_entries


@settings(deadline=None, max_examples=examples())
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_any_bytes_decode_as_the_library_does_or_raise_the_one_error(blocks: list[bytes]) -> None:
    other = reference.Decoder(max_header_list_size=1 << 20)
    state = hpack.INITIAL
    for data in blocks:
        try:
            block = decode(data, state)
        except hpack.HpackError:
            return
        assert list(block.fields) == [tuple(field) for field in other.decode(data, raw=True)]
        state = block.state


@given(st.integers(0, 1 << 34), st.integers(1, 8))
def test_integers(value: int, bits: int) -> None:
    data = hpack.integer(value, bits, 0)
    if value < (1 << bits) - 1:
        assert data == bytes((value,))
    else:
        assert hpack._integer(data + b"rest", 1, (1 << bits) - 1) == (value, len(data))


# --- the memo ---------------------------------------------------------------------------------------------------------


def test_equal_histories_share_one_state_and_one_block() -> None:
    memo = hpack.Memo(1 << 20)
    data = b"\x40\x01a\x01b"
    memo.decode(hpack.INITIAL, data, **LIMITS)
    one = memo.decode(hpack.INITIAL, data, **LIMITS)
    two = memo.decode(hpack.INITIAL, bytes(bytearray(data)), **LIMITS)
    assert one is two
    assert memo.with_allowed(one.state, 100) is memo.with_allowed(two.state, 100)
    assert memo.decode(one.state, data, **LIMITS).state is not one.state


def test_a_block_met_once_is_not_kept() -> None:
    memo = hpack.Memo(1 << 20)
    for number in range(3 * hpack.MET):
        memo.decode(hpack.INITIAL, b"\x00\x01a\x05%05d" % number, **LIMITS)
    assert memo.size == 0
    assert len(memo._met) <= hpack.MET


def test_the_memo_is_bounded_in_bytes() -> None:
    memo = hpack.Memo(20_000)
    for number in range(1000):
        for _ in range(2):
            memo.decode(hpack.INITIAL, b"\x00\x01a\x04%04d" % number, **LIMITS)
        assert memo.size <= 20_000
        assert len(memo._blocks) <= 40


def test_an_allowance_that_changes_nothing_keeps_the_state() -> None:
    assert hpack.INITIAL.with_allowed(hpack.DEFAULT_CAPACITY) is hpack.INITIAL
    lower = hpack.INITIAL.with_allowed(100)
    assert lower.floor == 100
    assert lower.with_allowed(100) is lower
    assert lower.with_allowed(200).floor == 100


def test_long_values_and_huffman_strings_are_coded_without_a_memo() -> None:
    value = b"v" * (hpack.SHORT_VALUE + 1)
    assert decode(hpack.encode([(b"x-long", value)])).fields == ((b"x-long", value),)
    text = b"t" * (4 * hpack_huffman.SHORT)
    assert hpack_huffman.decode(huffman.encode(text)) == text


def test_a_block_writes_its_literals_once() -> None:
    block = decode(b"\x40\x01a\x01b\x10\x01c\x01d")
    assert block.literal == b"\x00\x01a\x01b\x10\x01c\x01d"
    assert block.literal is block.literal


def test_a_block_too_long_to_keep_is_not_kept() -> None:
    memo = hpack.Memo(1 << 20)
    data = b"\x00\x01a" + hpack.integer(hpack.REMEMBERED, 7, 0) + b"v" * hpack.REMEMBERED
    for _ in range(3):
        memo.decode(hpack.INITIAL, data, **LIMITS)
    assert memo.size == 0
