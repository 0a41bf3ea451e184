"""Steers the outbound connections of one pod to its proxy: programs on the pod's cgroup, and the maps they share.

What the programs do, the states of an entry and their invariants stand in bpf/sidestep_egress.c; how the proxy finds
the original destination stands in sidestep/model/egress_table.py. This module loads, attaches, configures and counts.

Attaching is a transaction: maps, settings, programs, then the links. The links of connect and sendmsg come last,
because they alone have an effect on the pod; a failure closes everything made before it. Nothing is pinned: when the
descriptors are closed (`close()`, a crash, SIGKILL), the kernel removes links, programs and maps, and connections go
out directly.

A configuration is replaced as a whole. Prefixes and ports carry the number of their configuration, and one number in
the settings says which is in force. Keys of the configuration before the last are deleted by the next update, so a
program that has just read the old number still finds its keys.

Upgrades: programs of several daemons on one cgroup run in order of attachment, and the first that steers a connection
wins, since the others see a loopback address and go on. A successor attaches, and takes over without a gap when its
predecessor retires, closes or dies. Each attachment rewrites to a network of its own (`egress_networks`).

The proxy's own connections do not meet the programs: a socket belongs to the cgroup that its maker was in, and a
configuration that steers anything is refused for a cgroup that this process is in.

Kernel: Linux 5.9 for the programs (cgroup/sock_release, sk_lookup) and their links; cgroup v2, mounted alone or beside
version 1. Linux 5.14 tells the cookie of a network namespace. Without it a container in the pod's cgroup with another
namespace is told by the pod's address, to which its sockets cannot be bound; a socket that has a port already is sent
to a loopback address where nobody listens.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import struct
import time
from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sidestep.model.egress_table import ENTRIES_MAX, EgressTable, table_size
from sidestep.model.errors import BugError, KernelError, RefusedError
from sidestep.steering import bpf
from sidestep.steering.egress_layout import (
    CGROUP_PROGRAMS,
    COUNTS,
    DOWN,
    DOWN_KEY,
    DOWN_MAX,
    ENTRIES,
    LISTENER,
    LOOKUP,
    PORT_VALUE,
    PORTS,
    PREFIXES,
    SETTINGS,
    STEERING_PROGRAMS,
    Address,
    EgressConfig,
    EgressVerdict,
    maps,
    pack_down,
    pack_ports,
    pack_prefixes,
    pack_settings,
)
from sidestep.steering.egress_networks import free_network, is_taken
from sidestep.steering.program import CompiledProgram

EgressPrograms = Mapping[str, CompiledProgram]
"""By name of the function, as `compile_egress` gives them."""

NO_CGROUP2: Final = "outbound connections can be steered on cgroup v2 only; this folder is of another file system"

_SO_NETNS_COOKIE: Final = 71
_KEY: Final = bytes(4)
_COOKIE: Final = struct.Struct("=Q")


class EgressSteering:
    """One pod's outbound steering. Made by `attach`; not for use from several threads."""

    def __init__(
        self,
        *,
        links: dict[str, int],
        descriptors: dict[str, int],
        cgroup: str,
        network: IPv4Network,
        entries: int,
        config: EgressConfig,
    ) -> None:
        """Take over the descriptors; use `attach`."""
        self.network = network
        """The loopback network that IPv4 connections are sent to; no other attachment to the namespace has it."""
        self.entries = entries
        """Entries of the table: connections that may be open at once."""
        self._links = links
        self._maps = descriptors
        self._cgroup = cgroup
        self._config = config
        self._generation = 0
        self._netns_cookie = 0
        self._keys: dict[int, tuple[list[bytes], list[bytes]]] = {}
        self._closed = False

    @classmethod
    def attach(
        cls,
        programs: EgressPrograms,
        cgroup: str,
        netns_fd: int,
        config: EgressConfig,
        *,
        entries: int = ENTRIES_MAX,
    ) -> Self:
        """Load `programs` with maps of their own; attach them to a folder of cgroup v2 and to the pod's namespace.

        Until `serve` is called nothing is steered: selected connections go out directly, or are refused where
        `config.fail` says so. The table takes 48 bytes for each of `entries`, a power of two up to 65,536. Raises
        KernelError, RefusedError as `update` does, BugError; then nothing is left behind.
        """
        table_size(entries)
        if not Path(cgroup, "cgroup.controllers").exists():
            raise KernelError("open", errno.ENOENT, doing=f"opening the cgroup {cgroup}", hint=NO_CGROUP2)
        with contextlib.ExitStack() as undo:
            folder = _opened(cgroup)
            undo.callback(os.close, folder)
            with contextlib.ExitStack() as made:
                descriptors = {}
                for layout in maps(entries):
                    descriptors[layout.name] = bpf.map_create(
                        name=f"sidestep_{layout.name}",
                        map_type=layout.type,
                        key_size=layout.key_size,
                        value_size=layout.value_size,
                        entries=layout.entries,
                        flags=layout.flags,
                    )
                    made.callback(os.close, descriptors[layout.name])
                links: dict[str, int] = {}
                attached = cls(
                    links=links,
                    descriptors=descriptors,
                    cgroup=cgroup,
                    network=free_network(netns_fd),
                    entries=entries,
                    config=config,
                )
                attached.update(config)
                places = (
                    (LOOKUP, bpf.PROG_TYPE_SK_LOOKUP, bpf.ATTACH_SK_LOOKUP, netns_fd),
                    *((*each, folder) for each in CGROUP_PROGRAMS),
                )
                for name, kind, attach_type, target in places:
                    loaded = bpf.prog_load(
                        name=name,
                        instructions=programs[name].relocated(list(descriptors.values())),
                        kind=kind,
                        attach_type=attach_type,
                    )
                    try:
                        links[name] = bpf.link_create(loaded, target, attach_type=attach_type)
                    finally:
                        os.close(loaded)
                    made.callback(os.close, links[name])
                attached._keep_apart(netns_fd)
                made.pop_all()
                return attached

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def table_fd(self) -> int:
        """The table of original destinations, for the proxy to map. The descriptor stays this object's."""
        return self._map(ENTRIES)

    def serve(self, listener_fd: int) -> None:
        """Send connections to this listener, a TCP socket of the pod's namespace, in the place of any other.

        A listener that is closed everywhere serves no more, as after `unserve`. Raises KernelError.
        """
        self._netns_cookie = _netns_cookie(listener_fd)
        self._put_in_force(self._config, self._generation)
        bpf.map_update(self._map(LISTENER), _KEY, _COOKIE.pack(listener_fd), doing="serving outbound connections")

    def unserve(self) -> None:
        """Steer no new connection; those in the listener's queue stay there. Raises KernelError."""
        try:
            bpf.map_delete(self._map(LISTENER), _KEY, doing="ending the service of outbound connections")
        except KernelError as error:
            if error.errno not in {errno.ENOENT, errno.EINVAL}:  # a socket map says EINVAL for an empty place
                raise

    def update(self, config: EgressConfig) -> None:
        """Put another configuration in force; connections that exist stay.

        Raises KernelError, RefusedError when this process is in the cgroup and connections would be steered; then the
        former one is in force.
        """
        if config.steered and _is_inside(os.getpid(), self._cgroup):
            raise RefusedError(
                f"Sidestep itself runs in the cgroup {self._cgroup}: its own connections would be steered"
            )
        self._forget(self._generation - 1)
        following = self._generation + 1
        prefixes: list[bytes] = []
        ports: list[bytes] = []
        self._keys[following] = (prefixes, ports)
        try:
            for key, value in pack_prefixes(config, generation=following):
                bpf.map_update(self._map(PREFIXES), key, value, doing="stating a network of outbound connections")
                prefixes.append(key)
            for key in pack_ports(config, generation=following):
                bpf.map_update(self._map(PORTS), key, PORT_VALUE, doing="stating a port of outbound connections")
                ports.append(key)
            self._put_in_force(config, following)
        except KernelError:
            self._forget(following)
            raise
        self._config = config
        self._generation = following

    def unreachable(self, address: Address, port: int, *, seconds: float) -> None:
        """Do not steer connections to a destination that refused the proxy or did not answer it, for so long.

        They go out directly, where the app sees what is wrong, or are refused where the configuration says `fail`.
        Raises KernelError.
        """
        key, value = pack_down(address, port, now=time.monotonic_ns(), seconds=seconds)
        bpf.map_update(self._map(DOWN), key, value, doing="noting a destination that does not answer")

    def forget_unreachable(self) -> None:
        """Steer connections to all destinations again that `unreachable` was told of. Raises KernelError."""
        fd, doing = self._map(DOWN), "forgetting the destinations that do not answer"
        for key in bpf.map_keys(fd, key_size=DOWN_KEY, limit=DOWN_MAX, doing=doing):
            with contextlib.suppress(KernelError):  # the kernel has forgotten it itself
                bpf.map_delete(fd, key, doing=doing)

    def counters(self) -> dict[str, int]:
        """Connections since attachment by lower-case name of the verdict, summed over the CPUs."""
        fd = self._map(COUNTS)
        values = struct.Struct(f"={bpf.possible_cpus()}Q")
        counted = {}
        for verdict in EgressVerdict:
            key = struct.pack("=I", verdict)
            data = bpf.map_lookup(fd, key, value_size=values.size, doing="reading the counters of outbound connections")
            counted[verdict.name.lower()] = sum(values.unpack(data))
        return counted

    def open_entries(self) -> int:
        """Connections whose socket the app has not closed."""
        size = -(-table_size(self.entries) // mmap.PAGESIZE) * mmap.PAGESIZE
        with mmap.mmap(self._map(ENTRIES), size, prot=mmap.PROT_READ) as memory, memoryview(memory) as view:
            return EgressTable(view, network=self.network, entries=self.entries).in_use()

    def attached(self) -> bool:
        """Whether all programs are still where they were attached (False once the cgroup or the namespace is gone)."""
        return not self._closed and all(bpf.link_target(link) for link in self._links.values())

    def retire(self) -> None:
        """Steer and refuse nothing more, because a successor is attached.

        Connections on their way reach the listener, and getpeername() is answered as before. Retiring twice does
        nothing.
        """
        for name in STEERING_PROGRAMS:
            _detach(self._links.pop(name, None))

    def close(self) -> None:
        """Detach and release everything: connections go out directly. Closing twice does nothing."""
        if self._closed:
            return
        self.retire()
        self._closed = True
        for link in self._links.values():
            _detach(link)
        for fd in self._maps.values():
            os.close(fd)

    def _keep_apart(self, netns_fd: int) -> None:
        """Choose another network while one who attached in this moment has the same."""
        own = int(bpf.link_info(self._links[LOOKUP]).prog_id)
        while is_taken(self.network, netns_fd, but=own):
            self.network = free_network(netns_fd)
            self._put_in_force(self._config, self._generation)

    def _put_in_force(self, config: EgressConfig, generation: int) -> None:
        settings = pack_settings(
            config, generation=generation, network=self.network, entries=self.entries, netns=self._netns_cookie
        )
        bpf.map_update(self._map(SETTINGS), _KEY, settings, doing="configuring outbound connections")

    def _forget(self, generation: int) -> None:
        prefixes, ports = self._keys.pop(generation, ((), ()))
        for name, keys in ((PREFIXES, prefixes), (PORTS, ports)):
            for key in keys:
                with contextlib.suppress(KernelError):  # `own` may have taken the place of an equal prefix
                    bpf.map_delete(self._map(name), key, doing="forgetting a former configuration")

    def _map(self, name: str) -> int:
        if self._closed:
            raise BugError("this steering is closed")
        return self._maps[name]


def _opened(cgroup: str) -> int:
    try:
        return os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", error.errno or 0, doing=f"opening the cgroup {cgroup}") from error


def _is_inside(pid: int, cgroup: str) -> bool:
    """Whether a process is in a cgroup or one below it."""
    for procs in Path(cgroup).rglob("cgroup.procs"):
        try:
            members = procs.read_text().split()
        except OSError:
            continue  # a folder that has just gone, or a threaded one, whose processes are listed above it
        if str(pid) in members:
            return True
    return False


def _detach(link: int | None) -> None:
    if link is None:
        return
    try:
        bpf.link_detach(link)
    except KernelError:
        pass  # the cgroup or the namespace is gone already, or the kernel cannot detach: closing the link does it
    finally:
        os.close(link)


def _netns_cookie(sock: int) -> int:
    """The number of the network namespace of a socket, as programs see it; 0 before Linux 5.14, which does not tell."""
    with socket.socket(fileno=os.dup(sock)) as duplicate:
        try:
            data = duplicate.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
        except OSError:
            return 0
    return int(_COOKIE.unpack(data)[0])
