"""Attaches the program to one pod's network namespace and maintains the map of its steered ports.

Program and maps belong to one pod only. bpf_sk_assign does not check the namespace of the socket, so separate maps are
what prevents steering from one pod into another. Nothing is pinned: when the descriptors are closed (`close()`, a
crash, SIGKILL) the kernel removes link, program and maps, and new connections reach the app.

Attaching is a transaction: maps first, then the program, and last the link, the only step with an effect on the pod. A
failure closes everything made before it. All steps together take less than a millisecond and do not block, so they are
not async.

No copy of the map is kept: `entries()` asks the kernel. The kernel deletes an entry when its socket is closed, but not
when a socket that is still open has stopped listening.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from types import TracebackType
from typing import Final, Self

from sidestep.model.errors import BugError, KernelError
from sidestep.model.pod import Family, Transport
from sidestep.steering import bpf
from sidestep.steering.layout import COUNTS, PORTS, PROGRAM, STEERED_MAX, SteeredPort, Verdict, pack_key, unpack_key
from sidestep.steering.program import CompiledProgram

_COOKIE: Final = struct.Struct("=Q")
_KEY_SIZE: Final = len(pack_key(1, Transport.TCP, Family.IPV4))


class Steering:
    """One target pod's sk_lookup link with maps of its own. Made by `attach`; not for use from several threads."""

    def __init__(self, *, link: int, ports: int, counts: int, netns_inode: int) -> None:
        """Take over three descriptors; use `attach`."""
        self._link = link
        self._ports = ports
        self._counts = counts
        self._netns_inode = netns_inode
        self._closed = False

    @classmethod
    def attach(cls, program: CompiledProgram, netns_fd: int) -> Self:
        """Load `program` with fresh maps and attach it to the network namespace behind `netns_fd`.

        The descriptor stays the caller's and is not kept. Raises KernelError; then nothing is left behind.
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
            instructions = program.relocated([maps[layout.name] for layout in program.maps])
            loaded = bpf.prog_load(name=PROGRAM, instructions=instructions)
            try:
                link = bpf.link_create(loaded, netns_fd)
            finally:
                os.close(loaded)  # the link holds the program
            undo.callback(os.close, link)
            attached = cls(link=link, ports=maps[PORTS], counts=maps[COUNTS], netns_inode=inode)
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
        doing = f"unsteering {transport} port {port}"
        try:
            bpf.map_delete(self._open(self._ports), pack_key(port, transport, family), doing=doing)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def entries(self) -> frozenset[SteeredPort]:
        """The entries of the kernel's map now."""
        keys = bpf.map_keys(
            self._open(self._ports),
            key_size=_KEY_SIZE,
            limit=2 * STEERED_MAX,  # the kernel starts again when an entry goes away under us
            doing="listing the steered ports",
        )
        return frozenset(unpack_key(key) for key in keys)

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
            for fd in (self._link, self._ports, self._counts):
                os.close(fd)

    def _open(self, fd: int) -> int:
        if self._closed:
            raise BugError("this steering is closed")
        return fd
