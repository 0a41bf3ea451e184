"""A strict, bounded reader of pcapng files, as this product, dumpcap and tshark write them.

Bytes come in portions of any size; each `feed` returns the packets and statistics that are whole by then, and `finish`
says that the file has ended. Both byte orders are read, several sections too. Blocks of other types are skipped, as the
format asks of readers. A file is not trusted: each block has at most MAX_BLOCK bytes, a section at most MAX_INTERFACES
interfaces, and lengths have to add up. Everything else raises ConfigurationError, which names the offset in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from sidestep.model.errors import ConfigurationError
from sidestep.protocols import pcapng

MAX_BLOCK: Final = 1 << 20
"""Bytes of one block; a packet with its comments is far smaller."""
MAX_INTERFACES: Final = 4096
"""Interfaces of one section."""

_OBSOLETE_PACKET: Final = 2
_MAGIC: Final = pcapng.SECTION.to_bytes(4)
_NO_PCAPNG: Final = "this is no pcapng file: it does not begin with a section header"
_OTHER_FILES: Final = {
    b"\xd4\xc3\xb2\xa1": "a pcap file: convert it with `editcap -F pcapng`",
    b"\xa1\xb2\xc3\xd4": "a pcap file: convert it with `editcap -F pcapng`",
    b"\x4d\x3c\xb2\xa1": "a pcap file: convert it with `editcap -F pcapng`",
    b"\xa1\xb2\x3c\x4d": "a pcap file: convert it with `editcap -F pcapng`",
    b"\x1f\x8b": "compressed with gzip: decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it first",
}
"""What other files begin with, and what to do about it."""


class Interface(msgspec.Struct, frozen=True):
    """Where packets were captured. `link_type` says what they begin with, `snap_length` is 0 where it has no bound."""

    link_type: int
    name: str
    snap_length: int
    units: int
    """Units of a timestamp in one second."""
    offset: int
    """Seconds to add to timestamps."""

    def nanoseconds(self, timestamp: int) -> int:
        """A timestamp in nanoseconds since 1970."""
        return timestamp * 1_000_000_000 // self.units + self.offset * 1_000_000_000


class Packet(msgspec.Struct, frozen=True):
    """A captured packet; `timestamp` is in nanoseconds since 1970, None where the block has none."""

    interface: Interface
    timestamp: int | None
    data: bytes
    original_length: int
    comments: tuple[str, ...]
    dropped: int


class Statistics(msgspec.Struct, frozen=True):
    """What an interface received and lost until this block, in packets; None for what is not told."""

    interface: Interface
    received: int | None
    dropped: int | None


class _FaultError(Exception):
    """A block that cannot be read; becomes a ConfigurationError with the block's offset."""


