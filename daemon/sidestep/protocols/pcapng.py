"""Writes the blocks of a pcapng file (draft-ietf-opsawg-pcapng): one section, little-endian, packets of IP.

A file is `section`, an `interface` for each pod, then packets in any order, and `statistics` of an interface where
packets were lost. Interfaces are numbered from 0 in the order in which they were written. Each function returns one
whole block, so that blocks of different interfaces can be joined as they come, and a file that is cut behind a block
can be read. Timestamps are nanoseconds since 1970-01-01T00:00:00Z.

Texts may come from the network: what is not printable is escaped, and a text is cut at MAX_TEXT characters.
`pcapng_reader` reads such files.
"""

from __future__ import annotations

import struct
from typing import Final

from sidestep.model.text import harmless

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
SIMPLE_PACKET: Final = 3
STATISTICS: Final = 5
PACKET: Final = 6
BYTE_ORDER: Final = 0x1A2B3C4D
"""Byte-order magic of a section header."""

LINKTYPE_RAW: Final = 101
"""Packets begin with an IPv4 or IPv6 header (the registry of link types at tcpdump.org)."""

END_OF_OPTIONS: Final = 0
COMMENT: Final = 1
_APPLICATION: Final = 4
INTERFACE_NAME: Final = 2
_INTERFACE_DESCRIPTION: Final = 3
TIMESTAMP_RESOLUTION: Final = 9
TIMESTAMP_OFFSET: Final = 14
PACKET_DROPS: Final = 4
RECEIVED: Final = 4
DROPPED: Final = 5

MAX_TEXT: Final = 2048
"""Characters of one comment, name or description; escapes and UTF-8 leave it below the 65,535 bytes of an option."""

_NANOSECONDS: Final = b"\x09"
"""if_tsresol: timestamps count units of 10^-9 s."""
_NO_LENGTH: Final = 2**64 - 1
"""The section's length is not given: the file is written as a stream."""
_PAD: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
"""Padding to a multiple of 4 bytes, by the length modulo 4."""
_PACKET_HEAD: Final = struct.Struct("<IIIIIII")
_PACKET_TAIL: Final = struct.Struct("<I")
_PACKET_SIZE: Final = 32


def section(*, application: str, comment: str = "") -> bytes:
    """The section header, with which a file begins. `application` names who wrote it."""
    options = _text(COMMENT, comment) + _text(_APPLICATION, application)
    return _block(SECTION, struct.pack("<IHHQ", BYTE_ORDER, 1, 0, _NO_LENGTH), options)


def interface(name: str, *, description: str = "", snap_length: int = 0) -> bytes:
    """An interface description. `snap_length` is the most bytes that are kept of a packet, 0 for all."""
    options = (
        _text(INTERFACE_NAME, name)
        + _text(_INTERFACE_DESCRIPTION, description)
        + _option(TIMESTAMP_RESOLUTION, _NANOSECONDS)
    )
    return _block(INTERFACE, struct.pack("<HHI", LINKTYPE_RAW, 0, snap_length), options)


def packet(
    on: int, timestamp: int, data: bytes, *, original_length: int = 0, comments: tuple[str, ...] = (), dropped: int = 0
) -> bytes:
    """A packet on interface number `on`.

    `original_length` is its length in bytes before it was cut, 0 where it was not. `dropped` counts packets of that
    interface that were lost since the packet before.
    """
    length = len(data)
    whole = original_length or length
    if comments or dropped:
        options = b"".join([_text(COMMENT, comment) for comment in comments])
        if dropped:
            options += _option(PACKET_DROPS, struct.pack("<Q", dropped))
        head = struct.pack("<IIIII", on, timestamp >> 32, timestamp & 0xFFFFFFFF, length, whole)
        return _block(PACKET, head + data + _PAD[length & 3], options)
    pad = _PAD[length & 3]
    size = _PACKET_SIZE + length + len(pad)
    head = _PACKET_HEAD.pack(PACKET, size, on, timestamp >> 32, timestamp & 0xFFFFFFFF, length, whole)
    return b"".join((head, data, pad, _PACKET_TAIL.pack(size)))


def statistics(on: int, timestamp: int, *, received: int, dropped: int, comment: str = "") -> bytes:
    """How many packets interface number `on` received until `timestamp`, lost ones included, and how many were lost."""
    options = (
        _text(COMMENT, comment)
        + _option(RECEIVED, struct.pack("<Q", received))
        + _option(DROPPED, struct.pack("<Q", dropped))
    )
    return _block(STATISTICS, struct.pack("<III", on, timestamp >> 32, timestamp & 0xFFFFFFFF), options)


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    if options:
        options += struct.pack("<HH", END_OF_OPTIONS, 0)
    size = 12 + len(body) + len(options)
    return struct.pack("<II", kind, size) + body + options + struct.pack("<I", size)


def _text(code: int, text: str) -> bytes:
    return _option(code, harmless(text, MAX_TEXT).encode()) if text else b""


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + _PAD[len(value) & 3]
