"""Two listeners on one port: connections from certain addresses go to the first, all others to the second.

Each listener has its own accept queue and its own queue of half-open connections, so a flood that fills the second does
not affect the first. The kernel chooses: SO_REUSEPORT makes the two listeners a group, and a classic BPF program
(socket(7), SO_ATTACH_REUSEPORT_CBPF) returns the index of the listener, in order of binding. This takes no capability.

The program compares the source address word by word. Unknown addresses go to the second listener, so a list that is too
short or out of date loses the preference, not the connection.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sidestep.model.errors import KernelError

Address = IPv4Address | IPv6Address

MAX_ADDRESSES: Final = 256
"""Addresses that the program compares with; a program has at most 4096 instructions, an IPv6 address takes nine."""

_SO_ATTACH_REUSEPORT_CBPF: Final = 51  # asm-generic/socket.h
_FILTER: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k
_LOAD_WORD, _LOAD_HALF, _JUMP, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x05, 0x15, 0x06
_NETWORK: Final = -0x100000  # SKF_NET_OFF: offsets from the beginning of the IP header
_PROTOCOL: Final = -0x1000  # SKF_AD_OFF + SKF_AD_PROTOCOL: the EtherType
_IPV4_SOURCE, _IPV6_SOURCE = 12, 8
_ETHERTYPE_IPV6: Final = 0x86DD


def split_listener(port: int, *, backlogs: tuple[int, int]) -> tuple[socket.socket, socket.socket]:
    """Listen on a port (0: any) of all addresses, IPv6's too where there is IPv6. Everything goes to the second until
    `prefer` is called. Non-blocking. Raises KernelError."""
    dual = socket.has_dualstack_ipv6()
    made: list[socket.socket] = []
    try:
        for _ in backlogs:
            listener = socket.socket(socket.AF_INET6 if dual else socket.AF_INET, socket.SOCK_STREAM)
            made.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if dual:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind(("", made[0].getsockname()[1] if len(made) > 1 else port))
        for listener, backlog in zip(made, backlogs, strict=True):
            listener.listen(backlog)
        prefer(made[0], ())
    except OSError as error:
        _close(made)
        raise KernelError("bind", error.errno or 0, doing=f"listening on port {port}") from error
    except KernelError:
        _close(made)
        raise
    return made[0], made[1]


def prefer(listener: socket.socket, addresses: Iterable[Address]) -> None:
    """Have connections from these addresses go to the first listener of the group from now on. Raises KernelError."""
    code = program(addresses)
    buffer = ctypes.create_string_buffer(code, len(code))
    argument = struct.pack("@HP", len(code) // _FILTER.size, ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, argument)
    except OSError as error:
        raise KernelError("setsockopt", error.errno or 0, doing="sorting connections by their source") from error


def program(addresses: Iterable[Address]) -> bytes:
    """The filter: 0 for a source among the addresses (IPv4 first, the lowest MAX_ADDRESSES), else 1."""
    known = sorted(set(addresses), key=lambda each: (each.version, int(each)))[:MAX_ADDRESSES]
    ipv4 = [_instruction(_LOAD_WORD, _NETWORK + _IPV4_SOURCE)]
    ipv6: list[bytes] = []
    for address in known:
        words = struct.unpack(f"!{len(address.packed) // 4}I", address.packed)
        if address.version == 4:
            ipv4 += [_instruction(_JUMP_EQUAL, words[0], otherwise=1), _instruction(_RETURN, 0)]
            continue
        for index, word in enumerate(words):
            ipv6.append(_instruction(_LOAD_WORD, _NETWORK + _IPV6_SOURCE + 4 * index))
            ipv6.append(_instruction(_JUMP_EQUAL, word, otherwise=2 * (3 - index) + 1))
        ipv6.append(_instruction(_RETURN, 0))
    ipv4.append(_instruction(_RETURN, 1))
    ipv6.append(_instruction(_RETURN, 1))
    choose = [
        _instruction(_LOAD_HALF, _PROTOCOL),
        _instruction(_JUMP_EQUAL, _ETHERTYPE_IPV6, then=1),
        _instruction(_JUMP, len(ipv6)),
    ]
    return b"".join([*choose, *ipv6, *ipv4])


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return _FILTER.pack(code, then, otherwise, value & 0xFFFFFFFF)


def _close(listeners: Iterable[socket.socket]) -> None:
    for listener in listeners:
        listener.close()
