"""Segments in packets of each link layer, cut and spoilt."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep.protocols.tcp_segments import (
    ACK,
    FRAGMENT,
    LINK_TYPE,
    MALFORMED,
    OTHER,
    TRUNCATED,
    Segment,
    address,
    find,
)  # fmt: skip
from sidestep.protocols.tcp_synthesis import Conversation, Endpoint
from tests.effort import examples

PAIRS = {
    4: (Endpoint("192.0.2.1", 40000), Endpoint("198.51.100.2", 80)),
    6: (Endpoint("2001:db8::1", 40000), Endpoint("fd00::2", 80)),
}


def packet(version, data=b"hello"):
    conversation = Conversation(*PAIRS[version])
    conversation.opening()
    return conversation.data(data, from_client=True)[0]


V4, V6 = packet(4), packet(6)
ETHERNET = bytes(12)


@pytest.mark.parametrize(
    ("link_type", "data"),
    [
        (101, V4), (101, V6), (228, V4), (229, V6), (0, b"\2\0\0\0" + V4), (0, b"\x1e\0\0\0" + V6),
        (1, ETHERNET + b"\x08\0" + V4), (1, ETHERNET + b"\x86\xdd" + V6), (1, ETHERNET + b"\x08\0" + V4 + bytes(9)),
        (1, ETHERNET + b"\x81\0\0\1\x08\0" + V4), (1, ETHERNET + b"\x88\xa8\0\1\x81\0\0\2\x86\xdd" + V6),
        (113, bytes(16) + V4), (276, bytes(20) + V6),
    ],
)  # fmt: skip
def test_a_segment_is_found_below_each_link_layer(link_type, data):
    found = find(link_type, data)
    assert isinstance(found, Segment)
    assert (found.payload, found.missing) == (b"hello", 0)
    assert found.flags & ACK
    assert found.source[1] == 40000
    assert address(found.source[0]) in ("192.0.2.1", "2001:db8::1")


def changed(data, at, value):
    return data[:at] + value + data[at + len(value) :]


def extended(*headers, following=6):
    """The IPv6 packet with extension headers of 8 bytes."""
    kinds = [*headers, following]
    inserted = b"".join(bytes([kind]) + bytes(7) for kind in kinds[1:])
    size = struct.pack(">H", len(V6) - 40 + len(inserted))
    return changed(changed(V6, 4, size), 6, bytes([kinds[0]]))[:40] + inserted + V6[40:]


def test_extension_headers_and_lengths_of_zero():
    assert find(101, extended(0, 60, 43)).payload == b"hello"
    assert find(101, changed(V4, 2, b"\0\0")).payload == b"hello"
    assert find(101, changed(V6, 4, b"\0\0")).payload == b"hello"


def test_what_was_not_captured_is_missing():
    for whole in (V4, V6):
        found = find(101, whole[:-3])
        assert (found.payload, found.missing) == (b"he", 3)
        assert find(101, whole[:-5]).missing == 5


OTHERS = {
    "another link type": (147, V4, LINK_TYPE),
    "ARP": (1, ETHERNET + b"\x08\x06" + bytes(28), OTHER),
    "three VLANs": (1, ETHERNET + b"\x81\0\0\1\x81\0\0\1\x81\0\0\1\x08\0" + V4, OTHER),
    "nothing": (101, b"", OTHER),
    "a short frame": (1, bytes(5), OTHER),
    "IPv5": (101, b"\x55" + bytes(60), OTHER),
    "UDP": (101, changed(V4, 9, b"\x11"), OTHER),
    "UDP over IPv6": (101, changed(V6, 6, b"\x11"), OTHER),
    "too many headers": (101, extended(*[60] * 9), OTHER),
    "a fragment": (101, changed(V4, 6, b"\x20\0"), FRAGMENT),
    "a later fragment": (101, changed(V4, 6, b"\0\1"), FRAGMENT),
    "an IPv6 fragment": (101, extended(44), FRAGMENT),
    "a cut IPv4 header": (101, V4[:19], TRUNCATED),
    "a cut IPv6 header": (101, V6[:39], TRUNCATED),
    "a cut extension": (101, extended(0)[:41], TRUNCATED),
    "a cut TCP header": (101, V4[:39], TRUNCATED),
    "a short IPv4 header": (101, changed(V4, 0, b"\x44"), MALFORMED),
    "a short length": (101, changed(V4, 2, b"\0\x13"), MALFORMED),
    "no room for TCP": (101, changed(V4, 2, b"\0\x27"), MALFORMED),
    "a short TCP header": (101, changed(V4, 32, b"\x40"), MALFORMED),
    "a TCP header beyond the packet": (101, changed(V4, 32, b"\xf0"), MALFORMED),
}


@pytest.mark.parametrize(("link_type", "data", "said"), OTHERS.values(), ids=OTHERS.keys())
def test_everything_else_has_a_word(link_type, data, said):
    assert find(link_type, data) == said


@given(
    st.sampled_from([0, 1, 101, 113, 276]), st.sampled_from([b"", V4, V6]), st.binary(max_size=80),
    st.integers(0, 100), st.binary(max_size=4),
)  # fmt: skip
@settings(deadline=None, max_examples=examples(200))
def test_arbitrary_packets_never_fail(link_type, prefix, data, at, spoil):
    found = find(link_type, changed(prefix + data, at, spoil))
    assert isinstance(found, (str, Segment))
    if isinstance(found, Segment):
        assert found.missing >= 0
