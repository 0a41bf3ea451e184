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


def ipv4(first: int, protocol: int = 17, length: int = 20) -> bytes:
    return bytes([first]) + bytes(8) + bytes([protocol]) + bytes(length - 10) + udp.packet(1, 2, b"x")


@pytest.mark.parametrize(
    "data",
    [ipv4(0x65), ipv4(0x44), ipv4(0x45, protocol=6), ipv4(0x4F), ipv4(0x45)[:24], b""],
    ids=["IPv6", "a header of 16 bytes", "TCP", "options beyond the end", "cut", "nothing"],
)
def test_what_is_no_udp_over_ipv4_is_refused(data):
    assert udp.parse4(data) is None


def test_a_plain_ipv4_packet():
    assert udp.parse4(ipv4(0x45)) == (bytes(4), bytes(4), 1, 2, b"x")


def test_a_checksum_of_zero_is_sent_as_ones():
    """RFC 768: zero means that there is none."""
    assert udp.checksum4(b"\xff\xff\xff\xee", bytes(4), b"") == 0xFFFF
    assert udp.checksum4(bytes(4), bytes(4), b"a") == 0xFFFF - 0x11 - 1 - 0x6100
