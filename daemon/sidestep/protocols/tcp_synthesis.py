"""Makes the TCP packets that would have carried the decrypted bytes of a connection, for captures and for an IDS.

A `Conversation` is told what both ends said, in order, and answers IP packets: a handshake, segments with the right
sequence and acknowledgement numbers, one acknowledgement for the data of each call (unless its reader needs none), FIN
or RST at the end. Readers of
packets (tshark, Suricata) then reassemble exactly the bytes that were given. Bytes that were seen but not kept are
declared by `lost`: the sequence numbers go on behind them, and readers show a gap of that size.

Checksums are right; only `headers`, for readers that do not look at TCP's, leaves that out. Packets have no link layer
(pcapng.LINKTYPE_RAW) and no time: who writes them down adds it.

Hot path: `_segment` runs for each packet. One's complement sums are congruent modulo 65535 to the number that the bytes
form, because 2^16 is congruent to 1 (RFC 1071 section 2), so that one division of a big integer replaces a loop over
words; sums over what a direction has in all packets are made once.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Final

import msgspec

from sidestep.model.errors import BugError

_FIN: Final = 0x01
_SYN: Final = 0x02
_RST: Final = 0x04
_PSH: Final = 0x08
_ACK: Final = 0x10

_TCP: Final = 6
_HEADER: Final = 20
"""Bytes of a TCP header without options."""
_WINDOW: Final = 65535
_SCALE: Final = 14
"""The largest window scale (RFC 7323 section 2.3): 1 GiB may be in flight, so that no reader sees a full window."""
_MODULUS: Final = 1 << 32
_OFFSET: Final = _HEADER // 4 << 4
"""Data offset and reserved bits of a header without options."""

MAX_SEGMENT: Final = 65535 - 40
"""The most bytes of data in a packet: the length field of IPv4 counts both headers."""
MIN_SEGMENT: Final = 64
"""The least segment size that is accepted, so that bytes cannot become as many packets."""

_BEFORE4: Final = b"\x45\0"
_BEHIND4: Final = struct.pack("!HHBB", 0, 0x4000, 64, _TCP)
"""What stands before and behind the length of an IPv4 packet: no identification, do not fragment, 64 hops."""
_BEFORE6: Final = b"\x60\0\0\0"
_BEHIND6: Final = struct.pack("!BB", _TCP, 64)
_LAST: Final = struct.pack("!BBHHH", _OFFSET, _PSH | _ACK, _WINDOW, 0, 0)
"""The end of a TCP header without options or checksum."""
_HEADERS4: Final = struct.Struct("!2sH6sH12sII8s")
_HEADERS6: Final = struct.Struct("!4sH38sII8s")
_PACKET4: Final = struct.Struct("!BBHHHBBH8sHHIIBBHHH")
_PACKET6: Final = struct.Struct("!IHBB32sHHIIBBHHH")


class Endpoint(msgspec.Struct, frozen=True):
    """An IP address as text, and a port. IPv4 addresses in their IPv6 form (`::ffff:192.0.2.1`) count as IPv4."""

    address: str
    port: int

    def packed(self) -> bytes:
        """The address as 4 or 16 bytes. Raises ValueError for what is no address; a zone (`%eth0`) is left out."""
        parsed = ipaddress.ip_address(self.address.partition("%")[0])
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            return parsed.ipv4_mapped.packed
        return parsed.packed


class _Direction:
    """What is sent from one end: the next sequence number, and the parts of headers that do not change."""

    __slots__ = ("addresses", "ends", "finished", "from_port", "next", "sum4", "sum_tcp", "to_port")

    def __init__(self, source: Endpoint, destination: Endpoint, first: int) -> None:
        self.addresses = source.packed() + destination.packed()
        self.from_port = source.port
        self.to_port = destination.port
        self.ends = self.addresses + struct.pack("!HH", source.port, destination.port)
        """Addresses and ports, as they stand in a packet (IPv6: behind the rest of its header)."""
        if len(self.addresses) != 8:
            self.ends = _BEHIND6 + self.ends
        self.next = first % _MODULUS
        self.finished = False
        pseudo = int.from_bytes(self.addresses)
        self.sum4 = (0x4500 + 0x4000 + (64 << 8) + _TCP + pseudo) % 65535
        """Of the IPv4 header without its length."""
        self.sum_tcp = (pseudo + _TCP + source.port + destination.port + _WINDOW) % 65535
        """Of pseudo header and TCP header without lengths, numbers and flags."""


class Conversation:
    """One connection as packets. `segment_size` is the most bytes of data in one packet, MIN_SEGMENT to MAX_SEGMENT.
    With `acknowledges` False data is followed by no acknowledgement: half as many packets for a reader that looks at
    data when it comes.

    Raises BugError for endpoints of two IP versions, for a segment size out of range, and when something is said after
    the end of its direction.
    """

    def __init__(
        self,
        client: Endpoint,
        server: Endpoint,
        *,
        segment_size: int = 1400,
        acknowledges: bool = True,
        client_number: int = 0,
        server_number: int = 0,
    ) -> None:
        if not MIN_SEGMENT <= segment_size <= MAX_SEGMENT:
            raise BugError(f"a segment cannot have {segment_size} bytes")
        self._segment_size = segment_size
        self._acknowledges = acknowledges
        self._client = _Direction(client, server, client_number)
        self._server = _Direction(server, client, server_number)
        if len(self._client.addresses) not in (8, 32):
            raise BugError("the ends of a connection have different IP versions")
        self._version4 = len(self._client.addresses) == 8
        self._is_open = False
        self._over = False

    def opening(self) -> list[bytes]:
        """The three packets of the handshake. Raises BugError the second time."""
        if self._is_open:
            raise BugError("a connection is opened once")
        self._is_open = True
        client, server = self._client, self._server
        packets = [self._synchronise(client, server, _SYN)]
        client.next = (client.next + 1) % _MODULUS
        packets.append(self._synchronise(server, client, _SYN | _ACK))
        server.next = (server.next + 1) % _MODULUS
        packets.append(self._segment(client, server, _ACK, b""))
        return packets

    def data(self, data: bytes, *, from_client: bool) -> list[bytes]:
        """Segments with these bytes, then an acknowledgement of the other end; nothing for no bytes."""
        source, other = self._speaker(from_client=from_client)
        size = self._segment_size
        length = len(data)
        if length <= size:
            if not length:
                return []
            return [self._segment(source, other, _PSH | _ACK, data), *self._acknowledgement(source, other)]
        last = (length - 1) // size * size
        packets = [self._segment(source, other, _ACK, data[at : at + size]) for at in range(0, last, size)]
        packets.append(self._segment(source, other, _PSH | _ACK, data[last:]))
        packets += self._acknowledgement(source, other)
        return packets

    def headers(self, length: int, *, from_client: bool) -> bytes:
        """The headers of a segment, whose data the caller adds: `length` bytes, at most `segment_size`. Nothing is
        acknowledged, and TCP's checksum is 0.

        Hot path: the one for an IDS, which gets each read and each write of a connection as a packet.
        """
        source, other = self._speaker(from_client=from_client)
        number = source.next
        source.next = (number + length) % _MODULUS
        if not self._version4:
            return _HEADERS6.pack(_BEFORE6, _HEADER + length, source.ends, number, other.next, _LAST)
        size = 40 + length
        checksum = 65535 - (source.sum4 + size) % 65535
        return _HEADERS4.pack(_BEFORE4, size, _BEHIND4, checksum, source.ends, number, other.next, _LAST)

    def lost(self, count: int, *, from_client: bool) -> None:
        """`count` bytes were sent of which nothing is known. Makes no packet."""
        source, _ = self._speaker(from_client=from_client)
        source.next = (source.next + count) % _MODULUS

    def finish(self, *, from_client: bool) -> list[bytes]:
        """FIN of one end and its acknowledgement; the other end may go on."""
        source, other = self._speaker(from_client=from_client)
        source.finished = True
        fin = self._segment(source, other, _FIN | _ACK, b"")
        source.next = (source.next + 1) % _MODULUS
        return [fin, self._segment(other, source, _ACK, b"")]

    def reset(self, *, from_client: bool) -> list[bytes]:
        """RST of one end, which ends the connection; nothing when it has ended already."""
        if self._over or (self._client.finished and self._server.finished):
            return []
        self._over = True
        source, other = (self._client, self._server) if from_client else (self._server, self._client)
        return [self._segment(source, other, _RST | _ACK, b"")]

    def _speaker(self, *, from_client: bool) -> tuple[_Direction, _Direction]:
        source, other = (self._client, self._server) if from_client else (self._server, self._client)
        if source.finished or self._over or not self._is_open:
            raise BugError("nothing is sent before a connection is open or after its end")
        return source, other

    def _acknowledgement(self, source: _Direction, other: _Direction) -> list[bytes]:
        return [self._segment(other, source, _ACK, b"")] if self._acknowledges else []

    def _segment(self, source: _Direction, other: _Direction, flags: int, payload: bytes) -> bytes:
        """A packet with the next sequence number, which goes on behind the payload."""
        length = len(payload)
        number, acknowledged = source.next, other.next
        source.next = (number + length) % _MODULUS
        value = int.from_bytes(payload)
        if length & 1:
            value <<= 8
        total = source.sum_tcp + _HEADER + length + number + acknowledged + (_OFFSET << 8) + flags + value
        checksum = 65535 - total % 65535
        if not self._version4:
            return (
                _PACKET6.pack(0x60000000, _HEADER + length, _TCP, 64, source.addresses, source.from_port,
                              source.to_port, number, acknowledged, _OFFSET, flags, _WINDOW, checksum, 0)
                + payload
            )  # fmt: skip
        size = 40 + length
        return (
            _PACKET4.pack(0x45, 0, size, 0, 0x4000, 64, _TCP, 65535 - (source.sum4 + size) % 65535, source.addresses,
                          source.from_port, source.to_port, number, acknowledged, _OFFSET, flags, _WINDOW, checksum, 0)
            + payload
        )  # fmt: skip

    def _synchronise(self, source: _Direction, other: _Direction, flags: int) -> bytes:
        """A SYN with the options for the segment size and the window scale."""
        options = struct.pack("!BBHBBBB", 2, 4, self._segment_size, 1, 3, 3, _SCALE)
        acknowledged = other.next if flags & _ACK else 0
        offset = (_HEADER + len(options)) // 4 << 4
        length = _HEADER + len(options)
        total = source.sum_tcp + length + source.next + acknowledged + (offset << 8) + flags + int.from_bytes(options)
        tcp = struct.pack(
            "!HHIIBBHHH", source.from_port, source.to_port, source.next, acknowledged, offset, flags, _WINDOW,
            65535 - total % 65535, 0,
        )  # fmt: skip
        if not self._version4:
            return struct.pack("!IHBB32s", 0x60000000, length, _TCP, 64, source.addresses) + tcp + options
        size = 20 + length
        checksum = 65535 - (source.sum4 + size) % 65535
        head = struct.pack("!BBHHHBBH8s", 0x45, 0, size, 0, 0x4000, 64, _TCP, checksum, source.addresses)
        return head + tcp + options
