"""Finds the TCP segment in a captured packet: link layer, IPv4 (RFC 791) or IPv6 (RFC 8200), TCP (RFC 9293).

A packet is hostile, and may have been cut when it was captured. Everything that is no TCP segment on its own (other
protocols, fragments, headers that are cut or wrong) is answered by a word that says what it is; nothing is raised.
Checksums are not looked at: network cards fill them in after a packet was captured.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

import msgspec

OTHER: Final = "other-protocol"
FRAGMENT: Final = "fragment"
TRUNCATED: Final = "truncated"
MALFORMED: Final = "malformed"
LINK_TYPE: Final = "link-type"

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
ACK: Final = 0x10

_NULL: Final = 0
_ETHERNET: Final = 1
_RAW: Final = 101
_SLL: Final = 113
_IPV4: Final = 228
_IPV6: Final = 229
_SLL2: Final = 276

_LINK_HEADERS: Final = {_NULL: 4, _RAW: 0, _IPV4: 0, _IPV6: 0, _SLL: 16, _SLL2: 20}
"""Bytes before the IP header, by link type (the registry at tcpdump.org). The version of IP is told by its header."""
_ETHERTYPES: Final = frozenset((0x0800, 0x86DD))
_VLANS: Final = frozenset((0x8100, 0x88A8))
_MAX_VLANS: Final = 2
_TCP: Final = 6
_EXTENSIONS: Final = frozenset((0, 43, 60))
"""IPv6 extension headers that are skipped: hop-by-hop options, routing, destination options."""
_FRAGMENT_HEADER: Final = 44
_MAX_EXTENSIONS: Final = 8


class Segment(msgspec.Struct, frozen=True):
    """One TCP segment. Addresses are packed; `missing` bytes at the end of its payload were not captured."""

    source: tuple[bytes, int]
    destination: tuple[bytes, int]
    number: int
    acknowledged: int
    flags: int
    payload: bytes
    missing: int


def find(link_type: int, packet: bytes) -> Segment | str:
    """The segment in a packet, or a word for why there is none."""
    if link_type == _ETHERNET:
        at, kind = 14, int.from_bytes(packet[12:14])
        for _ in range(_MAX_VLANS):
            if kind in _VLANS:
                at, kind = at + 4, int.from_bytes(packet[at + 2 : at + 4])
        if kind not in _ETHERTYPES:
            return OTHER
    elif link_type in _LINK_HEADERS:
        at = _LINK_HEADERS[link_type]
    else:
        return LINK_TYPE
    version = packet[at] >> 4 if at < len(packet) else 0
    if version == 4:
        return _ipv4(packet, at)
    return _ipv6(packet, at) if version == 6 else OTHER


def address(packed: bytes) -> str:
    """An address as text."""
    return str(ipaddress.ip_address(packed))


def _ipv4(packet: bytes, at: int) -> Segment | str:
    if len(packet) < at + 20:
        return TRUNCATED
    size = (packet[at] & 0x0F) * 4
    length, _, fragment = struct.unpack_from("!HHH", packet, at + 2)
    if size < 20 or (length and length < size):
        return MALFORMED
    if fragment & 0x3FFF:
        return FRAGMENT
    if packet[at + 9] != _TCP:
        return OTHER
    # A packet that the card will cut into segments is captured before that, with a length of 0 if it is too long.
    end = at + length if length else len(packet)
    return _tcp(packet, at + size, end, packet[at + 12 : at + 16], packet[at + 16 : at + 20])


def _ipv6(packet: bytes, at: int) -> Segment | str:
    if len(packet) < at + 40:
        return TRUNCATED
    length, following = struct.unpack_from("!HB", packet, at + 4)
    end = at + 40 + length if length else len(packet)
    where = at + 40
    for _ in range(_MAX_EXTENSIONS):
        if following not in _EXTENSIONS:
            break
        if len(packet) < where + 2:
            return TRUNCATED
        following, where = packet[where], where + (packet[where + 1] + 1) * 8
    if following == _FRAGMENT_HEADER:
        return FRAGMENT
    if following != _TCP:
        return OTHER
    return _tcp(packet, where, end, packet[at + 8 : at + 24], packet[at + 24 : at + 40])


def _tcp(packet: bytes, at: int, end: int, source: bytes, destination: bytes) -> Segment | str:
    """`end` is the offset at which the packet ends by its IP header; a link layer may have padded it."""
    if end < at + 20:
        return MALFORMED
    if len(packet) < at + 20:
        return TRUNCATED
    from_port, to_port, number, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", packet, at)
    begin = at + (offset >> 4) * 4
    if begin < at + 20 or begin > end:
        return MALFORMED
    payload = packet[begin:end]
    missing = end - begin - len(payload)
    return Segment((source, from_port), (destination, to_port), number, acknowledged, flags, payload, missing)