class Reader:
    """Bytes of a file in, packets and statistics out."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._offset = 0
        """Of the first held byte in the file."""
        self._order = ""
        """Byte order of the section as `struct` names it, empty before the first section."""
        self._interfaces: list[Interface] = []

    def feed(self, data: bytes) -> list[Packet | Statistics]:
        """Take more of the file. Raises ConfigurationError for what cannot be read."""
        held = self._held
        held += data
        found: list[Packet | Statistics] = []
        at = 0
        try:
            while (size := self._size(at)) is not None and at + size <= len(held):
                read = self._read(bytes(held[at : at + size]))
                if read is not None:
                    found.append(read)
                at += size
        except _FaultError as fault:
            raise ConfigurationError(str(fault), subject=f"capture, byte {self._offset + at}") from None
        del held[:at]
        self._offset += at
        return found

    def finish(self) -> None:
        """The file has ended. Raises ConfigurationError when it ended inside a block or had no section."""
        where = f"capture, byte {self._offset}"
        if self._held:
            begun = bool(self._order) or _MAGIC.startswith(self._held[:4])
            raise ConfigurationError("the file ends inside a block" if begun else _NO_PCAPNG, subject=where)
        if not self._order:
            raise ConfigurationError("the file is empty", subject=where)

    def _size(self, at: int) -> int | None:
        """The size of the block at an offset, None while that cannot be told. Sets the byte order at a section."""
        head = bytes(self._held[at : at + 12])
        if not self._order and len(head) >= len(_MAGIC):
            self._check_beginning(head)
        if len(head) < 12:
            return None
        if int.from_bytes(head[:4]) == pcapng.SECTION:
            self._order = _order(head[8:12])
        size: int = struct.unpack_from(f"{self._order}I", head, 4)[0]
        if size < 12 or size % 4:
            raise _FaultError(f"a block cannot have {size} bytes")
        if size > MAX_BLOCK:
            raise _FaultError(f"a block of {size} bytes is larger than {MAX_BLOCK}")
        return size

    @staticmethod
    def _check_beginning(head: bytes) -> None:
        for magic, hint in _OTHER_FILES.items():
            if head.startswith(magic):
                raise _FaultError(f"this is {hint}")
        if not head.startswith(_MAGIC):
            raise _FaultError(_NO_PCAPNG)

    def _read(self, block: bytes) -> Packet | Statistics | None:
        kind, size = struct.unpack_from(f"{self._order}II", block)
        if struct.unpack_from(f"{self._order}I", block, size - 4)[0] != size:
            raise _FaultError("the two lengths of a block differ")
        body = block[8:-4]
        try:
            match kind:
                case pcapng.SECTION:
                    self._begin_section(body)
                case pcapng.INTERFACE:
                    self._add_interface(body)
                case pcapng.PACKET:
                    return self._read_packet(body)
                case pcapng.SIMPLE_PACKET:
                    return self._read_simple_packet(body)
                case pcapng.STATISTICS:
                    return self._read_statistics(body)
                case _ if kind == _OBSOLETE_PACKET:
                    raise _FaultError("packets are in obsolete blocks: convert it with `editcap -F pcapng`")
        except struct.error:
            raise _FaultError(f"a block of type {kind} is too short") from None
        return None

    def _begin_section(self, body: bytes) -> None:
        major: int = struct.unpack_from(f"{self._order}IHHQ", body)[1]
        if major != 1:
            raise _FaultError(f"version {major} of the format is not known")
        self._interfaces = []

    def _add_interface(self, body: bytes) -> None:
        if len(self._interfaces) >= MAX_INTERFACES:
            raise _FaultError(f"a section has more than {MAX_INTERFACES} interfaces")
        link_type, _, snap_length = struct.unpack_from(f"{self._order}HHI", body)
        name, units, offset = "", 1_000_000, 0
        for code, value in self._options(body[8:]):
            match code:
                case pcapng.INTERFACE_NAME:
                    name = value.decode(errors="replace")
                case pcapng.TIMESTAMP_RESOLUTION:
                    units = _units(value)
                case pcapng.TIMESTAMP_OFFSET:
                    offset = struct.unpack(f"{self._order}q", value)[0]
        self._interfaces.append(Interface(link_type, name, snap_length, units, offset))

    def _read_packet(self, body: bytes) -> Packet:
        number, high, low, length, original = struct.unpack_from(f"{self._order}IIIII", body)
        interface = self._interface(number)
        data, rest = _cut(body[20:], length, original)
        comments, dropped = [], 0
        for code, value in self._options(rest):
            if code == pcapng.COMMENT:
                comments.append(value.decode(errors="replace"))
            elif code == pcapng.PACKET_DROPS:
                dropped = struct.unpack(f"{self._order}Q", value)[0]
        timestamp = interface.nanoseconds(high << 32 | low)
        return Packet(interface, timestamp, data, original, tuple(comments), dropped)

    def _read_simple_packet(self, body: bytes) -> Packet:
        original: int = struct.unpack_from(f"{self._order}I", body)[0]
        interface = self._interface(0)
        length = min(original, interface.snap_length) if interface.snap_length else original
        data, rest = _cut(body[4:], length, original)
        if rest:
            raise _FaultError("something follows the packet in its block")
        return Packet(interface, None, data, original, (), 0)

    def _read_statistics(self, body: bytes) -> Statistics:
        number: int = struct.unpack_from(f"{self._order}III", body)[0]
        counts = {
            code: struct.unpack(f"{self._order}Q", value)[0]
            for code, value in self._options(body[12:])
            if code in (pcapng.RECEIVED, pcapng.DROPPED)
        }
        return Statistics(self._interface(number), counts.get(pcapng.RECEIVED), counts.get(pcapng.DROPPED))

    def _interface(self, number: int) -> Interface:
        if number >= len(self._interfaces):
            raise _FaultError(f"interface {number} was not described")
        return self._interfaces[number]

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Codes and values up to the end of the options."""
        at = 0
        while at < len(data):
            code, length = struct.unpack_from(f"{self._order}HH", data, at)
            if code == pcapng.END_OF_OPTIONS:
                return
            at += 4
            if at + length > len(data):
                raise _FaultError("an option is longer than its block")
            yield code, data[at : at + length]
            at += length + -length % 4


def _order(magic: bytes) -> str:
    for order in "<>":
        if magic == struct.pack(f"{order}I", pcapng.BYTE_ORDER):
            return order
    raise _FaultError("the byte order of a section cannot be told")


def _units(value: bytes) -> int:
    """if_tsresol: a negative power of 10, or of 2 where the highest bit is set."""
    if len(value) != 1:
        raise _FaultError("the resolution of timestamps cannot be read")
    exponent = value[0] & 0x7F
    return 1 << exponent if value[0] & 0x80 else 10**exponent


def _cut(data: bytes, length: int, original: int) -> tuple[bytes, bytes]:
    """A packet's bytes, and what follows their padding."""
    padded = length + -length % 4
    if padded > len(data):
        raise _FaultError("a packet is longer than its block")
    if length > original:
        raise _FaultError("more of a packet was captured than it has")
    return data[:length], data[padded:]
