"""Lists the established TCP connections to a port of a network namespace, and ends them (sock_diag(7)).

When an intercept begins, existing connections stay with the app. With `--reset-existing` the kernel ends them
(SOCK_DESTROY: the app sees ECONNABORTED, the client a reset), so that their clients connect again, through the proxy.
The list is taken before the port is steered, and each connection is identified by the kernel's cookie: connections that
arrive later belong to the proxy, may have the same addresses, and must not be ended.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, NamedTuple

import msgspec

from sidestep.model.errors import KernelError
from sidestep.model.pod import Family
from sidestep.netns.exchange import command, dump
from sidestep.netns.messages import (
    NETLINK_SOCK_DIAG,
    NLM_F_ACK,
    NLM_F_REQUEST,
    SOCK_DESTROY,
    SS_ESTABLISHED,
    Address,
    ConnectionAnswer,
    DiagRequest,
    Words,
    address_of,
    encoded,
    list_sockets,
)
from sidestep.netns.namespace import Netns
from sidestep.netns.port_filter import port_filter


class SocketId(NamedTuple):
    """The kernel's identification of a socket, with the names of `struct inet_diag_sockid`."""

    idiag_sport: int = 0
    idiag_dport: int = 0
    idiag_src: Words = (0, 0, 0, 0)
    idiag_dst: Words = (0, 0, 0, 0)
    idiag_if: int = 0
    idiag_cookie: int = 0
    """A number that no other socket ever gets."""


class Connection(msgspec.Struct, frozen=True):
    """One established connection: the client's address and the kernel's identification of the socket."""

    client: Address
    client_port: int
    family: Family
    sockid: SocketId
    uid: int
    """Of the process that accepted it; 0 also while nobody has."""


def established(netns: Netns, port: int) -> tuple[Connection, ...]:
    """Connections of clients outside the pod to `port`. Raises KernelError (E2BIG: too many)."""
    found: list[Connection] = []
    program = port_filter([port])
    doing = f"listing the connections of {netns.path}"
    for family in Family:
        request = list_sockets(family=family, protocol=socket.IPPROTO_TCP, state=SS_ESTABLISHED, program=program)
        try:
            for answer in dump(netns, NETLINK_SOCK_DIAG, request, answer=ConnectionAnswer, doing=doing):
                connection = _connection(answer, port)
                if connection is not None:
                    found.append(connection)
        except KernelError as error:
            if family is Family.IPV6 and error.errno == errno.ENOENT:
                continue  # a kernel without IPv6
            raise
    return tuple(found)


def destroy(netns: Netns, connection: Connection) -> bool:
    """End a connection; return whether it still existed. Raises KernelError (EOPNOTSUPP: not in this kernel)."""
    request = DiagRequest()
    request.update(
        sdiag_family=int(connection.family),
        sdiag_protocol=int(socket.IPPROTO_TCP),
        idiag_states=1 << SS_ESTABLISHED,
        **connection.sockid._asdict(),
    )
    message = encoded(request, SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK)
    try:
        command(netns, NETLINK_SOCK_DIAG, message, doing="closing a connection")
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def _connection(answer: dict[str, Any], port: int) -> Connection | None:
    if answer["idiag_state"] != SS_ESTABLISHED or answer["idiag_sport"] != port:
        return None
    family = Family(answer["idiag_family"])
    client, own = address_of(answer["idiag_dst"], family), address_of(answer["idiag_src"], family)
    if client.is_loopback or client == own:
        return None  # from inside the pod, maybe the proxy's own
    sockid = SocketId(*(answer[name] for name in SocketId._fields))
    return Connection(client, sockid.idiag_dport, family, sockid, answer["idiag_uid"])
