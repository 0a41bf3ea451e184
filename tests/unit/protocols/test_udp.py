"""UDP packets: built as the kernel builds them, parsed strictly."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols import udp

ADDRESS = st.binary(min_size=4, max_size=4)
PORT = st.integers(0, 65535)


def total(data):
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


@given(ADDRESS, PORT, ADDRESS, PORT, st.binary(max_size=600))
def test_the_checksum_verifies_and_the_packet_parses(source, source_port, destination, port, payload):
    packet = udp.packet4(source, source_port, destination, port, payload)
    pseudo = source + destination + struct.pack("!BBH", 0, 17, len(packet))
    assert packet[6:8] != b"\0\0"
    assert total(pseudo + packet) == 0xFFFF
    assert udp.parse(packet + b"trailing") == (source_port, port, payload)
    header = bytes([0x46, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]) + source + destination + bytes(4)
    assert udp.parse4(header + packet) == (source, destination, source_port, port, payload)


@pytest.mark.parametrize("data", [b"", bytes(7), struct.pack("!HHHH", 1, 2, 7, 0), struct.pack("!HHHH", 1, 2, 9, 0)])
def test_what_is_too_short_is_no_packet(data):
    assert udp.parse(data) is None
    assert udp.parse4(data) is None


@given(st.binary(max_size=80))
def test_arbitrary_bytes_never_raise(data):
    udp.parse(data)
    udp.parse4(data)
