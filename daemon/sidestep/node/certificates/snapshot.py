"""A snapshot of files of a container: walks folders below its root and sends frames. For one-shot children only.

The child has already become the user of the container's process (`container_root`), so the kernel decides what it may
read. Paths that were asked for are resolved within the root (openat2(2), RESOLVE_IN_ROOT). Below them every name is
opened from the descriptor of its folder and no link is followed: links are sent as links. Only regular files are read,
by way of a handle that cannot be read (O_PATH), so no device, FIFO or socket is opened. File systems that are
interfaces of the kernel are left out, with all that is below.

    for each path   resolve -> a folder: enter it; anything else: send it
                    of the paths below it that were asked for, too: send those that did not come with it, as if it had
                    not been asked for; name those that cannot be had there, since a link on the way leads out
                    of it, or to what was not sent
    enter           list the names, send the folder; then for each name: a folder is entered, a file or link is sent
    end             all is sent, or a bound is reached: the summary says which. Who reads has gone: nothing more.

Bounds: MAX_ENTRIES names, MAX_DEPTH, MAX_PATH, the bytes that were asked for, WALL seconds. What cannot be read or does
not fit is named in a `Problem`, and the walk goes on. `alive` is called before each send: there the caller starts a
timer anew, which ends the process when a call hangs in the container's file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sidestep.aio.os_reason import os_reason
from sidestep.model.errors import ConfigurationError, PeerError
from sidestep.node.certificates.below_root import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from sidestep.protocols.file_frames import (
    MAX_DATA,
    MAX_ENTRIES,
    MAX_PARTS,
    MAX_PATH,
    Entry,
    Frame,
    Problem,
    Summary,
    Whole,
    encode,
)

MAX_DEPTH: Final = 64
"""Folders below the one that was asked for."""
MAX_VOLUMES: Final = 1000
"""Mounts that are walked when no path is named."""
WALL: Final = 300.0
"""Seconds for a snapshot."""
PROGRESS: Final = 30
"""Seconds without a frame, or with one that nobody reads, after which it is given up."""
PIECE, PERIOD = 64 * 1024, 0.2
"""Frames are sent together, up to so many bytes and seconds: one by one each costs two switches of the process."""
CPU: Final = 120
"""Seconds of processor time."""
DESCRIPTORS: Final = 2 * MAX_DEPTH
"""One for each folder on the way, and a few."""

_HANDLE = os.O_PATH | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
_HERE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_PSEUDO: Final = frozenset({
    0x9FA0, 0x62656572, 0x27E0EB, 0x63677270, 0x1CD1, 0x64626720, 0x74726163, 0xCAFE4A11, 0x73636673, 0x6165676C,
    0xDE5E81E4, 0x62656570, 0x19800202, 0x42494E4D, 0xF97CFF8C, 0x6E736673, 0x50494446, 0x09041934, 0x0187, 0x67596969,
})  # fmt: skip
"""statfs(2), linux/magic.h: proc, sysfs, cgroup, cgroup2, devpts, debugfs, tracefs, bpf, securityfs, pstore, efivarfs,
configfs, mqueue, binfmt_misc, selinuxfs, nsfs, pidfs, anonymous inodes, autofs, RPC pipes."""
_TOO_LONG: Final = "its path is too long"
_INTERFACE: Final = "an interface of the kernel, no files"
_NOT_VOLUMES: Final = re.compile(rb"/|/(dev|proc|sys)(/.*)?", re.DOTALL)
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)


def volumes(mounts: bytes) -> tuple[bytes, ...]:
    """Return where something is mounted (proc_pid_mountinfo(5)), without the root and interfaces of the kernel."""
    places = (line.split(b" ")[4] for line in mounts.split(b"\n") if line.count(b" ") > 4)
    found = (_OCTAL.sub(lambda each: bytes([int(each[1], 8) & 0xFF]), place) for place in places)
    kept = dict.fromkeys(place for place in found if place.startswith(b"/") and not _NOT_VOLUMES.fullmatch(place))
    return tuple(itertools.islice(kept, MAX_VOLUMES))


def wanted_paths(paths: Iterable[str], mounted: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return what to walk: these paths, or else what is mounted. Volumes come first; none is below another.

    Raises ConfigurationError.
    """
    given = [_checked(path) for path in paths] or [*mounted]
    if not given:
        raise ConfigurationError("nothing is mounted in the container; name the folders that you want")
    kept: set[bytes] = set()
    for path in sorted(set(given), key=len):
        if kept.isdisjoint((b"/", *_parents(path))):
            kept.add(path)
    volume = set(mounted)
    return tuple(sorted(kept, key=lambda path: (volume.isdisjoint((path, *_parents(path))), path)))


