"""The file-reading helper: one request, one answer, one at a time. Run as a file, standard library only.

It exists to be killed. A path inside a container can lead to a FIFO, a device, or a filesystem that never answers;
whatever hangs, hangs here. It runs with the daemon's rights, so the path is resolved by the kernel with the container's
root as the limit (openat2(2), RESOLVE_IN_ROOT), to a handle that cannot be read from (O_PATH); only when that handle is
seen to be a regular file of a modest size is it opened. A file that changes meanwhile is read again.

A root of the form /proc/PID/root can come with the time at which that process was started (proc_pid_stat(5), field 22):
process ids are used again, and another process's root may be the node's own. The folder /proc/PID is opened first; from
then on it stands for that one process, or for nothing.

Request: u32 length, then root, that time (or nothing) and path with NULs between.
Answer: status byte, u32 length, then content or a text.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import stat
import struct
import sys

OK, ABSENT, UNUSABLE, KERNEL = range(4)
"""Status: content; no such file; a text says why not; a text names the call and the errno, separated by a space."""

MAX_FILE = 1024 * 1024
"""Bytes of a file that is accepted."""

LENGTH = struct.Struct("=I")
MAX_REQUEST = 16 * 1024

_SYS_OPENAT2 = {"x86_64": 437, "aarch64": 437}
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_ATTEMPTS = 5
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STARTED = 19
"""Position of field 22 of /proc/PID/stat behind the command's name, which is field 2 and may hold anything."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Refused(Exception):  # noqa: N818 - it is an answer, not a failure of the helper
    """Carries status and text of the answer."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


def open_root(root: str, birth: str) -> int:
    """A handle (O_PATH) on the folder `root`, of the process that was started at `birth` if that is given."""
    if not birth:
        return os.open(root, _FOLDER)
    process = os.open(os.path.dirname(root), _FOLDER)  # noqa: PTH120 - this child starts fast
    try:
        stat_of = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        try:
            fields = os.read(stat_of, 4096).rpartition(b")")[2].split()
        finally:
            os.close(stat_of)
        if len(fields) <= _STARTED or fields[_STARTED] != birth.encode():
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return os.open(os.path.basename(root), _FOLDER, dir_fd=process)  # noqa: PTH119 - as above
    finally:
        os.close(process)


def resolve(root: str, birth: str, path: str) -> int:
    """A handle (O_PATH) on `path` below `root`; symbolic links, absolute ones too, stay below it."""
    try:
        folder = open_root(root, birth)
    except OSError as error:
        raise Refused(KERNEL, f"open {error.errno}") from error
    how = struct.pack(
        "=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS
    )  # struct open_how: flags, mode, resolve
    try:
        for _ in range(_ATTEMPTS):
            handle = int(
                _libc.syscall(_SYS_OPENAT2.get(platform.machine(), -1), folder, os.fsencode(path), how, len(how)),
            )
            if handle >= 0:
                return handle
            number = ctypes.get_errno()
            if number != errno.EAGAIN:  # the tree changed while it was walked
                break
    finally:
        os.close(folder)
    if number in {errno.ENOENT, errno.ENOTDIR}:
        raise Refused(ABSENT, "no such file")
    if number in {errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG}:
        raise Refused(UNUSABLE, os.strerror(number).lower())
    raise Refused(KERNEL, f"openat2 {number}")


def read_once(root: str, birth: str, path: str) -> bytes | None:
    """The content, or None when the file changed while it was read."""
    handle = resolve(root, birth, path)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Refused(UNUSABLE, "is not a regular file")
        try:
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(KERNEL, f"open {error.errno}") from error
    finally:
        os.close(handle)
    try:
        before = os.fstat(fd)
        content = bytearray()
        while chunk := os.read(fd, MAX_FILE + 1 - len(content)):
            content += chunk
        after = os.fstat(fd)
    except OSError as error:
        raise Refused(KERNEL, f"read {error.errno}") from error
    finally:
        os.close(fd)
    if len(content) > MAX_FILE or before.st_size > MAX_FILE:
        raise Refused(UNUSABLE, f"is larger than {MAX_FILE} bytes")
    held_still = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    # A file that another took the place of meanwhile has lost a link, which changes its ctime, but none of its bytes.
    if before.st_nlink == after.st_nlink:
        held_still = held_still and before.st_ctime_ns == after.st_ctime_ns
    return bytes(content) if held_still else None


def read(root: str, birth: str, path: str) -> bytes:
    """The content of a file that held still long enough to be read."""
    for _ in range(_ATTEMPTS):
        content = read_once(root, birth, path)
        if content is not None:
            return content
    raise Refused(UNUSABLE, "changes while it is read")


def receive(channel: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; the end of the channel ends the helper."""
    data = b""
    while len(data) < size:
        chunk = channel.recv(size - len(data))
        if not chunk:
            sys.exit(0)
        data += chunk
    return data


def serve(channel: socket.socket) -> None:
    """Answer requests until the daemon closes its end."""
    while True:
        (size,) = LENGTH.unpack(receive(channel, LENGTH.size))
        if size > MAX_REQUEST:
            sys.exit(1)
        root, birth, path = (os.fsdecode(part) for part in receive(channel, size).split(b"\0"))
        try:
            status, answer = OK, read(root, birth, path)
        except Refused as refused:
            status, answer = refused.status, str(refused).encode()
        channel.sendall(bytes((status,)) + LENGTH.pack(len(answer)) + answer)


def main() -> None:
    """Harden the process (keys pass through it), then serve the socket that is standard input."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(socket.socket(fileno=0))


if __name__ == "__main__":
    main()
