"""Attaches the program to one pod's network namespace and maintains the maps of its steered and its closed ports.

Program and maps belong to one pod only. bpf_sk_assign does not check the namespace of the socket, so separate maps are
what prevents steering from one pod into another. Nothing is pinned: when the descriptors are closed (`close()`, a
crash, SIGKILL) the kernel removes link, program and maps, and new connections reach the app.

Attaching is a transaction: maps first, then the program, and last the link, the only step with an effect on the pod. A
failure closes everything made before it. All steps together take less than a millisecond and do not block, so they are
not async.

No copy of the maps is kept: `entries()` and `closed_ports()` ask the kernel. The kernel deletes an entry of a steered
port when its socket is closed, but not when a socket that is still open has stopped listening.

A *closed* port never falls through to the app: while it is steered it is served, and whenever it is not, clients
outside the pod are refused. Once the program has gone, however it went, every port is open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from sidestep.model.errors import BugError, KernelError
from sidestep.model.pod import Family, Transport
from sidestep.steering import bpf
from sidestep.steering.layout import (
    CLOSED,
    CLOSED_VALUE,
    COUNTS,
    PORTS,
    PROGRAM,
    STEERED_MAX,
    SteeredPort,
    Verdict,
    pack_key,
    unpack_key,
)
from sidestep.steering.program import CompiledProgram

_COOKIE: Final = struct.Struct("=Q")
_KEY_SIZE: Final = len(pack_key(1, Transport.TCP, Family.IPV4))


class Steering:
    """One target pod's sk_lookup link with maps of its own. Made by `attach`; not for use from several threads."""

    def __init__(self, *, link: int, ports: int, counts: int, closed: int, netns_inode: int) -> None:
        """Take over four descriptors; use `attach`."""
        self._link = link
        self._ports = ports
        self._counts = counts
        self._closed_ports = closed
        self._netns_inode = netns_inode
        self._closed = False

    @classmethod
    def attach(cls, program: CompiledProgram, netns_fd: int, *, closed: Iterable[SteeredPort] = ()) -> Self:
        """Load `program` with fresh maps and attach it to the network namespace behind `netns_fd`.

        The ports in `closed` are closed from the first lookup on. The descriptor stays the caller's and is not kept.
        Raises KernelError; then nothing is left behind.
        """
        inode = os.fstat(netns_fd).st_ino
        with contextlib.ExitStack() as undo:
            maps: dict[str, int] = {}
            for layout in program.maps:
                maps[layout.name] = bpf.map_create(
                    name=f"sidestep_{layout.name}",
                    map_type=layout.type,
                    key_size=layout.key_size,
                    value_size=layout.value_size,
                    entries=layout.entries,
                    flags=layout.flags,
                )
                undo.callback(os.close, maps[layout.name])
            for port in closed:
                bpf.map_update(maps[CLOSED], pack_key(*port), CLOSED_VALUE, doing=f"closing port {port[0]}")
            instructions = program.relocated([maps[layout.name] for layout in program.maps])
            loaded = bpf.prog_load(name=PROGRAM, instructions=instructions)
            try:
                link = bpf.link_create(loaded, netns_fd)
            finally:
                os.close(loaded)  # the link holds the program
            undo.callback(os.close, link)
            attached = cls(link=link, ports=maps[PORTS], counts=maps[COUNTS], closed=maps[CLOSED], netns_inode=inode)
            undo.pop_all()
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

    def steer(self, port: int, transport: Transport, family: Family, listener_fd: int) -> None:
        """Hand new connections to `port` to the socket `listener_fd`; an entry that exists is replaced.

        `listener_fd` must be a listening TCP socket (or a bound UDP socket), created inside the pod's namespace. A
        dual-stack socket serves IPv4 too; a socket that cannot take `family` is skipped by the kernel, per connection.
        """
        value = struct.pack("=Q", listener_fd)
        doing = f"steering {transport} port {port}"
        bpf.map_update(self._open(self._ports), pack_key(port, transport, family), value, doing=doing)

    def unsteer(self, port: int, transport: Transport, family: Family) -> None:
        """Let new connections to `port` reach the app again; a port that is not steered is left as it is.

        Connections that are already in the listener's queue stay there: keep accepting (at least 1 s and until
        `netns.queue_length` is 0) before closing it, or the kernel resets them.
        """
        self._delete(self._ports, (port, transport, family), doing=f"unsteering {transport} port {port}")

    def close_port(self, port: int, transport: Transport, family: Family) -> None:
        """Refuse new connections to `port` whenever it is not steered; a port that is closed already stays so.

        Connections that have been accepted go on, and so do dials from inside the pod.
        """
        doing = f"closing {transport} port {port}"
        bpf.map_update(self._open(self._closed_ports), pack_key(port, transport, family), CLOSED_VALUE, doing=doing)

    def open_port(self, port: int, transport: Transport, family: Family) -> None:
        """Let new connections to `port` reach the app whenever it is not steered; undoes `close_port`."""
        self._delete(self._closed_ports, (port, transport, family), doing=f"opening {transport} port {port}")

    def entries(self) -> frozenset[SteeredPort]:
        """The steered ports, as the kernel's map has them now."""
        return self._listed(self._ports, doing="listing the steered ports")

    def closed_ports(self) -> frozenset[SteeredPort]:
        """The closed ports, as the kernel's map has them now."""
        return self._listed(self._closed_ports, doing="listing the closed ports")

    def socket_of(self, port: int, transport: Transport, family: Family) -> int | None:
        """The kernel's number (SO_COOKIE) of the socket that a port is steered to; None when it is not steered."""
        doing = f"asking where {transport} port {port} is steered to"
        key = pack_key(port, transport, family)
        try:
            value = bpf.map_lookup(self._open(self._ports), key, value_size=_COOKIE.size, doing=doing)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return int(_COOKIE.unpack(value)[0])

    def counters(self) -> dict[str, int]:
        """Lookups since attachment by lower-case name of the verdict, summed over the CPUs."""
        fd = self._open(self._counts)
        cpus = bpf.possible_cpus()
        values = struct.Struct(f"={cpus}Q")
        return {
            verdict.name.lower(): sum(
                values.unpack(
                    bpf.map_lookup(
                        fd,
                        struct.pack("=I", verdict),
                        value_size=values.size,
                        doing="reading the counters",
                    ),
                ),
            )
            for verdict in Verdict
        }

    def attached(self) -> bool:
        """Whether the link is still attached to the namespace it was made for (False once that namespace is gone)."""
        if self._closed:
            return False
        info = bpf.link_info(self._link)
        return bool(info.netns_ino == self._netns_inode and info.attach_type == bpf.ATTACH_SK_LOOKUP)

    def close(self) -> None:
        """Detach and close everything; new connections reach the app at once. Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            bpf.link_detach(self._link)
        except KernelError:
            pass  # the namespace is gone already, or the kernel cannot detach: closing the link does it
        finally:
            for fd in (self._link, self._ports, self._counts, self._closed_ports):
                os.close(fd)

    def _listed(self, fd: int, *, doing: str) -> frozenset[SteeredPort]:
        keys = bpf.map_keys(
            self._open(fd),
            key_size=_KEY_SIZE,
            limit=2 * STEERED_MAX,  # the kernel starts again when an entry goes away under us
            doing=doing,
        )
        return frozenset(unpack_key(key) for key in keys)

    def _delete(self, fd: int, port: SteeredPort, *, doing: str) -> None:
        try:
            bpf.map_delete(self._open(fd), pack_key(*port), doing=doing)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def _open(self, fd: int) -> int:
        if self._closed:
            raise BugError("this steering is closed")
        return fd
