"""Reads synthesised packets by the RFCs, with checksums summed word by word, and puts streams together again."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


@dataclass
class Segment:
    """One TCP segment."""

    source: tuple[str, int]
    destination: tuple[str, int]
    number: int
    acknowledged: int
    flags: int
    options: bytes
    payload: bytes


def words(data: bytes) -> int:
    """The one's complement sum of 16-bit words (RFC 1071), folded."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def read(packet: bytes) -> Segment:
    """Parse a packet; each length and checksum has to be right."""
    if packet[0] >> 4 == 4:
        assert packet[0] == 0x45
        assert int.from_bytes(packet[2:4]) == len(packet)
        assert words(packet[:20]) == 0xFFFF
        protocol, source, destination, tcp = packet[9], packet[12:16], packet[16:20], packet[20:]
    else:
        assert packet[0] >> 4 == 6
        assert int.from_bytes(packet[4:6]) == len(packet) - 40
        protocol, source, destination, tcp = packet[6], packet[8:24], packet[24:40], packet[40:]
    assert protocol == 6
    assert words(source + destination + struct.pack("!IHBB", len(tcp), 0, 0, 6) + tcp) == 0xFFFF
    from_port, to_port, number, acknowledged, offset, flags, window, _, urgent = struct.unpack_from("!HHIIBBHHH", tcp)
    assert window == 65535
    assert urgent == 0
    header = (offset >> 4) * 4
    return Segment(
        (str(ipaddress.ip_address(source)), from_port),
        (str(ipaddress.ip_address(destination)), to_port),
        number, acknowledged, flags, tcp[20:header], tcp[header:],
    )  # fmt: skip


@dataclass
class Half:
    """What one end sent, as the other end would take it: `gaps` are (bytes before it, size)."""

    next: int | None = None
    received: bytearray = field(default_factory=bytearray)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    finished: bool = False


class Receiver:
    """Both directions of one connection: nothing is sent twice, and nothing is acknowledged before it is sent.

    `lossy`: bytes may be acknowledged that are missing.
    """

    def __init__(self, client: tuple[str, int]) -> None:
        self.client = client
        self.lossy = False
        self.halves = {True: Half(), False: Half()}
        self.reset = False

    def take(self, packet: bytes) -> Segment:
        segment = read(packet)
        mine = segment.source == self.client
        half, other = self.halves[mine], self.halves[not mine]
        assert not self.reset
        if segment.flags & SYN:
            assert half.next is None
            half.next = segment.number
        ahead = (segment.number - half.next) % (1 << 32)
        assert ahead < 1 << 31, "bytes are sent twice"
        if ahead:
            half.gaps.append((len(half.received), ahead))
        if segment.flags & ACK:
            ahead = (segment.acknowledged - other.next) % (1 << 32)
            assert ahead == 0 or (self.lossy and ahead < 1 << 31)
        assert not (half.finished and (segment.payload or segment.flags & FIN))
        half.received += segment.payload
        half.finished = half.finished or bool(segment.flags & FIN)
        half.next = segment.number + len(segment.payload) + bool(segment.flags & (SYN | FIN)) & 0xFFFFFFFF
        self.reset = bool(segment.flags & RST)
        return segment