def paths_within(paths: Iterable[str], walked: tuple[bytes, ...]) -> dict[bytes, tuple[bytes, ...]]:
    """Return, by a path that is walked, the others that were asked for and lie below it. Raises ConfigurationError."""
    found: dict[bytes, tuple[bytes, ...]] = {}
    for path in sorted({_checked(path) for path in paths} - set(walked)):
        above = next(each for each in walked if each in {b"/", *_parents(path)})
        found[above] = (*found.get(above, ()), path)
    return found


def _checked(path: str) -> bytes:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if not path.startswith("/") or "\0" in path or ".." in parts:
        raise ConfigurationError("must be absolute, without '..'", subject=f"path {path[:200]!r}")
    try:
        return b"/" + "/".join(parts).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigurationError("is no file name", subject=f"path {path[:200]!r}") from error


class _UnreadError(PeerError):
    """Nobody reads the frames any more."""


@dataclass(slots=True)
class _Level:
    """A folder that is being walked: its descriptor, its path, and the names that are left, the next one last."""

    fd: int
    place: bytes
    names: list[bytes]


@dataclass(slots=True)
class Walk:
    """Walks below `root` (O_PATH) and sends frames to a blocking socket."""

    root: int
    out: socket.socket
    max_bytes: int
    asked: bool = True
    """Whether somebody named the paths: of those that cannot be sent he is told so."""
    within: Mapping[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    """As `paths_within` returns them."""
    alive: Callable[[], object] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _until: float = 0.0
    _due: float = 0.0
    _unsent: bytearray = field(default_factory=bytearray)
    _size: int = 0
    _entries: int = 0
    _stopped: str = ""
    _below: frozenset[bytes] = frozenset()
    """All paths of `within`."""
    _noted: frozenset[bytes] = frozenset()
    """These, and the folders above them."""
    _sent: dict[bytes, str] = field(default_factory=dict)
    """The kind of each entry that was sent, of those that are noted, and of the folders above the paths."""
    _named: set[bytes] = field(default_factory=set)
    """Paths of `within` of which a problem was told."""
    _targets: dict[tuple[int, int], bool] = field(default_factory=dict)
    """Whether what `within` leads to was sent, by device and inode: it may be sent by another path."""
    _levels: list[_Level] = field(default_factory=list)

    def run(self, paths: Iterable[bytes]) -> None:
        """Send everything below these paths, and the summary; returns early when nobody reads it."""
        self._until = self.clock() + WALL
        self._below = frozenset(itertools.chain.from_iterable(self.within.values()))
        self._noted = self._below.union(*map(_parents, self._below))
        try:
            for path in paths:
                self._top(path)
            self._send(Summary(self._stopped))
            self._flush()
        except _UnreadError:
            pass
        finally:
            while self._levels:
                os.close(self._levels.pop().fd)

    def _top(self, path: bytes) -> None:
        """Walk one path that was asked for, and those below it. Links on the way are followed, within the root."""
        if not self._take(1) or self._late():
            return
        below = self.within.get(path, ())
        if _is_too_long(path):
            self._leave_out(path, _TOO_LONG, asked=self.asked)
            return
        try:
            handle = openat2(self.root, path.lstrip(b"/") or b".", _HANDLE, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            for each in (path, *below):
                self._leave_out(each, os_reason(error), asked=self.asked)
            return
        try:
            for each in below:
                self._expect(handle, each[len(path) :])
            self._walk(handle, path)
            for each in below:
                self._walk_below(each, path, handle)
            for each in below:
                self._look_for(each, path, handle)
        finally:
            os.close(handle)

    def _walk(self, handle: int, path: bytes) -> None:
        """Send the folders above a path that were not sent yet, and what is at the path and below."""
        for parent in _parents(path):
            if parent not in self._sent:
                self._sent[parent] = "folder"
                self._send(Entry(parent, "folder", 0o700))
        self._any(handle, path, asked=self.asked)
        while self._levels:
            level = self._levels[-1]
            if level.names and not self._late():
                self._child(level, level.names.pop())
            else:
                os.close(level.fd)
                self._levels.pop()

    def _expect(self, above: int, path: bytes) -> None:
        """Note what a path below another one leads to."""
        with contextlib.suppress(OSError):
            handle = openat2(above, path.lstrip(b"/"), _HANDLE, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
            try:
                self._targets.setdefault(_identity(os.fstat(handle)), False)
            finally:
                os.close(handle)

    def _walk_below(self, path: bytes, above: bytes, handle: int) -> None:
        """Walk a path below another one that did not come with it, unless a link is on the way."""
        if path in self._sent or path in self._named or self._stopped:
            return
        if _is_too_long(path):
            self._leave_out(path, _TOO_LONG)
            return
        try:
            found = openat2(handle, path[len(above) :].lstrip(b"/"), _HANDLE | os.O_NOFOLLOW, _HERE)
        except OSError:
            return  # `_look_for` tells
        try:
            were_folders = all(self._sent.get(parent, "folder") == "folder" for parent in _parents(path))
            if were_folders and self._take(1):
                self._walk(found, path)
        finally:
            os.close(found)

    def _look_for(self, path: bytes, above: bytes, handle: int) -> None:
        """Tell of a path below another one that cannot be had there. Links within that one lead to it there, too."""
        if path in self._named or self._stopped or self._sent.get(path, "link") != "link":
            return
        try:
            found = openat2(handle, path[len(above) :].lstrip(b"/"), _HANDLE, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        except OSError as error:
            reason = os_reason(error)
            if error.errno == errno.EXDEV:
                folder = above.decode("utf-8", "replace")
                reason = f"a link on the way leads out of {folder}, which was copied; name what it leads to"
            self._leave_out(path, reason)
            return
        try:
            if not self._targets.get(_identity(os.fstat(found))):
                self._leave_out(path, "a link on the way leads to what was not copied; name what it leads to")
        finally:
            os.close(found)

    def _child(self, level: _Level, name: bytes) -> None:
        place = (b"" if level.place == b"/" else level.place) + b"/" + name
        try:
            handle = openat2(level.fd, name, _HANDLE | os.O_NOFOLLOW, _HERE)
        except OSError as error:
            self._leave_out(place, os_reason(error))
            return
        try:
            self._any(handle, place)
        finally:
            os.close(handle)

    def _any(self, handle: int, place: bytes, *, asked: bool = False) -> None:
        """Send what a handle is, or enter it."""
        try:
            status = os.fstat(handle)
            kind = stat.S_IFMT(status.st_mode)
            if _is_too_long(place):
                self._leave_out(place, _TOO_LONG, asked=asked)
            elif kind == stat.S_IFLNK:
                self._send_entry(Entry(place, "link", target=os.readlink(b"", dir_fd=handle)[:MAX_PATH]))
            elif kind not in {stat.S_IFDIR, stat.S_IFREG}:
                self._leave_out(place, "a device, pipe or socket", asked=asked)
            elif _is_pseudo(handle):
                self._leave_out(place, _INTERFACE, asked=asked)
            elif kind == stat.S_IFDIR:
                self._enter(handle, place, status)
            else:
                self._file(handle, place, status, asked=asked)
        except OSError as error:
            self._leave_out(place, os_reason(error), asked=asked)

    def _enter(self, handle: int, place: bytes, status: os.stat_result) -> None:
        if len(self._levels) > MAX_DEPTH:
            if place in self._below:
                return  # it is walked by itself
            self._leave_out(place, f"it lies more than {MAX_DEPTH} folders deep")
            return
        folder = openat2(handle, b".", _FOLDER, _HERE)
        try:
            with os.scandir(folder) as entries:
                names = [os.fsencode(each.name) for each in itertools.islice(entries, MAX_ENTRIES - self._entries + 1)]
            del names[self._take(len(names)) :]
            if place != b"/":
                self._send_entry(Entry(place, "folder", stat.S_IMODE(status.st_mode), status.st_mtime))
            self._note_target(status)
        except BaseException:
            os.close(folder)
            raise
        self._levels.append(_Level(folder, place, sorted(names, reverse=True)))

    def _file(self, handle: int, place: bytes, status: os.stat_result, *, asked: bool) -> None:
        room = self.max_bytes - self._size
        if status.st_size > room:
            self._leave_out(place, f"{status.st_size} bytes, and {room} more may be sent", asked=asked)
            return
        file = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(file, "rb", buffering=0) as content:
            left = status.st_size
            self._send_entry(Entry(place, "file", stat.S_IMODE(status.st_mode), status.st_mtime, left))
            while left and not self._late() and (data := content.read(min(left, MAX_DATA))):
                left -= len(data)
                self._size += len(data)
                self._send(data)
        if left:
            reason = self._stopped if self._late() else "it became shorter while it was read"
            self._leave_out(place, reason, asked=asked)
        else:
            self._send(Whole())
            self._note_target(status)

    def _take(self, count: int) -> int:
        """Take room for so many entries; returns for how many there was."""
        taken = min(count, MAX_ENTRIES - self._entries)
        self._entries += taken
        if taken < count:
            self._stopped = self._stopped or f"it has more than {MAX_ENTRIES} files and folders"
        return taken

    def _late(self) -> bool:
        if self.clock() <= self._until:
            return False
        self._stopped = self._stopped or f"it takes more than {WALL:g} s"
        return True

    def _leave_out(self, place: bytes, reason: str, *, asked: bool = False) -> None:
        if place in self._below:
            asked = True
            self._named.add(place)
        self._send(Problem(place[:MAX_PATH], reason, asked))

    def _send_entry(self, entry: Entry) -> None:
        if entry.path in self._noted:
            self._sent[entry.path] = entry.kind
        self._send(entry)

    def _note_target(self, status: os.stat_result) -> None:
        if self._targets and _identity(status) in self._targets:
            self._targets[_identity(status)] = True

    def _send(self, frame: Frame) -> None:
        self._unsent += encode(frame)
        if len(self._unsent) >= PIECE or self.clock() >= self._due:
            self._flush()

    def _flush(self) -> None:
        self._due = self.clock() + PERIOD
        self.alive()
        try:
            self.out.sendall(self._unsent)
        except OSError as error:
            raise _UnreadError("nobody reads the snapshot") from error
        self._unsent.clear()


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_too_long(place: bytes) -> bool:
    return len(place) > MAX_PATH or place.count(b"/") > MAX_PARTS


def _is_pseudo(fd: int) -> bool:
    """Whether a file is of a file system that is an interface of the kernel (statfs(2)). Raises OSError."""
    found = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, found) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return (int(struct.unpack_from("l", found.raw)[0]) & 0xFFFFFFFF) in _PSEUDO


def _parents(path: bytes) -> Iterator[bytes]:
    """The folders above a path, without the root, highest first."""
    at = path.find(b"/", 1)
    while at > 0:
        yield path[:at]
        at = path.find(b"/", at + 1)
