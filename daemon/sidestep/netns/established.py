"""Lists the established TCP connections to a port of a network namespace, and ends them (sock_diag(7)).

When an intercept begins, existing connections stay with the app. With `--reset-existing` the kernel ends them
(SOCK_DESTROY: the app sees ECONNABORTED, the client a reset), so that their clients connect again, through the proxy.
The list is taken before the port is steered, and each connection is identified by the kernel's cookie: connections that
arrive later belong to the proxy, may have the same addresses, and must not be ended.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from sidestep.model.errors import KernelError
from sidestep.model.pod import Family
from sidestep.netns.listening import NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, Address
from sidestep.netns.namespace import Netns
from sidestep.netns.netlink import command, dump
from sidestep.netns.port_filter import port_filter

_SOCK_DESTROY: Final = 21
_ESTABLISHED: Final = 1
_REQUEST: Final = struct.Struct("=BBBxI48s")  # struct inet_diag_req_v2
_ANSWER: Final = struct.Struct("=BBBB48sIIII")  # the beginning of struct inet_diag_msg, up to the uid
_SOCKID: Final = struct.Struct("=2s2s16s16sI8s")  # struct inet_diag_sockid


@dataclass(frozen=True, slots=True)
class Connection:
    """One established connection: the client's address and the kernel's identification of the socket."""

    client: Address
    client_port: int
    family: int
    sockid: bytes
    uid: int
    """Of the process that accepted it; 0 also while nobody has."""


def established(netns: Netns, port: int) -> tuple[Connection, ...]:
    """Connections of clients outside the pod to `port`. Raises KernelError."""
    found: list[Connection] = []
    for family in Family:
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED, bytes(48)) + port_filter([port])
        try:
            diag = netns.netlink(NETLINK_SOCK_DIAG)
            doing = f"listing the connections of {netns.path}"
            for body in dump(diag, SOCK_DIAG_BY_FAMILY, request, doing=doing):
                connection = _connection(body, port)
                if connection is not None:
                    found.append(connection)
        except KernelError as error:
            netns.forget(NETLINK_SOCK_DIAG)
            if family is Family.IPV6 and error.errno == errno.ENOENT:
                continue  # a kernel without IPv6
            raise
    return tuple(found)


def destroy(netns: Netns, connection: Connection) -> bool:
    """End a connection; return whether it still existed. Raises KernelError (EOPNOTSUPP: not in this kernel)."""
    request = _REQUEST.pack(connection.family, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED, connection.sockid)
    try:
        command(netns.netlink(NETLINK_SOCK_DIAG), _SOCK_DESTROY, request, doing="closing a connection")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return False
        netns.forget(NETLINK_SOCK_DIAG)
        raise
    return True


def _connection(body: bytes, port: int) -> Connection | None:
    if len(body) < _ANSWER.size:
        return None
    family, state, _, _, sockid, _, _, _, uid = _ANSWER.unpack_from(body)
    local, remote, own, client, _, _ = _SOCKID.unpack(sockid)
    if state != _ESTABLISHED or int.from_bytes(local, "big") != port:
        return None
    address = _address(client, family)
    if address.is_loopback or address == _address(own, family):
        return None  # from inside the pod, maybe the proxy's own
    return Connection(address, int.from_bytes(remote, "big"), family, sockid, uid)


def _address(data: bytes, family: int) -> Address:
    address: Address = ip_address(data[:4] if family == Family.IPV4 else data)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
