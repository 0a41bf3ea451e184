"""Packets of a SOCK_SEQPACKET socket: bytes with at most one file descriptor, never blocking.

This is the ground both ends of a control channel stand on: the daemon's asyncio end (`aio.channel`) and the pod proxy's
polled end (`proxy.control.channel`), which is why nothing here imports asyncio. The peer may be hostile (a proxy that
was taken over): a packet is bounded in size, a second descriptor is closed by the kernel and reported, a descriptor is
never inherited by a program that is executed later, and a large payload is read from a memfd only after the kernel has
confirmed that it is one and that nobody can change it any more (so that reading can neither block nor fault).

An empty packet is indistinguishable from the end of the stream and is treated as it.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
from collections import deque

from sidestep.model.errors import BugError, KernelError, PeerError, SidestepError

MAX_PACKET = 72 * 1024
"""Bytes of the largest packet accepted; senders stop at 64 KiB. The kernel carries up to 212,960."""

MAX_PAYLOAD = 16 * 1024 * 1024
"""Bytes of the largest payload accepted in a memfd: 64 intercepts of 32 long conditions on dozens of ports."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Plain integers: the operators of the enumeration cost more than the system call (a heartbeat is two of them).
_SEND = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_RECEIVE = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_TOO_LONG = int(socket.MSG_TRUNC)
# CMSG_LEN, not CMSG_SPACE: the padding of the latter would let a second descriptor in.
_ONE_DESCRIPTOR = socket.CMSG_LEN(array.array("i").itemsize)


class ChannelClosed(SidestepError):  # noqa: N818 - the name of a state that every caller expects, not of a fault
    """The other end of a control channel is gone; nothing more will arrive and nothing can be sent."""


class DescriptorLostError(PeerError):
    """A packet came without its descriptor, for which this process has no room; `data` is the rest of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        super().__init__("the descriptor of a control message could not be received: too many open files")


class ChannelOverflow(ChannelClosed):
    """The other end does not read: the bound on queued packets is reached. The channel is as good as closed."""


def control_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a control channel. Raises KernelError."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise KernelError("socketpair", error.errno or 0, doing="making a control channel") from error


def send_packet(sock: socket.socket, data: bytes, fd: int | None = None) -> bool:
    """Send one packet now; False when the socket's buffer is full. Raises ChannelClosed, KernelError."""
    ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    try:
        sock.sendmsg([data], ancillary, _SEND)
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionError) as error:
        raise ChannelClosed("the control channel is closed") from error
    except OSError as error:
        raise KernelError("sendmsg", error.errno or 0, doing="sending a control message") from error
    return True


def receive_packet(sock: socket.socket) -> tuple[bytes, int | None] | None:
    """Receive one packet and its descriptor (now the caller's to close); None when there is none yet.

    Raises ChannelClosed at the end, PeerError for an oversized packet or more than one descriptor,
    DescriptorLostError when this process cannot hold another one, KernelError.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(MAX_PACKET, _ONE_DESCRIPTOR, _RECEIVE)
    except BlockingIOError:
        return None
    except ConnectionError as error:
        raise ChannelClosed("the control channel is closed") from error
    except OSError as error:
        raise KernelError("recvmsg", error.errno or 0, doing="receiving a control message") from error
    if not ancillary and data and not flags & _CUT:
        return data, None
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data or flags & _CUT or len(fds) > 1:
        for fd in fds:
            os.close(fd)
        if not data:
            raise ChannelClosed("the control channel is closed")
        if flags & _TOO_LONG:
            raise PeerError(f"a control message exceeds {MAX_PACKET} bytes")
        if not fds:
            raise DescriptorLostError(data)  # unix(7): those that do not fit are closed, here the only one
        raise PeerError("a control message came with more than one descriptor")
    return data, (fds[0] if fds else None)


def sealed_memfd(name: str, data: bytes) -> int:
    """Put `data` into a new memfd of default mode that nobody can change; the caller closes it. Raises KernelError."""
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise KernelError("memfd_create", error.errno or 0) from error
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(fd)
        raise KernelError("write", error.errno or 0, doing="filling a memfd") from error
    return fd


def read_sealed_memfd(fd: int, size: int) -> bytes:
    """Read exactly `size` bytes of a sealed memfd of exactly that size. Raises PeerError for anything else."""
    if not 0 < size <= MAX_PAYLOAD:
        raise PeerError(f"a message of {size} bytes is outside the bound of {MAX_PAYLOAD}")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise PeerError("the descriptor of a large message is not a memfd") from error
    if seals & _SEALS != _SEALS or os.fstat(fd).st_size != size:
        raise PeerError("the memfd of a large message is not sealed or not of the size announced")
    parts: list[bytes] = []
    offset = 0
    while offset < size:
        part = os.pread(fd, size - offset, offset)
        if not part:
            raise PeerError("the memfd of a large message ends early")
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


class Outbox:
    """Packets on their way out: sent at once while the socket takes them, then kept in order up to a bound.

    Descriptors stay the caller's: one that must wait is duplicated, and the duplicate closed once sent.
    """

    __slots__ = ("_bytes", "_max_bytes", "_max_packets", "_queue", "_sock")

    def __init__(self, sock: socket.socket, *, max_packets: int = 1024, max_bytes: int = 4 * 1024 * 1024) -> None:
        if sock.type != socket.SOCK_SEQPACKET:
            raise BugError("a control channel needs a SOCK_SEQPACKET socket")
        self._sock = sock
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._bytes = 0
        self._max_packets = max_packets
        self._max_bytes = max_bytes

    @property
    def pending(self) -> int:
        """Packets that wait for the socket to become writable."""
        return len(self._queue)

    def send(self, data: bytes, fd: int | None = None) -> None:
        """Send, or queue behind what is queued. Raises ChannelClosed, ChannelOverflow, KernelError."""
        if not self._queue and send_packet(self._sock, data, fd):
            return
        if len(self._queue) >= self._max_packets or self._bytes + len(data) > self._max_bytes:
            raise ChannelOverflow(f"the other end has left {len(self._queue)} control messages unread")
        try:
            kept = None if fd is None else os.dup(fd)
        except OSError as error:
            raise KernelError("dup", error.errno or 0, doing="queueing a control message") from error
        self._queue.append((data, kept))
        self._bytes += len(data)

    def flush(self) -> bool:
        """Send what the socket takes now; True once nothing is pending. Raises ChannelClosed, KernelError."""
        while self._queue:
            data, fd = self._queue[0]
            if not send_packet(self._sock, data, fd):
                return False
            self._queue.popleft()
            self._bytes -= len(data)
            if fd is not None:
                os.close(fd)
        return True

    def close(self) -> None:
        """Forget what is pending and close its duplicated descriptors."""
        while self._queue:
            _, fd = self._queue.popleft()
            if fd is not None:
                os.close(fd)
        self._bytes = 0
