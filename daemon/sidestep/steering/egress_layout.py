"""The Python side of bpf/egress_layout.h: settings, prefixes, ports and verdicts of outbound steering, and its maps.

The entries themselves are in sidestep/model/egress_table.py, because the pod proxy reads them.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

import msgspec

from sidestep.model.egress_table import ENTRIES_MAX, ENTRY
from sidestep.model.errors import BugError
from sidestep.steering import bpf
from sidestep.steering.layout import (
    BPF_F_NO_PREALLOC,
    MAP_TYPE_HASH,
    MAP_TYPE_PERCPU_ARRAY,
    MapLayout,
    Source,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

CONNECT4, CONNECT6 = "sidestep_conn4", "sidestep_conn6"
PEER4, PEER6 = "sidestep_opeer4", "sidestep_opeer6"
SEND4, SEND6 = "sidestep_send4", "sidestep_send6"
CLOSED = "sidestep_closed"
LOOKUP = "sidestep_egress"
"""Names of the C functions and of the loaded programs (15 characters, the kernel's limit)."""

SETTINGS, PREFIXES, PORTS, ENTRIES, COUNTS, LISTENER = "settings", "prefixes", "oports", "entries", "ocounts", "olisten"
DOWN = "down"

PREFIXES_MAX: Final = 1024
"""Prefixes of one configuration, steered and passed ones together."""

PORTS_MAX: Final = 1024
"""Ports of one configuration."""

DOWN_MAX: Final = 512
"""Destinations that do not answer; the kernel forgets the one that was used least recently."""

MAP_TYPE_ARRAY = 2
MAP_TYPE_LRU_HASH = 9
MAP_TYPE_LPM_TRIE = 11
MAP_TYPE_SOCKMAP = 15

BPF_F_MMAPABLE = 1 << 10
"""Flag of an array: user space may map it (Linux 5.5)."""

_FAIL, _ALL_PORTS, _BLOCK_QUIC = 1, 2, 4
_SETTINGS = struct.Struct("=II4sI16s16sQ")
SETTINGS_SIZE: Final = _SETTINGS.size
_PREFIX = struct.Struct("=II16s")
_PORT = struct.Struct("=II")
_DESTINATION = struct.Struct("=16sI")
DOWN_KEY: Final = _DESTINATION.size
"""Bytes of a destination that does not answer."""
_UNTIL = struct.Struct("=I")
_MAPPED = bytes(10) + b"\xff\xff"
_STEERED, _PASSED = struct.pack("=I", 1), struct.pack("=I", 0)
PORT_VALUE = b"\x01"

EVERYWHERE: Final[tuple[Network, ...]] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
"""Every address of both families."""

NOT_EXTERNAL: Final[tuple[Network, ...]] = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("127.0.0.0/8"),
    IPv4Network("169.254.0.0/16"),
    IPv4Network("224.0.0.0/4"),
    IPv4Network("255.255.255.255/32"),
    IPv6Network("::/127"),
    IPv6Network("fe80::/10"),
    IPv6Network("ff00::/8"),
)
"""What is in no cluster's networks and not external either: this host, link-local, multicast, broadcast."""


class EgressVerdict(enum.IntEnum):
    """What became of a connection (`enum egress_verdict`); the values are indices of the counter array.

    CLOSED is counted in addition to the reason for which the connection could not be steered.
    """

    STEERED = 0
    UNSELECTED = 1
    LOOPBACK = 2
    FULL = 3
    UNSERVED = 4
    UNREACHABLE = 5
    FAILED = 6
    CLOSED = 7
    QUIC_BLOCKED = 8
    LOST = 9
    DOWN = 10


class EgressConfig(msgspec.Struct, frozen=True):
    """Which outbound connections of a pod are steered.

    Of `steered` and `passed` the longest prefix that contains the destination decides; without one it is passed.
    `own` are the pod's addresses, at most one per family: steered connections come from there, and connections to
    there are passed. Without an IPv6 address there, IPv6 connections are not steered.
    """

    steered: tuple[Network, ...] = EVERYWHERE
    passed: tuple[Network, ...] = NOT_EXTERNAL
    ports: frozenset[int] | None = None
    """Destination ports; None: all."""
    fail: bool = False
    """Refuse what is selected and cannot be steered."""
    block_quic: bool = False
    """Refuse UDP to port 443 of selected addresses."""
    own: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        """Raise BugError for what the maps cannot hold."""
        if len(self.steered) + len(self.passed) + len(self.own) > PREFIXES_MAX:
            raise BugError(f"more than {PREFIXES_MAX} prefixes")
        if self.ports is not None and (len(self.ports) > PORTS_MAX or not all(0 < port < 65536 for port in self.ports)):
            raise BugError(f"{sorted(self.ports)[:20]} are no ports to steer")
        if len({each.version for each in self.own}) < len(self.own):
            raise BugError(f"{self.own} has two addresses of one family")
        if both := set(self.steered) & set(self.passed):
            raise BugError(f"{sorted(map(str, both))} are steered and passed")


