"""The Python side of bpf/layout.h: the key of a steered port, the verdicts, and what the compiled maps must look like.

The C side asserts its sizes when it is compiled; this side compares what the compiler reported about each map with the
table below, so that a change to one file only is found before anything is loaded.
"""

from __future__ import annotations

import enum
import struct

from sidestep.model.errors import BugError
from sidestep.model.pod import Family, Transport

PROGRAM = "sidestep_lookup"
"""Name of the C function, of its file, and of the loaded program (15 characters, the kernel's limit)."""

PORTS = "ports"
"""Socket hash of the steered ports."""

COUNTS = "counts"
"""Per-CPU array of one 64-bit counter per verdict."""

STEERED_MAX = 1024
"""Entries of `ports`: ports times transports times families of one pod."""

MAP_TYPE_PERCPU_ARRAY = 6
MAP_TYPE_SOCKHASH = 18

_KEY = struct.Struct("=HBB")
_TRANSPORT_NUMBER = {Transport.TCP: 6, Transport.UDP: 17}
_TRANSPORT = {number: transport for transport, number in _TRANSPORT_NUMBER.items()}

SteeredPort = tuple[int, Transport, Family]
"""Port number, transport, address family: one entry of the map."""


class Verdict(enum.IntEnum):
    """Why a lookup ended as it did; the values are indices of the counter array. Only STEERED assigns a socket."""

    STEERED = 0
    UNSTEERED = 1
    LOOPBACK = 2
    OWN = 3
    FAILED = 4


EXPECTED: dict[str, tuple[int, int, int, int]] = {
    PORTS: (MAP_TYPE_SOCKHASH, _KEY.size, 8, STEERED_MAX),
    COUNTS: (MAP_TYPE_PERCPU_ARRAY, 4, 8, len(Verdict)),
}
"""Map name to (type, key size, value size, entries), sizes in bytes."""


def pack_key(port: int, transport: Transport, family: Family) -> bytes:
    """Encode `struct steered_key`. Raises BugError unless `port` is in 1..65535."""
    if not 0 < port < 65536:
        raise BugError(f"{port} is not a port number")
    return _KEY.pack(port, _TRANSPORT_NUMBER[transport], family)


def unpack_key(data: bytes) -> SteeredPort:
    """Decode `struct steered_key`. Raises BugError for a key that `pack_key` cannot have made."""
    try:
        port, transport, family = _KEY.unpack(data)
        return port, _TRANSPORT[transport], Family(family)
    except (struct.error, KeyError, ValueError) as error:
        raise BugError(f"the map of steered ports holds an impossible key {data.hex()}") from error
