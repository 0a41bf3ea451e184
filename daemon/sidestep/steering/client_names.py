"""Shows the app its clients' own addresses: getpeername programs on the pod's cgroup, and the map they read.

For connections of the proxy, the app's `accept()` and `getpeername()` report the address and port of the client. The
daemon adds an entry between the proxy's bind() and connect(), and deletes it when the connection is over, so an entry
never applies to another connection. Nothing is pinned: links, programs and map end with the daemon's descriptors.

The proxy's IPv4 connections come from `sources`, a loopback network that nothing else uses. For a connection from there
without an entry the app is shown its own address, so it does not mistake the connection for one from inside the pod.
Each attachment uses another network, because during a takeover two daemons are attached that do not know each other's
connections.

The cgroup must be one of cgroup v2 (bpf(2), BPF_CGROUP_INET4_GETPEERNAME).
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
from ipaddress import IPv4Network
from typing import Self

from sidestep.model.errors import KernelError
from sidestep.steering import bpf
from sidestep.steering.layout import CLIENTS, PEER4, PEER6, Address, pack_client_key, pack_client_name, pack_sources
from sidestep.steering.program import CompiledProgram

PeernamePrograms = tuple[CompiledProgram, CompiledProgram]
"""For IPv4 and IPv6, as `compile_peername` gives them."""


class ClientNames:
    """One pod's named connections. Made by `attach`; not for use from several threads."""

    def __init__(self, *, links: tuple[int, ...], clients: int, sources: IPv4Network) -> None:
        """Take over the descriptors; use `attach`."""
        self.sources = sources
        """Whence the proxy's IPv4 connections come, named or not."""
        self._links = links
        self._clients = clients
        self._closed = False
        self._keys: dict[bytes, int] = {}
        """With the process of the proxy that made each."""

    @classmethod
    def attach(cls, programs: PeernamePrograms, cgroup: str) -> Self:
        """Attach to the cgroup v2 folder `cgroup`. Raises KernelError; then nothing is left behind."""
        with contextlib.ExitStack() as undo:
            try:
                folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise KernelError("open", error.errno or 0, doing=f"opening the cgroup {cgroup}") from error
            undo.callback(os.close, folder)
            layout = next(each for each in programs[0].maps if each.name == CLIENTS)
            clients = bpf.map_create(
                name=f"sidestep_{CLIENTS}"[:15],
                map_type=layout.type,
                key_size=layout.key_size,
                value_size=layout.value_size,
                entries=layout.entries,
                flags=layout.flags,
            )
            with contextlib.ExitStack() as made:
                made.callback(os.close, clients)
                sources = _some_sources()
                bpf.map_update(clients, *pack_sources(sources), doing="stating the proxy's own addresses")
                links = []
                for name, program, attach_type in (
                    (PEER4, programs[0], bpf.ATTACH_GETPEERNAME4),
                    (PEER6, programs[1], bpf.ATTACH_GETPEERNAME6),
                ):
                    loaded = bpf.prog_load(
                        name=name,
                        instructions=program.relocated([clients]),
                        kind=bpf.PROG_TYPE_CGROUP_SOCK_ADDR,
                        attach_type=attach_type,
                    )
                    try:
                        links.append(bpf.link_create(loaded, folder, attach_type=attach_type))
                    finally:
                        os.close(loaded)
                    made.callback(os.close, links[-1])
                attached = cls(links=tuple(links), clients=clients, sources=sources)
                made.pop_all()
                return attached

    def name(
        self, peer: Address, peer_port: int, local_port: int, *, client: Address, client_port: int, maker: int = 0
    ) -> None:
        """Have the connection from `peer` to the app's `local_port` reported as one from `client`.

        `maker` is the number of the proxy's process that makes it.

        Raises KernelError (E2BIG when the map is full), BugError.
        """
        key = pack_client_key(peer, peer_port, local_port)
        bpf.map_update(self._clients, key, pack_client_name(client, client_port), doing="naming a client")
        self._keys[key] = maker

    def forget(self, peer: Address, peer_port: int, local_port: int, *, maker: int = 0) -> None:
        """Delete the entry of a connection of `maker` that is over, if there is one.

        An entry of another one stays: that one has bound the port since, and was heard first.

        Raises KernelError, BugError.
        """
        key = pack_client_key(peer, peer_port, local_port)
        if self._keys.get(key, maker) == maker:
            self._delete(key)

    def forget_all(self, maker: int | None = None) -> None:
        """Delete all entries, because the proxy has ended, or those of one of its processes. Raises KernelError."""
        for key in [key for key, made_by in self._keys.items() if maker is None or made_by == maker]:
            self._delete(key)

    def _delete(self, key: bytes) -> None:
        self._keys.pop(key, None)
        try:
            bpf.map_delete(self._clients, key, doing="forgetting a client")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def __len__(self) -> int:
        """Connections named now."""
        return len(self._keys)

    def close(self) -> None:
        """Detach and release everything. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        for fd in self._links:
            try:
                bpf.link_detach(fd)
            except KernelError:
                pass  # the cgroup is gone already
            os.close(fd)
        os.close(self._clients)


def _some_sources() -> IPv4Network:
    """One of 64 networks in the middle of 127.0.0.0/8, away from the addresses that people use."""
    return IPv4Network(f"127.{random.randrange(64, 128)}.0.0/16")  # noqa: S311 - no secret
