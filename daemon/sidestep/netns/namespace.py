"""A network namespace held open by a descriptor: its identity, running code inside it, comparing it with its path.

The descriptor keeps the namespace, and the pod's end of its veth pair, alive. Owners therefore compare it with its path
regularly (`same_as_path`) and close it when they differ. While it is open its inode is not reused, so (st_dev, st_ino)
identifies the namespace (namespaces(7)).

Code runs inside in a new thread that ends afterwards: setns(2) moves one thread, and a thread that ends need not be
moved back. A socket created inside belongs to that namespace wherever its descriptor is passed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self, TypeVar

from sidestep.model.errors import BugError, ConfigurationError, KernelError
from sidestep.model.pod import NetnsId

Result = TypeVar("Result")

CLONE_NEWNET: Final = 0x40000000
_OWN: Final = "/proc/self/ns/net"
_NS_GET_NSTYPE: Final = 0xB703  # ioctl_ns(2)

_libc = ctypes.CDLL(None, use_errno=True)


class Netns:
    """An open network namespace. Made by `open`; not for use from several threads."""

    def __init__(self, *, path: str, fd: int, identity: NetnsId) -> None:
        """Take over `fd`; use `open`."""
        self.path = path
        self.id = identity
        self._fd = fd
        self._kept: dict[int, socket.socket] = {}

    @classmethod
    def open(cls, path: str) -> Self:
        """Open the namespace at `path` (`/run/netns/NAME`, `/proc/PID/ns/net`).

        Raises ConfigurationError when nothing is there or it is no network namespace (it is looked at before it is
        opened: a FIFO or a device is never touched), KernelError when the kernel refuses.
        """
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError, ValueError) as error:
            raise ConfigurationError("no such network namespace", subject="netns", value=path) from error
        except OSError as error:
            raise KernelError("open", error.errno or 0, doing=f"opening the network namespace {path}") from error
        try:
            if os.fstat(handle).st_dev != netns_id(_OWN).device:  # every namespace is a file of one device, nsfs
                raise ConfigurationError("is not a network namespace", subject="netns", value=path)
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise KernelError("open", error.errno or 0, doing=f"opening the network namespace {path}") from error
        finally:
            os.close(handle)
        if not _is_network_namespace(fd):
            os.close(fd)
            raise ConfigurationError("is not a network namespace", subject="netns", value=path)
        return cls(path=path, fd=fd, identity=_identity(os.fstat(fd)))

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
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._fd < 0

    @property
    def fd(self) -> int:
        """The descriptor; it stays this object's."""
        if self._fd < 0:
            raise BugError(f"the network namespace {self.path} is closed")
        return self._fd

    def same_as_path(self) -> bool:
        """Whether the path still exists and still leads to this namespace."""
        try:
            return netns_id(self.path) == self.id
        except (ConfigurationError, KernelError):
            return False

    def run(self, function: Callable[[], Result]) -> Result:
        """Call `function` in a thread inside the namespace and return what it returns, raise what it raises.

        The caller waits: `function` creates sockets or asks the kernel, nothing that blocks. Raises KernelError when
        the namespace cannot be entered.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as executor:
            try:
                entered = executor.submit(self._inside, self.fd, function)
            except RuntimeError as error:  # no more threads
                raise KernelError("clone", errno.EAGAIN, doing=f"entering {self.path}") from error
            return entered.result()

    def _inside(self, fd: int, function: Callable[[], Result]) -> Result:
        if _libc.setns(fd, CLONE_NEWNET) < 0:
            raise KernelError("setns", ctypes.get_errno(), doing=f"entering the network namespace {self.path}")
        return function()

    def netlink(self, protocol: int) -> socket.socket:
        """A netlink socket of this namespace, kept until `close` or `forget`: repeated requests need no thread."""
        if protocol not in self._kept:
            self._kept[protocol] = self.run(lambda: _netlink_socket(protocol))
        return self._kept[protocol]

    def forget(self, protocol: int) -> None:
        """Close a kept netlink socket, for instance after an answer that was not read to its end."""
        if protocol in self._kept:
            self._kept.pop(protocol).close()

    def close(self) -> None:
        """Close the descriptor. Closing twice does nothing."""
        for protocol in tuple(self._kept):
            self.forget(protocol)
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def netns_id(path: str) -> NetnsId:
    """Identity of the file at `path`, opened or not.

    Raises ConfigurationError when there is none, KernelError when the kernel denies access (EACCES for a process that
    has capabilities which this one lacks, ptrace(2) "ptrace access mode checking").
    """
    try:
        return _identity(os.stat(path))  # noqa: PTH116 - a sixth of the cost of a Path's, and asked of all pods again and again
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError, ValueError) as error:
        raise ConfigurationError("no such network namespace", subject="netns", value=path) from error
    except OSError as error:
        raise KernelError("stat", error.errno or 0, doing=f"looking at the network namespace {path}") from error


def host_netns_id() -> NetnsId:
    """Identity of the node's own network namespace; a pod in it must be refused.

    It is that of process 1. Where the kernel does not let us look at process 1, it is the one this process runs in:
    without that right there is no hostPID, and the daemon is started on the node itself.
    """
    try:
        return netns_id("/proc/1/ns/net")
    except KernelError:
        return netns_id(_OWN)


def _identity(status: os.stat_result) -> NetnsId:
    return NetnsId(device=status.st_dev, inode=status.st_ino)


def _is_network_namespace(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def _netlink_socket(protocol: int) -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.connect((0, 0))  # the kernel; it then refuses what processes of the pod send to this socket
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise KernelError("socket", error.errno or 0, doing="asking the kernel about a network namespace") from error
    return sock
