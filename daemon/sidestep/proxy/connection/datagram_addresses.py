"""The addresses of datagrams: from packet information (ip(7), ipv6(7)) and from packets that were copied.

A *copied* datagram comes from a raw socket: with its IPv4 header, or over IPv6 with its UDP header only, where the
addresses come from the packet information.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from sidestep.protocols import udp
from sidestep.proxy.connection.dial import plain_address

IP_PKTINFO: Final = 8
"""linux/in.h; Python has no name for it."""
_PKTINFO4: Final = struct.Struct("=i4s4s")
_PKTINFO6: Final = struct.Struct("=16si")

Ancillary = tuple[int, int, bytes]
"""One control message: level, type, data (`recvmsg`)."""
Copied = tuple[str, int, str, int, bytes]
"""(client address, client port, local address, local port, payload)."""


def local_address(ancillary: list[Ancillary]) -> str | None:
    """The address that a datagram was sent to; None without packet information."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(data) >= _PKTINFO6.size:
            return plain_address(str(_unmapped(_PKTINFO6.unpack_from(data)[0])))
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO and len(data) >= _PKTINFO4.size:
            return str(ip_address(_PKTINFO4.unpack_from(data)[2]))
    return None


def source_information(address: str) -> Ancillary:
    """The control message that makes `sendmsg` send from this address."""
    packed = ip_address(address).packed
    if len(packed) == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO4.pack(0, packed, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(packed, 0)


def copied4(data: bytes) -> Copied | None:
    """What an IPv4 packet carries; None if it is no whole UDP datagram."""
    parsed = udp.parse4(data)
    if parsed is None:
        return None
    source, destination, source_port, port, payload = parsed
    return str(ip_address(source)), source_port, str(ip_address(destination)), port, payload


def copied6(data: bytes, ancillary: list[Ancillary], client: str) -> Copied | None:
    """What a UDP packet of `client` carries; None if it is not whole, or its packet information is missing."""
    parsed = udp.parse(data)
    local = local_address(ancillary)
    if parsed is None or local is None:
        return None
    source_port, port, payload = parsed
    return client, source_port, local, port, payload


def _unmapped(packed: bytes) -> IPv4Address | IPv6Address:
    address = ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
