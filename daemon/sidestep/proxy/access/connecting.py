"""Makes one connection from the pod for a session: looks the name up, judges each address, connects.

Addresses are tried one after the other; each gets its share of the time that is left, at least SHARE seconds. The
source address is the one that the pod's routes give, so its network policies apply. A destination that is refused
(`policy.destinations`) is sent no packet. UDP sockets are connected, so that only answers of the destination arrive.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from sidestep.model.errors import RefusedError
from sidestep.policy.destinations import Destinations
from sidestep.protocols.resolver_files import ResolverSettings, address_of
from sidestep.proxy.access.deadline import Deadline
from sidestep.proxy.access.resolving import Resolver
from sidestep.proxy.io.loop import WRITE, Loop
from sidestep.proxy.io.task import Watch

Address = IPv4Address | IPv6Address

TIME: Final = 20.0
"""Seconds for all of it."""
SHARE: Final = 2.0
"""Seconds that each of several addresses gets at least."""
MAX_REASONS: Final = 4
"""Addresses whose failures are told."""
_DISCARD: Final = 9
"""The port to which a socket is connected to learn whether an address is local; nothing is sent."""
_WHY: Final = {
    errno.ECONNREFUSED: "refused the connection",
    errno.ECONNRESET: "refused the connection",
    errno.ETIMEDOUT: "did not answer",
    errno.EHOSTUNREACH: "cannot be reached from the pod",
    errno.ENETUNREACH: "cannot be reached from the pod",
    errno.EACCES: "cannot be reached from the pod, by a rule there",
    errno.EPERM: "cannot be reached from the pod, by a rule there",
}


class PodNetwork(msgspec.Struct, frozen=True):
    """What the daemon says of the pod's network, and what it permits."""

    settings: ResolverSettings = msgspec.field(default_factory=ResolverSettings)
    hosts: Mapping[str, tuple[Address, ...]] = msgspec.field(default_factory=dict)
    destinations: Destinations = msgspec.field(default_factory=Destinations)


class Connecting:
    """One attempt."""

    def __init__(self, loop: Loop, network: PodNetwork, *, allow_loopback: bool) -> None:
        self._loop = loop
        self._network = network
        self._allow_loopback = allow_loopback
        self._deadline = Deadline(TIME)
        self.address = ""
        """Where the connection that was made leads."""

    async def connected(self, host: str, port: int, kind: int) -> socket.socket:
        """Return a connected, non-blocking socket of a kind (SOCK_STREAM or SOCK_DGRAM). Raises SidestepError."""
        try:
            addresses = await self._addresses(host)
        except TimeoutError as error:
            raise RefusedError(f"the name {host} could not be looked up within {self._deadline.seconds:g} s") from error
        reasons = []
        for index, address in enumerate(addresses):
            place = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
            try:
                self._check(address)
                self.address = str(address)
                return await self._connect(address, port, kind, others=len(addresses) - index - 1)
            except RefusedError as error:
                reasons.append(f"{place} is refused: {error}")
            except TimeoutError:
                reasons.append(f"{place} did not answer within the time ({self._deadline.seconds:g} s in all)")
            except OSError as error:
                code = error.errno or errno.EIO
                reasons.append(f"{place} {_WHY.get(code, f'cannot be connected to: {os.strerror(code).lower()}')}")
        named = "" if address_of(host) is not None else f"{host}: "
        raise RefusedError(named + "; ".join(reasons[:MAX_REASONS]))

    async def _addresses(self, host: str) -> tuple[Address, ...]:
        address = address_of(host)
        if address is not None:
            return (address,)
        network = self._network
        return await Resolver(self._loop, network.settings, network.hosts, self._deadline).addresses(host)

    def _check(self, address: Address) -> None:
        """Raise RefusedError for a destination that is denied, OSError for one to which there is no route."""
        for is_local in (False, True):
            if is_local and not _is_local(address):
                break
            reason = self._network.destinations.refusal(address, is_local=is_local, allow_loopback=self._allow_loopback)
            if reason:
                raise RefusedError(reason)

    async def _connect(self, address: Address, port: int, kind: int, *, others: int) -> socket.socket:
        sock = socket.socket(_family(address), kind | socket.SOCK_NONBLOCK)
        watch: Watch | None = None
        try:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            code = sock.connect_ex((str(address), port))
            if code == errno.EINPROGRESS:
                left = self._deadline.left()
                watch = Watch(self._loop, sock.fileno(), seconds=min(left, max(SHARE, left / (others + 1))))
                await watch.event(WRITE)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, "connect")
        except BaseException:
            if watch is not None:
                watch.close()
            sock.close()
            raise
        if watch is not None:
            watch.close()
        return sock


def _is_local(address: Address) -> bool:
    """Whether the kernel delivers to an address within this network namespace. Raises OSError: there is no route.

    To most of its own addresses it sends from that very address. To others, such as a second address of the same
    network, it sends from another one, but it lets a socket have them.
    """
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((str(address), _DISCARD))
        if address_of(sock.getsockname()[0]) == address:
            return True
    if address.version == 4 or address.ipv4_mapped is not None:
        other: Address = IPv4Address("198.51.100.1")
        if address.version == 6:
            other = IPv6Address(f"::ffff:{other}")
    else:
        other = IPv6Address("100::1")
    return _may_have(address) and not _may_have(other)  # with ip_nonlocal_bind (ip_sysctl) a socket may have any


def _may_have(address: Address) -> bool:
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
        return True


def _family(address: Address) -> int:
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET
