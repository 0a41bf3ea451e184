"""The pods' world as this node has it: what `AccessServer` grants to sessions that may use it.

Variables, files, and those by which the pod looks up names, are read by the reader's one-shot children
(`node.certificates.one_shot`), never by a pod's proxy. Connections are made by the pod's proxy, which is in the pod's
network namespace; it is told what the node denies. Rights are checked by `node.sessions.access` before anything is
asked here.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from sidestep.model.errors import RefusedError, SidestepError
from sidestep.node.certificates.requests import FilesRequest, Names
from sidestep.node.sessions.pod_world import NoWorld
from sidestep.policy.destinations import Destinations, Network, networks_of
from sidestep.policy.pod_access import container_of, process_of
from sidestep.proxy.control.messages import MAX_HOSTS, MAX_RESOLV_CONF, Dial, UseNetwork
from sidestep.tunnel.channel import SocketChannel
from sidestep.tunnel.errors import ChannelBrokenError

if TYPE_CHECKING:
    from sidestep.model.intercept import Intercept
    from sidestep.model.inventory import Inventory
    from sidestep.model.pod import Pod, PodKey
    from sidestep.node.certificates.reader import Reader
    from sidestep.node.pods.target import Target
    from sidestep.node.proxies.dials import Dialled
    from sidestep.tunnel.channel import Channel

KEPT: Final = 15.0
"""Seconds for which what was read of a container's files, and the node's addresses, are used again."""
MAX_NAMES: Final = 1024
"""Containers of which it is kept."""


class RelayedChannel(SocketChannel):
    """The socket on which a pod's proxy relays a connection to `address`; "": it did not say which.

    Closed in both directions before this end has finished its own, it tells of a connection that broke. So does `end`.
    """

    def __init__(
        self, made: Dialled, *, ended: Callable[[str], None], closed: Callable[[RelayedChannel], None]
    ) -> None:
        super().__init__(made.sock)
        self.address = made.address
        self._ended = ended
        self._closed = closed
        self._finished = self._is_ended = False

    def end(self, reason: str) -> None:
        """Break the connection, and tell the session why."""
        self._closed(self)
        self._is_ended = True
        self._ended(reason)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes who reads it; `pump` then closes it

    def close(self) -> None:
        """As Channel.close."""
        self._closed(self)
        super().close()

    def abort(self) -> None:
        """As Channel.abort."""
        self._closed(self)
        super().abort()

    async def read(self) -> bytes:
        """As Channel.read."""
        data = await super().read()
        if not data and (self._is_ended or (not self._finished and self.hung_up())):
            raise ChannelBrokenError("the connection was reset")
        return data

    async def write_eof(self) -> None:
        """As Channel.write_eof."""
        self._finished = True
        await super().write_eof()


class NodePodWorld(NoWorld):
    """A `node.sessions.pod_world.PodWorld`. `inventory` returns the present one, `name` is the node's, `target` returns
    the target of a pod, `denied` the networks to which no session may have a pod connect, `node_addresses` those that
    the node's interfaces have."""

    def __init__(
        self,
        *,
        inventory: Callable[[], Inventory],
        reader: Reader,
        name: str,
        target: Callable[[PodKey], Target | None],
        denied: Callable[[], tuple[str, ...]],
        node_addresses: Callable[[], frozenset[IPv4Address | IPv6Address]],
    ) -> None:
        self._inventory = inventory
        self._reader = reader
        self._name = name
        self._made: dict[RelayedChannel, str] = {}
        """The connections that are open and were not ended, and how they are called."""
        self._target = target
        self._denied = denied
        self._followed: tuple[str, ...] = ()
        """The networks by which the open connections were judged last."""
        self._node_addresses = node_addresses
        self._node: tuple[float, tuple[str, ...]] | None = None
        self._names: dict[tuple[str, int | None], tuple[float, asyncio.Task[Names]]] = {}

    async def environment(self, access: Intercept, pod: PodKey, container: str) -> bytes:
        """As PodWorld.environment."""
        found = self._pod(pod)
        name = container_of(access, found, container)
        pid = process_of(found, name)
        if pid is None:
            raise RefusedError(f"container {name} of pod {pod} has no process here")
        return await self._reader.environment(pid, found.location.births.get(pid))

    async def connect(
        self, access: Intercept, pod: PodKey, host: str, port: int, protocol: str, *, ended: Callable[[str], None]
    ) -> Channel:
        """As PodWorld.connect."""
        target = self._target(pod)
        if target is None or not target.serves(access.uid):
            raise RefusedError(f"pod {pod} makes no connections for {access.leave_name} now")
        names = await self._names_of(access, self._pod(pod))
        resolv_conf, hosts = names.resolv_conf[:MAX_RESOLV_CONF], names.hosts[:MAX_HOSTS]
        network = UseNetwork(0, resolv_conf, hosts, denied=self._denied(), node=self._addresses())
        dial = Dial(0, 0, host, port, protocol, allow_loopback=access.allow_loopback)
        made = await target.dial(dial, network)
        channel = RelayedChannel(made, ended=ended, closed=self._forget)
        if reason := _denial(channel.address, networks_of(self._denied())):  # since it was asked for
            channel.abort()
            raise RefusedError(f"{made.address or host} is refused: {reason}")
        self._made[channel] = f"the connection to {f'[{host}]' if ':' in host else host}:{port}"
        return channel

    def _forget(self, channel: RelayedChannel) -> None:
        self._made.pop(channel, None)

    def follow_settings(self) -> None:
        """End the connections to what the node denies now. Cheap as long as that stays the same."""
        if (denied := self._denied()) == self._followed:
            return
        self._followed = denied
        networks = networks_of(denied)
        denials = {address: _denial(address, networks) for address in {each.address for each in self._made}}
        for channel, name in list(self._made.items()):
            if reason := denials[channel.address]:
                channel.end(f"the node has ended {name} ({channel.address or 'its address is not known'}): {reason}")

    def _addresses(self) -> tuple[str, ...]:
        """Return the node's own addresses: those of its interfaces, looked up at most KEPT seconds ago, and those that
        its Node has, which a cloud may translate. Raises SidestepError.
        """
        now = asyncio.get_running_loop().time()
        if self._node is None or now - self._node[0] > KEPT:
            self._node = now, tuple(sorted(map(str, self._node_addresses())))
        return tuple(sorted({*self._node[1], *self._inventory().addresses_of_node(self._name)}))

    async def _names_of(self, access: Intercept, pod: Pod) -> Names:
        """Return how a container looks up names, read at most KEPT seconds ago. Raises SidestepError."""
        root = _root_of(pod, container_of(access, pod))
        if root is None:
            return Names("", "")
        now = asyncio.get_running_loop().time()
        since, reading = self._names.get(root, (now, None))
        if reading is None or now - since > KEPT:
            reading = asyncio.ensure_future(self._reader.names(*root))
            self._names.pop(root, None)
            self._names[root] = now, reading
            if len(self._names) > MAX_NAMES:
                del self._names[next(iter(self._names))]
        try:
            return await asyncio.shield(reading)
        except SidestepError:
            if root in self._names and self._names[root][1] is reading:  # and not a newer one
                del self._names[root]
            raise

    async def files(
        self, access: Intercept, pod: PodKey, container: str, paths: tuple[str, ...], max_bytes: int
    ) -> socket.socket:
        """As PodWorld.files."""
        found = self._pod(pod)
        name = container_of(access, found, container)
        pid, root = process_of(found, name), found.location.root
        if pid is None and root is None:
            raise RefusedError(f"container {name} of pod {pod} has no process here")
        if pid is None and not paths:
            raise RefusedError(f"pod {pod} has no process here that its manifest names; name the folders")
        birth = found.location.births.get(pid) if pid is not None else None
        return await self._reader.files(FilesRequest(pid, birth, root or "", paths, max_bytes))

    def _pod(self, key: PodKey) -> Pod:
        found = self._inventory().pods.get(key)
        if found is None:
            raise RefusedError(f"pod {key} is gone")
        return found


def _denial(address: str, denied: Sequence[Network]) -> str:
    """Return why the annotation does not permit a connection, "" if it does; one to who knows where is denied."""
    try:
        found = ip_address(address)
    except ValueError:
        return "the pod's proxy does not say where it leads" if denied else ""
    return Destinations(tuple(denied)).refusal(found, is_local=True, allow_loopback=True)


def _root_of(pod: Pod, container: str) -> tuple[str, int | None] | None:
    """Return the root of a container, with the start time of its process; None where there is none."""
    pid = process_of(pod, container)
    if pid is not None:
        return f"/proc/{pid}/root", pod.location.births.get(pid)
    return None if pod.location.root is None else (pod.location.root, None)
