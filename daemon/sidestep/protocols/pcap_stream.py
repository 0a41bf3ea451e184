"""Packets as a stream in the format of libpcap's files, with nanoseconds (pcap-savefile(5)), for readers of pipes.

Packets have no link layer: each is an IPv4 or IPv6 packet (LINKTYPE_RAW).
"""

from __future__ import annotations

import struct
from typing import Final

_MAGIC: Final = 0xA1B23C4D
"""Of files whose times have nanoseconds; it tells the byte order, too."""
_LINKTYPE_RAW: Final = 101
MAX_PACKET: Final = 65535
"""Bytes of a packet: what the length field of IPv4 can say."""
_RECORD: Final = struct.Struct("<IIII")
_WAKE_UP: Final = bytes.fromhex("450000140000000040fd7beb7f0000017f000001")
"""An IPv4 packet from 127.0.0.1 to itself of a protocol for experiments (253, RFC 3692), without data."""


def file_header() -> bytes:
    """What stands before the first packet."""
    return struct.pack("<IHHiIII", _MAGIC, 2, 4, 0, 0, MAX_PACKET, _LINKTYPE_RAW)


RECORD: Final = _RECORD.size
"""Bytes before each packet."""


def record(size: int, at: int) -> bytes:
    """What stands before a packet of so many bytes; its time is in nanoseconds since 1970."""
    seconds, rest = divmod(at, 1_000_000_000)
    return _RECORD.pack(seconds & 0xFFFFFFFF, rest, size, size)


def wake_up() -> bytes:
    """A packet that means nothing. Suricata starts its threads when it has read a first one, and polls until then."""
    return record(len(_WAKE_UP), 0) + _WAKE_UP
