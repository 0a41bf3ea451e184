"""The table of original destinations of one pod's steered outbound connections, as the pod proxy reads it.

The table is an mmapable array of the kernel, shared by three parties. The kernel's programs (bpf/sidestep_egress.c)
claim an entry in connect() and release it when the app has closed its socket. The pod proxy accepts the connection,
finds the entry by the local address of its own socket, and marks it as taken. A taken and released entry is claimed
again, so `take` copies what it returns.

An IPv4 connection has an address of the table's network, whose last 16 bits are the index. An IPv6 connection has the
local address ::1, and the index as its local port. Index 0 is never used.

The mirror of `struct egress_entry` in bpf/egress_layout.h. The caller maps the array with MAP_SHARED for reading and
writing: reading gives this process what the kernel's programs wrote, and the mark is 4 bytes, aligned, that nobody
else writes.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

import msgspec

from sidestep.model.errors import BugError

ENTRIES_MAX: Final = 65536
"""Entries of the largest table: the index has 16 bits."""

ENTRY: Final = struct.Struct("=Q16sIIIIHHBBH")
"""`struct egress_entry`: cookie, address, since, sequence, taken, busy, port, source port, state, family, padding."""

IN_USE: Final = 1
"""The state of an entry whose socket the app has not closed."""

_STATE: Final = 44
_SEQUENCE, _TAKEN = 28, 32
_MARK: Final = struct.Struct("=I")
_LOOPBACK: Final = IPv6Address("::1")

Address = IPv4Address | IPv6Address


class Original(msgspec.Struct, frozen=True):
    """Where the app wanted to connect to. `cookie` is the kernel's number of the app's socket."""

    address: Address
    port: int
    cookie: int


def table_size(entries: int) -> int:
    """Bytes to map of a table of so many entries. Raises BugError unless that is a power of two up to ENTRIES_MAX."""
    if not 0 < entries <= ENTRIES_MAX or entries & (entries - 1):
        raise BugError(f"{entries} is no number of entries of a table")
    return entries * ENTRY.size


class EgressTable:
    """The table in `memory`, which is at least `table_size(entries)` bytes and stays the caller's."""

    def __init__(self, memory: bytearray | memoryview, *, network: IPv4Network, entries: int) -> None:
        """Read `memory` as a table whose IPv4 connections have addresses of `network`, a /16."""
        if len(memory) < table_size(entries) or network.prefixlen != 16:
            raise BugError(f"{len(memory)} bytes and {network} are no table of {entries} entries")
        self._memory = memory
        self._network = network
        self._entries = entries

    def take(self, local: Address, port: int) -> Original | None:
        """The original destination of an accepted connection, by its local address and port; marks the entry as taken.

        None when no connection was steered there: somebody in the pod dialled the address itself.
        """
        index = self._index(local, port)
        if not 0 < index < self._entries:
            return None
        start = index * ENTRY.size
        cookie, address, _, sequence, _, _, original_port, _, _, _, _ = ENTRY.unpack_from(self._memory, start)
        if not sequence:
            return None
        _MARK.pack_into(self._memory, start + _TAKEN, sequence)
        wide = IPv6Address(address)
        return Original(wide.ipv4_mapped or wide, original_port, cookie)

    def in_use(self) -> int:
        """Entries whose socket the app has not closed."""
        states = bytes(self._memory[: self._entries * ENTRY.size])[_STATE :: ENTRY.size]
        return states.count(IN_USE)

    def _index(self, local: Address, port: int) -> int:
        if isinstance(local, IPv6Address):
            if local == _LOOPBACK:
                return port
            mapped = local.ipv4_mapped
            if mapped is None:
                return 0
            local = mapped
        return int(local) & 0xFFFF if local in self._network else 0
