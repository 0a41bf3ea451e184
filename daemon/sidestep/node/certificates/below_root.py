"""Finds and opens files below a container's root. Every call may block.

A path inside a container can lead to a FIFO, a device, or a filesystem that never answers. Therefore only the reader
(`node.certificates.reader_child`) and its children, which may hang without harm, call these functions. They run with
the daemon's rights, so the kernel resolves the path within the container's root (openat2(2), RESOLVE_IN_ROOT), to a
handle that cannot be read (O_PATH). The file is opened only if that handle is a regular file of at most MAX_FILE bytes.

A root of the form /proc/PID/root comes with the time at which that process was started (proc_pid_stat(5), field 22):
pids are reused, and another process's root may be the node's own. The folder /proc/PID is opened first; the descriptor
refers to that one process from then on, and to nothing once it has ended.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
from pathlib import Path

import msgspec

from sidestep.model.errors import ConfigurationError, KernelError

MAX_FILE = 1024 * 1024
"""Bytes of a file that is accepted."""

RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH, RESOLVE_IN_ROOT = 0x02, 0x04, 0x08, 0x10
"""openat2(2), linux/openat2.h."""

_SYS_OPENAT2 = {"x86_64": 437, "aarch64": 437}
_ATTEMPTS = 5
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_STARTED = 19
"""Position of field 22 of /proc/PID/stat behind the command's name, which is field 2 and may hold anything."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

Stamp = tuple[int, int, int, int, int]
"""(device, inode, size, modification time in ns, change time in ns) of a file."""


class AbsentFileError(ConfigurationError):
    """There is no file at the path; the caller may try another name."""


class AbsentRootError(KernelError):
    """The root folder does not exist, or its process has ended; another one may take its place."""


class Root(msgspec.Struct, frozen=True):
    """A folder below which paths lie; that of the process that was started at `birth`, where that is known."""

    path: str
    birth: int | None = None


def stamp(root: Root, path: str) -> Stamp | None:
    """What tells one version of a file from the next, without opening it; None when there is no file.

    Raises ConfigurationError, AbsentRootError, KernelError.
    """
    try:
        handle = _resolve(root, path)
    except AbsentFileError:
        return None
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    return _stamp(status)


def open_regular(root: Root, path: str) -> int:
    """A descriptor of a regular file of at most MAX_FILE bytes, for reading; the caller closes it.

    Raises AbsentFileError; ConfigurationError for anything else a person can put right (`..`, a folder, a device, too
    large); AbsentRootError when the root is gone; KernelError when the kernel refuses.
    """
    handle = _resolve(root, path)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError("is not a regular file", subject=_subject(path))
        if status.st_size > MAX_FILE:
            raise ConfigurationError(f"is larger than {MAX_FILE} bytes", subject=_subject(path))
        try:
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError("open", error.errno or 0, doing=f"reading {path}") from error
    finally:
        os.close(handle)


def read_steady(fd: int, path: str) -> bytes:
    """The content of an open file that holds still while it is read. Raises ConfigurationError, KernelError."""
    try:
        for _ in range(_ATTEMPTS):
            before = os.fstat(fd)
            content = bytearray()
            while chunk := os.pread(fd, MAX_FILE + 1 - len(content), len(content)):
                content += chunk
            if len(content) > MAX_FILE or before.st_size > MAX_FILE:
                raise ConfigurationError(f"is larger than {MAX_FILE} bytes", subject=_subject(path))
            if _held_still(before, os.fstat(fd)):
                return bytes(content)
    except OSError as error:
        raise KernelError("read", error.errno or 0, doing=f"reading {path}") from error
    raise ConfigurationError("changes while it is read", subject=_subject(path))


def _held_still(before: os.stat_result, after: os.stat_result) -> bool:
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    # A file that another took the place of meanwhile has lost a link, which changes its ctime, but none of its bytes.
    if before.st_nlink == after.st_nlink:
        same = same and before.st_ctime_ns == after.st_ctime_ns
    return same


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _subject(path: str) -> str:
    return f"path {path!r}"


def _resolve(root: Root, path: str) -> int:
    """A handle (O_PATH) on `path` below `root`; symbolic links, absolute ones too, stay below it."""
    name = _checked(root, path)
    folder = open_root(root)
    try:
        return openat2(folder, name, os.O_PATH | os.O_CLOEXEC, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        number = error.errno or errno.EIO
        if number in {errno.ENOENT, errno.ENOTDIR}:
            raise AbsentFileError("no such file", subject=_subject(path)) from error
        if number in {errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG}:
            raise ConfigurationError(os.strerror(number).lower(), subject=_subject(path)) from error
        raise KernelError("openat2", number, doing=f"reading {path}") from error
    finally:
        os.close(folder)


def openat2(folder: int, path: bytes, flags: int, resolve: int) -> int:
    """Open a path from a folder (openat2(2)); returns a descriptor. Raises OSError."""
    how = struct.pack("=QQQ", flags, 0, resolve)  # struct open_how: flags, mode, resolve
    number = errno.EAGAIN
    for _ in range(_ATTEMPTS):
        handle = int(_libc.syscall(_SYS_OPENAT2.get(platform.machine(), -1), folder, path, how, len(how)))
        if handle >= 0:
            return handle
        number = ctypes.get_errno()
        if number != errno.EAGAIN:  # the tree changed while it was walked
            break
    raise OSError(number, os.strerror(number))


def _checked(root: Root, path: str) -> bytes:
    if "\0" in path or "\0" in root.path:
        raise ConfigurationError("holds a NUL character", subject=_subject(path))
    if ".." in path.split("/"):
        raise ConfigurationError("must not contain '..'", subject=_subject(path))
    if not path.strip("/"):
        raise ConfigurationError("names no file", subject=_subject(path))
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ConfigurationError("is no file name", subject=_subject(path)) from error


def open_root(root: Root) -> int:
    """A handle (O_PATH) on the root. Raises AbsentRootError, KernelError."""
    if root.birth is None:
        return _open_folder(root.path)
    place = Path(root.path)
    process = open_process(str(place.parent), root.birth)
    try:
        return _open_folder(place.name, process)
    finally:
        os.close(process)


def open_process(folder: str, birth: int | None) -> int:
    """A handle on /proc/PID, of the process that was started at `birth`, where that is known.

    Raises AbsentRootError when that process has ended, KernelError.
    """
    process = _open_folder(folder)
    if birth is None:
        return process
    fields: list[bytes] = []
    try:
        described = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        try:
            fields = os.read(described, 4096).rpartition(b")")[2].split()
        finally:
            os.close(described)
    except OSError:
        pass  # it has ended meanwhile
    if len(fields) <= _STARTED or fields[_STARTED] != b"%d" % birth:
        os.close(process)
        raise AbsentRootError("open", errno.ESRCH, doing=f"opening {folder}")
    return process


def _open_folder(path: str, folder: int | None = None) -> int:
    try:
        return os.open(path, _FOLDER, dir_fd=folder)
    except OSError as error:
        kind = AbsentRootError if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ESRCH} else KernelError
        raise kind("open", error.errno or errno.EIO, doing=f"opening {path}") from error
