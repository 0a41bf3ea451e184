"""What is used of pyroute2: the layouts of netlink messages, encoded and decoded by it. No other module imports it.

pyroute2's sockets are not used; `netns.exchange` sends and receives. Each of those sockets is an asyncio object with an
event loop and four descriptors of its own, belongs to the thread that made it (another thread gets a new socket, in its
own namespace), waits without a deadline, and refuses to work in a thread whose event loop runs, as the daemon's does. A
question by way of a thread and such a socket takes 1,300 microseconds of CPU, by way of `netns.exchange` 100.

`import pyroute2` executes the package's `__init__`, which imports every protocol that the library knows: 8.0 MiB and
120 ms of CPU. The modules that are named below need 0.7 MiB and 20 ms. Therefore the package is entered unexecuted
(`aio.unexecuted_package`), unless somebody has imported it before.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from sidestep.aio import unexecuted_package
from sidestep.model.pod import Family

unexecuted_package.enter("pyroute2")

from pyroute2.netlink import (  # noqa: E402
    NETLINK_ROUTE,
    NETLINK_SOCK_DIAG,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    nlmsg,
    nlmsgerr,
)
from pyroute2.netlink.diag import (  # noqa: E402
    SOCK_DESTROY,
    SOCK_DIAG_BY_FAMILY,
    SS_CLOSE,
    SS_ESTABLISHED,
    SS_LISTEN,
    inet_diag_msg,
    inet_diag_req,
)
from pyroute2.netlink.exceptions import NetlinkDecodeError  # noqa: E402
from pyroute2.netlink.rtnl import RTM_GETADDR  # noqa: E402
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402

Address = IPv4Address | IPv6Address
Words = tuple[int, int, int, int]
"""An address in a `struct inet_diag_sockid`: four numbers of 32 bits; of an IPv4 address the first one."""


class DiagRequest(inet_diag_req):  # type: ignore[misc]  # pyroute2 publishes no types
    """`struct inet_diag_req_v2`, with a filter if one is given (`netns.port_filter`)."""

    nla_map = (("INET_DIAG_REQ_NONE", "none"), ("INET_DIAG_REQ_BYTECODE", "cdata"))


class ListenerAnswer(inet_diag_msg):  # type: ignore[misc]
    """`struct inet_diag_msg`; addresses stay `Words`, which are cheaper to read than text."""

    decode = nlmsg.decode


class ConnectionAnswer(ListenerAnswer):
    """The same without the attributes that follow, which halves the time it takes."""

    nla_map = ()


class Ending(nlmsgerr):  # type: ignore[misc]
    """What begins an NLMSG_ERROR and an NLMSG_DONE: an error number, negative or 0."""

    nla_map = ()


def encoded(request: nlmsg, kind: int, flags: int) -> bytes:
    """A whole message of a type and with flags; `netns.exchange` gives it a sequence number."""
    request["header"].update(type=kind, flags=flags, sequence_number=0, pid=0)
    request.encode()
    return bytes(request.data)


@lru_cache(maxsize=256)
def list_sockets(*, family: Family, protocol: int, state: int, program: bytes = b"") -> bytes:
    """Ask for sockets of one family, protocol (IPPROTO_TCP, IPPROTO_UDP) and state (`SS_LISTEN` ...).

    Kept, because encoding costs 60 microseconds and pods are asked the same again and again.
    """
    request = DiagRequest()
    request["sdiag_family"] = int(family)
    request["sdiag_protocol"] = protocol
    request["idiag_states"] = 1 << state
    if program:
        request["attrs"] = [("INET_DIAG_REQ_BYTECODE", program)]
    return encoded(request, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP)


def list_addresses() -> bytes:
    """Ask for the addresses of all interfaces and families."""
    return encoded(ifaddrmsg(), RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP)


def address_of(words: Words, family: int) -> Address:
    """The address that an answer holds; IPv4 for an IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2)."""
    if family == Family.IPV4:
        return IPv4Address(words[0])
    address = IPv6Address(words[0] << 96 | words[1] << 64 | words[2] << 32 | words[3])
    return address.ipv4_mapped or address


__all__ = [
    "NETLINK_ROUTE",
    "NETLINK_SOCK_DIAG",
    "NLMSG_DONE",
    "NLMSG_ERROR",
    "NLM_F_ACK",
    "NLM_F_DUMP_INTR",
    "NLM_F_REQUEST",
    "SOCK_DESTROY",
    "SOCK_DIAG_BY_FAMILY",
    "SS_CLOSE",
    "SS_ESTABLISHED",
    "SS_LISTEN",
    "Address",
    "ConnectionAnswer",
    "DiagRequest",
    "Ending",
    "ListenerAnswer",
    "NetlinkDecodeError",
    "Words",
    "address_of",
    "encoded",
    "ifaddrmsg",
    "list_addresses",
    "list_sockets",
    "nlmsg",
]
