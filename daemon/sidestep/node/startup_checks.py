"""Checks, before anything is logged, that the daemon can serve here: a failure is one line for the user."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from sidestep.kube.access import ClusterAccess, in_cluster
from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.node.api.local_socket import predecessor_at, prepare_folder
from sidestep.node.manifests_lock import ManifestsLock
from sidestep.proxy.tls.interpreter import check_ssl

if TYPE_CHECKING:
    from pathlib import Path

    from sidestep.config.node_options import NodeOptions

MAX_SOCKET = 107 - len(".") - len(".4194304")
"""Bytes of a socket's path: what unix(7) allows, less what the name under which it is made adds (`local_socket`)."""


class Place(msgspec.Struct, frozen=True):
    """The API server's access in a cluster, or the lock on the manifests."""

    access: ClusterAccess | None = None
    lock: ManifestsLock | None = None


@contextlib.contextmanager
def find_place(options: NodeOptions) -> Iterator[Place]:
    """Make sure that the daemon can serve there. Raises SidestepError with what is in the way."""
    if os.geteuid() != 0:
        raise ConfigurationError("the node daemon needs root: network namespaces and eBPF are the kernel's; use sudo")
    check_ssl()
    if len(os.fsencode(options.socket)) > MAX_SOCKET:
        reason = f"is too long for a unix socket: at most {MAX_SOCKET} bytes"
        raise ConfigurationError(reason, subject="--socket", value=str(options.socket)[:200])
    if options.manifests is None:
        yield Place(access=in_cluster())
        return
    with contextlib.closing(ManifestsLock(options.manifests)) as lock:
        lock.acquire(after=_pid_at(options.socket))
        yield Place(lock=lock)


def _pid_at(path: Path) -> int:
    """The process that serves the socket now, whose place is to be taken; 0 when there is none."""
    try:
        prepare_folder(path.parent)
        predecessor = predecessor_at(path)
    except OSError as error:
        raise KernelError("socket", error.errno or 0, doing=f"looking for {path}") from error
    if predecessor is None:
        return 0
    with predecessor:
        pid, _uid, _gid = struct.unpack("3i", predecessor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)