def maps(entries: int) -> tuple[MapLayout, ...]:
    """The maps of one pod whose table has so many entries."""
    return (
        MapLayout(SETTINGS, MAP_TYPE_ARRAY, 4, _SETTINGS.size, 1),
        MapLayout(PREFIXES, MAP_TYPE_LPM_TRIE, _PREFIX.size, 4, 2 * PREFIXES_MAX, BPF_F_NO_PREALLOC),
        MapLayout(PORTS, MAP_TYPE_HASH, _PORT.size, len(PORT_VALUE), 2 * PORTS_MAX, BPF_F_NO_PREALLOC),
        MapLayout(ENTRIES, MAP_TYPE_ARRAY, 4, ENTRY.size, entries, BPF_F_MMAPABLE),
        MapLayout(COUNTS, MAP_TYPE_PERCPU_ARRAY, 4, 8, len(EgressVerdict)),
        MapLayout(LISTENER, MAP_TYPE_SOCKMAP, 4, 8, 1),
        MapLayout(DOWN, MAP_TYPE_LRU_HASH, _DESTINATION.size, _UNTIL.size, DOWN_MAX),
    )


EGRESS_SOURCE = Source(
    LOOKUP,
    (CONNECT4, CONNECT6, PEER4, PEER6, SEND4, SEND6, CLOSED, LOOKUP),
    maps(ENTRIES_MAX),
)

CGROUP_PROGRAMS: Final = (
    (PEER4, bpf.PROG_TYPE_CGROUP_SOCK_ADDR, bpf.ATTACH_GETPEERNAME4),
    (PEER6, bpf.PROG_TYPE_CGROUP_SOCK_ADDR, bpf.ATTACH_GETPEERNAME6),
    (CLOSED, bpf.PROG_TYPE_CGROUP_SOCK, bpf.ATTACH_INET_SOCK_RELEASE),
    (SEND4, bpf.PROG_TYPE_CGROUP_SOCK_ADDR, bpf.ATTACH_UDP4_SENDMSG),
    (SEND6, bpf.PROG_TYPE_CGROUP_SOCK_ADDR, bpf.ATTACH_UDP6_SENDMSG),
    (CONNECT4, bpf.PROG_TYPE_CGROUP_SOCK_ADDR, bpf.ATTACH_INET4_CONNECT),
    (CONNECT6, bpf.PROG_TYPE_CGROUP_SOCK_ADDR, bpf.ATTACH_INET6_CONNECT),
)
"""Function, type and place of the programs on the cgroup, in order of attachment: those that steer come last."""

STEERING_PROGRAMS: Final = (CONNECT4, CONNECT6, SEND4, SEND6)
"""Those that have an effect on new connections."""


def pack_settings(config: EgressConfig, *, generation: int, network: IPv4Network, entries: int, netns: int) -> bytes:
    """Encode `struct egress_settings`; `netns` is the cookie of the pod's network namespace, or 0."""
    flags = _FAIL * config.fail | _ALL_PORTS * (config.ports is None) | _BLOCK_QUIC * config.block_quic
    own = {each.version: wide(each) for each in config.own}
    return _SETTINGS.pack(
        generation,
        flags,
        network.network_address.packed,
        entries - 1,
        own.get(4, bytes(16)),
        own.get(6, bytes(16)),
        netns,
    )


def network_of(settings: bytes) -> IPv4Network:
    """The network that `pack_settings` was given."""
    return IPv4Network((_SETTINGS.unpack(settings)[2], 16))


def pack_prefixes(config: EgressConfig, *, generation: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the trie for a configuration."""
    for networks, value in ((config.steered, _STEERED), (config.passed, _PASSED)):
        for network in networks:
            yield _prefix(network.network_address, network.prefixlen, generation), value
    for address in config.own:
        yield _prefix(address, address.max_prefixlen, generation), _PASSED


def pack_ports(config: EgressConfig, *, generation: int) -> Iterator[bytes]:
    """Keys of the hash of ports for a configuration."""
    return (_PORT.pack(generation, port) for port in sorted(config.ports or ()))


def pack_down(address: Address, port: int, *, now: int, seconds: float) -> tuple[bytes, bytes]:
    """Encode a destination that does not answer, for so long from `now` (nanoseconds, CLOCK_MONOTONIC) on.

    The programs count time in units of 2^30 ns, so the end comes up to one such unit later.
    """
    until = now + int(seconds * 1e9) >> 30
    return _DESTINATION.pack(wide(address), port), _UNTIL.pack(until + 1 & 0xFFFFFFFF)


def _prefix(address: Address, length: int, generation: int) -> bytes:
    fixed = 32 + length + (96 if address.version == 4 else 0)
    return _PREFIX.pack(fixed, generation, wide(address))


def wide(address: Address) -> bytes:
    """16 bytes: an IPv6 address, or an IPv4 address mapped."""
    return address.packed if isinstance(address, IPv6Address) else _MAPPED + address.packed
