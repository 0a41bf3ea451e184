"""Capsules: whole, byte by byte, with trailing bytes, hostile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.errors import PeerError
from sidestep.protocols.capsules import MAX_PAYLOAD, Decoder, encode, read_varint, varint


@given(st.integers(0, (1 << 62) - 1), st.binary(max_size=3))
def test_varints_round_trip(value, trailing):
    data = varint(value)
    assert read_varint(data + trailing, 0) == (value, len(data))
    assert read_varint(data[:-1], 0) is None


@given(st.lists(st.binary(max_size=300), max_size=6), st.data())
def test_datagrams_keep_their_boundaries_however_they_arrive(payloads, data):
    stream = b"".join(encode(payload) for payload in payloads)
    decoder, found, at = Decoder(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        found += decoder.feed(stream[at : at + size])
        at += size
    assert found == payloads
    assert decoder.pending == 0


def test_other_types_and_contexts_are_skipped():
    other_type = varint(0x2843) + varint(3) + b"abc"
    other_context = b"\x00" + varint(3) + b"\x02xy"
    assert Decoder().feed(other_type + other_context + encode(b"mine") + encode(b"")) == [b"mine", b""]


def test_the_longest_datagram():
    assert Decoder().feed(encode(bytes(MAX_PAYLOAD))) == [bytes(MAX_PAYLOAD)]
    with pytest.raises(PeerError):
        encode(bytes(MAX_PAYLOAD + 1))
    with pytest.raises(PeerError):
        Decoder().feed(b"\x00" + varint(MAX_PAYLOAD + 2))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_decoded_or_refused(data):
    decoder = Decoder()
    try:
        decoder.feed(data)
    except PeerError:
        return
    assert decoder.pending <= len(data)
