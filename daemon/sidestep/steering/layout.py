"""The Python side of bpf/layout.h: keys and values of the maps, the verdicts, and what is compiled from which source.

The maps are described here only; the C side refers to each by its place in `Source.maps`, and asserts the sizes that
are used here when it is compiled. The kernel's verifier sees the rest: a program that reads another map than it was
compiled for, or beyond a value, is not loaded.
"""

from __future__ import annotations

import enum
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import msgspec

from sidestep.model.errors import BugError
from sidestep.model.pod import Family, Transport

PROGRAM = "sidestep_lookup"
"""Name of the C function, of its file, and of the loaded program (15 characters, the kernel's limit)."""

PORTS = "ports"
"""Socket hash of the steered ports."""

COUNTS = "counts"
"""Per-CPU array of one 64-bit counter per verdict."""

CLOSED = "closed"
"""Hash of the closed ports. Its values have no meaning."""

CLOSED_VALUE = b"\x01"

STEERED_MAX = 1024
"""Entries of `ports`, and of `closed`: ports times transports times families of one pod."""

PEER4, PEER6 = "sidestep_peer4", "sidestep_peer6"
"""Names of the C functions that let an app see its client."""

CLIENTS = "clients"
"""Hash of the proxy's named connections."""

CLIENTS_MAX = 65537
"""Entries of `clients`: connections, and the network of the proxy's sources."""

SOURCES_PREFIX = 16
"""Fixed bits of that network."""

MAP_TYPE_HASH = 1
MAP_TYPE_PERCPU_ARRAY = 6
MAP_TYPE_SOCKHASH = 18

BPF_F_NO_PREALLOC = 1
"""Flag of a hash: elements are allocated when they are made."""

_KEY = struct.Struct("=HBB")
_CLIENT_KEY = struct.Struct("=16sH2xI")
_CLIENT_NAME = struct.Struct("=16sH2x")
_MAPPED = bytes(10) + b"\xff\xff"
_TRANSPORT_NUMBER = {Transport.TCP: 6, Transport.UDP: 17}
_TRANSPORT = {number: transport for transport, number in _TRANSPORT_NUMBER.items()}

SteeredPort = tuple[int, Transport, Family]
"""Port number, transport, address family: one entry of `ports`, or of `closed`."""


class Verdict(enum.IntEnum):
    """Why a lookup ended as it did; the values are indices of the counter array.

    Only STEERED assigns a socket, and only CLOSED refuses the connection.
    """

    STEERED = 0
    UNSTEERED = 1
    LOOPBACK = 2
    OWN = 3
    FAILED = 4
    CLOSED = 5


class MapLayout(msgspec.Struct, frozen=True):
    """What BPF_MAP_CREATE needs; sizes in bytes."""

    name: str
    type: int
    key_size: int
    value_size: int
    entries: int
    flags: int = 0


class Source(msgspec.Struct, frozen=True):
    """A C file in bpf/, the functions to take from it, and the maps that it refers to by their place in `maps`."""

    name: str
    functions: tuple[str, ...]
    maps: tuple[MapLayout, ...]


LOOKUP_SOURCE = Source(
    PROGRAM,
    (PROGRAM,),
    (
        MapLayout(PORTS, MAP_TYPE_SOCKHASH, _KEY.size, 8, STEERED_MAX),
        MapLayout(COUNTS, MAP_TYPE_PERCPU_ARRAY, 4, 8, len(Verdict)),
        MapLayout(CLOSED, MAP_TYPE_HASH, _KEY.size, len(CLOSED_VALUE), STEERED_MAX, BPF_F_NO_PREALLOC),
    ),
)
PEERNAME_SOURCE = Source(
    "sidestep_peername",
    (PEER4, PEER6),
    (MapLayout(CLIENTS, MAP_TYPE_HASH, _CLIENT_KEY.size, _CLIENT_NAME.size, CLIENTS_MAX, BPF_F_NO_PREALLOC),),
)


Address = IPv4Address | IPv6Address


def _wide(address: Address) -> bytes:
    return address.packed if isinstance(address, IPv6Address) else _MAPPED + address.packed


def pack_client_key(peer: Address, peer_port: int, local_port: int) -> bytes:
    """Encode `struct client_key`: the proxy's end of a connection and the app's port. Raises BugError for no port."""
    for port in (peer_port, local_port):
        if not 0 < port < 65536:
            raise BugError(f"{port} is not a port number")
    return _CLIENT_KEY.pack(_wide(peer), socket.htons(peer_port), local_port)


def pack_sources(sources: IPv4Network) -> tuple[bytes, bytes]:
    """Encode the entry that says from which addresses only the proxy connects. Raises BugError for another network."""
    if sources.prefixlen != SOURCES_PREFIX or not sources.is_loopback:
        raise BugError(f"{sources} is no network of sources")
    return bytes(_CLIENT_KEY.size), _CLIENT_NAME.pack(_wide(sources.network_address), 0)


def pack_client_name(client: Address, port: int) -> bytes:
    """Encode `struct client_name`. Raises BugError unless `port` is in 0..65535."""
    if not 0 <= port < 65536:
        raise BugError(f"{port} is not a port number")
    return _CLIENT_NAME.pack(_wide(client), socket.htons(port))


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
