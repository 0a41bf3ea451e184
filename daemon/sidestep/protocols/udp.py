"""UDP packets as raw sockets send and receive them (RFC 768): header, checksum, and what an IPv4 header hides.

Addresses are packed (4 or 16 bytes). The input is not trusted: `parse` and `parse4` return None for a packet that is
too short, or whose length fields go beyond its end.
"""

from __future__ import annotations

import array
import struct
import sys
from typing import Final

HEADER: Final = struct.Struct("!HHHH")  # source port, destination port, length, checksum
MAX_PAYLOAD: Final = 65507
"""Bytes of one datagram over IPv4; over IPv6 the length field allows 20 more, which nobody sends."""
_UDP: Final = 17


def packet(source_port: int, destination_port: int, payload: bytes, *, checksum: int = 0) -> bytes:
    """A UDP packet. Over IPv6 a raw socket fills in the checksum (IPV6_CHECKSUM); over IPv4 give `checksum4`'s."""
    return HEADER.pack(source_port, destination_port, HEADER.size + len(payload), checksum) + payload


def checksum4(source: bytes, destination: bytes, packet_without: bytes) -> int:
    """The checksum of an IPv4 packet whose checksum field is 0: one's complement sum with the pseudo header."""
    data = source + destination + struct.pack("!BBH", 0, _UDP, len(packet_without)) + packet_without
    if len(data) % 2:
        data += b"\0"
    words = array.array("H", data)
    if sys.byteorder == "little":
        words.byteswap()
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (~total & 0xFFFF) or 0xFFFF


def packet4(source: bytes, source_port: int, destination: bytes, destination_port: int, payload: bytes) -> bytes:
    """A whole UDP packet for IPv4."""
    bare = packet(source_port, destination_port, payload)
    return packet(source_port, destination_port, payload, checksum=checksum4(source, destination, bare))


def parse(data: bytes) -> tuple[int, int, bytes] | None:
    """(source port, destination port, payload) of a UDP packet."""
    if len(data) < HEADER.size:
        return None
    source, destination, length, _ = HEADER.unpack_from(data)
    if not HEADER.size <= length <= len(data):
        return None
    return source, destination, data[HEADER.size : length]


def parse4(data: bytes) -> tuple[bytes, bytes, int, int, bytes] | None:
    """(source, destination, source port, destination port, payload) of an IPv4 packet, as a raw socket receives it."""
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    start = (data[0] & 0x0F) * 4
    if start < 20 or data[9] != _UDP:
        return None
    found = parse(data[start:])
    return None if found is None else (data[12:16], data[16:20], *found)
