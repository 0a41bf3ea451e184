"""Writes a snapshot of a container's files (`protocols.file_frames`) into a folder of this machine.

The container may be hostile, and so may the node. A frame that breaks the order ends the snapshot (PeerError):

    between   E of a folder or link -> between      E of a file -> file      P -> between      S -> over
    file      D -> file             X, all bytes are there -> between        P, the file is removed -> between
    over      nothing

Invariants
  * Nothing is written outside of the folder, which is new or empty, and which only its owner may enter. Nobody else can
    replace it (`safe_folder`). A path has no `.`, `..` or empty part, and its parent is a folder of this snapshot.
    While files are written there is no link: links are made last, in real folders only, with relative targets that do
    not lead above the container's root, which is the folder. An absolute target counts from there, `x/..` in a target
    is left away.
  * Files are made and never opened (O_EXCL), with the owner's rights only; they may be executed where the container's
    could be. Set-id bits, owners and devices do not exist here.
  * More bytes than were asked for, or than an entry told, and more entries than a snapshot has, end it.

Names that this system cannot have are left out. Where links cannot be made (Windows without the privilege), one that
leads to a file of the snapshot becomes a copy: files of Secrets and ConfigMaps are such links. Where it leads is looked
up among the names of the snapshot only, never on this machine.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sidestep.aio.open_flags import open_flags
from sidestep.aio.os_reason import os_reason
from sidestep.laptop import safe_folder
from sidestep.model.errors import ConfigurationError, PeerError
from sidestep.model.text import harmless
from sidestep.protocols.file_frames import MAX_ENTRIES, MAX_PARTS, MAX_PATH, Entry, Frames, Problem, Summary, Whole

MAX_FRAMES: Final = 3 * MAX_ENTRIES
"""Entries and problems: each name may have one of both, and there are folders above the ones that were asked for."""
MAX_NAMES: Final = 64 * 1024 * 1024
"""Bytes of all paths and targets together, which are held in memory."""
MAX_TOLD: Final = 20
"""Problems that are told one by one."""
_MAX_HOPS: Final = 40
"""Links on the way to a file, as in the kernel (MAXSYMLINKS)."""
_WINDOWS: Final = re.compile(
    r'.*[\x00-\x1f<>:"|?*\\].*|.*[. ]|(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(\..*)?',
    re.IGNORECASE | re.DOTALL,
)
"""Names that Windows reserves or changes (learn.microsoft.com/windows/win32/fileio/naming-a-file)."""


@dataclass(slots=True)
class FileSnapshot:
    """One snapshot below `folder`: `check`, `begin`, `feed` what comes, `finish`; `close` in any case."""

    folder: Path
    max_bytes: int
    windows: bool = os.name == "nt"
    advice: str = "name another folder"
    """What to do where somebody else could replace the folder."""
    files: int = 0
    size: int = 0
    """Bytes that came."""
    left_out: int = 0
    missing: list[str] = field(default_factory=list)
    """Paths that were asked for and cannot be had, and why."""
    stopped: str = ""
    """Which bound the snapshot reached before it had everything."""
    _within: Path = field(default_factory=Path)
    """The folder by a path without links."""
    _news: list[str] = field(default_factory=list)
    _frames: Frames = field(default_factory=Frames)
    _over: bool = False
    _count: int = 0
    _names: int = 0
    _file: _File | None = None
    _folders: dict[str, bool] = field(default_factory=lambda: {"": True})
    """Path of each folder, and whether it could be made."""
    _links: dict[str, str] = field(default_factory=dict)
    _kept: dict[str, int] = field(default_factory=dict)
    """Path of each file that is whole, and its bytes."""

    def check(self) -> None:
        """Raise ConfigurationError when the folder is there and not empty, or somebody else's. Writes nothing."""
        try:
            if not self.folder.parent.is_dir():
                raise self._unusable("cannot be made: its parent is no folder")
            folder = self._within = safe_folder.resolved(self.folder)
            if folder.is_symlink():
                raise self._unusable("is a link; name the folder")
            if folder.exists():
                if any(folder.iterdir()):
                    raise self._unusable("is not empty; name a new folder")
                if hasattr(os, "geteuid") and folder.stat().st_uid != os.geteuid():
                    raise self._unusable("belongs to another user; name a new folder")
            if unsafe := safe_folder.unsafe_above(self.folder):
                raise self._unusable(f"{unsafe}; {self.advice}")
        except OSError as error:
            raise self._unusable(_reason(error)) from error

    def begin(self) -> None:
        """Make the folder. Raises ConfigurationError."""
        self.check()
        try:
            self._within.mkdir(mode=0o700, exist_ok=True)
            self.check()  # in a sticky folder somebody may have been faster; what is ours now stays
            self._within.chmod(0o700)
        except OSError as error:
            raise self._unusable(f"cannot be made: {_reason(error)}") from error

    def feed(self, data: bytes) -> None:
        """Write what came. Raises PeerError for what breaks the rules, ConfigurationError when it cannot be written."""
        for frame in self._frames.feed(data):
            if self._over:
                raise PeerError("the snapshot goes on after its end")
            match frame:
                case bytes():
                    self._write(frame)
                case Entry():
                    self._begin(frame)
                case Whole():
                    self._end()
                case Problem():
                    self._problem(frame)
                case Summary():
                    self._between()
                    self._over, self.stopped = True, harmless(frame.stopped)

    def finish(self) -> None:
        """Make the links. Raises PeerError when the end did not come."""
        for path, target in self._links.items():
            self._link(path, target)
        if not self._over:
            raise PeerError("the snapshot broke off before its end")

    def news(self) -> list[str]:
        """Return what was left out since the last time, in lines that a terminal may show."""
        found, self._news = self._news, []
        return found

    def close(self) -> None:
        """Remove a file that is not whole."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()

    # --- frames -----------------------------------------------------------------------------------------------------

    def _between(self) -> None:
        if self._file is not None:
            raise PeerError("the snapshot leaves a file without an end")

    def _counted(self, size: int) -> None:
        self._count += 1
        self._names += size
        if self._count > MAX_FRAMES or self._names > MAX_NAMES:
            raise PeerError("the snapshot has more entries than one may have")

    def _begin(self, entry: Entry) -> None:
        self._between()
        self._counted(len(entry.path) + len(entry.target))
        path = _checked(entry.path)
        parent, _, name = path.rpartition("/")
        if parent not in self._folders:
            raise PeerError("the snapshot has a file outside of its folders")
        if path in self._folders or path in self._links:
            raise PeerError("the snapshot has a path twice")
        usable = self._folders[parent]
        if usable and self.windows and _WINDOWS.fullmatch(name):
            usable = False
            self._leave_out(path, "this system cannot have such a name")
        match entry.kind:
            case "folder":
                self._folders[path] = usable and self._made(path)
            case "link" if usable:
                self._links[path] = entry.target.decode("utf-8", "surrogateescape")
            case "file":
                self._file = _File(path, self._place(path), entry)
                try:
                    if usable:
                        self._file.open()
                except (OSError, ValueError) as error:
                    self._leave_out(path, _reason(error))

    def _made(self, path: str) -> bool:
        try:
            self._place(path).mkdir(mode=0o700)
        except (OSError, ValueError) as error:
            self._leave_out(path, _reason(error))
            return False
        return True

    def _write(self, data: bytes) -> None:
        self.size += len(data)
        if self._file is None or self.size > self.max_bytes:
            raise PeerError("the snapshot has bytes that were not asked for")
        try:
            self._file.write(data)
        except OSError as error:
            raise self._unusable(_reason(error)) from error

    def _end(self) -> None:
        if self._file is None:
            raise PeerError("the snapshot ends a file that it did not begin")
        file, self._file = self._file, None
        try:
            if file.keep():
                self.files += 1
                self._kept[file.path] = file.size
        except OSError as error:
            raise self._unusable(_reason(error)) from error

    def _problem(self, problem: Problem) -> None:
        self._counted(0)
        self.close()
        path = problem.path.decode("utf-8", "replace")
        if problem.asked and len(self.missing) < MAX_TOLD:
            self.left_out += 1
            self.missing.append(harmless(f"{path}: {problem.reason}"))
        else:
            self._leave_out(path, problem.reason)

    def _leave_out(self, path: str, reason: str) -> None:
        self.left_out += 1
        if self.left_out <= MAX_TOLD:
            self._news.append(harmless(f"Left out: {path}: {reason}"))
        elif self.left_out == MAX_TOLD + 1:
            self._news.append("Left out: more")

    # --- files ------------------------------------------------------------------------------------------------------

    def _place(self, path: str) -> Path:
        return self._within / path.lstrip("/")

    def _link(self, path: str, target: str) -> None:
        folder = posixpath.dirname(path)
        within = posixpath.normpath(posixpath.join(folder, target))
        try:
            if self.windows and any(_WINDOWS.fullmatch(part) for part in within.split("/")):
                raise ValueError
            text = posixpath.relpath(within, folder).replace("/", os.sep)
            # The target is text of the container; Path would change it.
            os.symlink(text, self._place(path), target_is_directory=self.windows and self._is_folder(path))  # noqa: PTH211
        except (OSError, NotImplementedError, ValueError) as error:
            if not self._copied(path):
                self._leave_out(path, f"the link cannot be made: {_reason(error)}")

    def _is_folder(self, path: str) -> bool:
        return self._folders.get(self._leads_to(path), False)

    def _copied(self, path: str) -> bool:
        """Copy the file that a link leads to; returns False where there is none."""
        found = self._leads_to(path)
        size = self._kept.get(found, -1)
        if size < 0 or self.size + size > self.max_bytes:
            return False
        try:
            _copy(self._place(found), self._place(path))
        except (OSError, ValueError):
            return False
        self.size += size
        return True

    def _leads_to(self, path: str) -> str:
        """Follow the links of the snapshot; returns "" where there are too many, or the way becomes too long."""
        for _ in range(_MAX_HOPS):
            parts = path.split("/")
            if len(path) > MAX_PATH or len(parts) > MAX_PARTS:
                return ""
            at, rest = self._first_link(parts)
            if not at:
                return path
            path = posixpath.normpath(posixpath.join(posixpath.dirname(at), self._links[at], *rest))
            path = "/" + path.lstrip("/")
        return ""

    def _first_link(self, parts: list[str]) -> tuple[str, list[str]]:
        """Return the first link on the way, or "", and what follows it."""
        place = ""
        for number, part in enumerate(parts[1:], 2):
            place += "/" + part
            if place in self._links:
                return place, parts[number:]
            if place not in self._folders:
                break
        return "", []

    def _unusable(self, reason: str) -> ConfigurationError:
        return ConfigurationError(reason, subject="folder", value=str(self.folder))


class _File:
    """A file that is being written; nothing is, as long as it is not open."""

    def __init__(self, path: str, place: Path, entry: Entry) -> None:
        self.path = path
        self.size = entry.size
        self._place = place
        self._entry = entry
        self._left = entry.size
        self._fd = -1

    def open(self) -> None:
        """Make it. Raises OSError, ValueError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | open_flags("O_NOFOLLOW", "O_CLOEXEC")
        self._fd = os.open(self._place, flags, 0o700 if self._entry.mode & 0o111 else 0o600)

    def write(self, data: bytes) -> None:
        """Add bytes. Raises PeerError for more than its entry told, OSError."""
        self._left -= len(data)
        if self._left < 0:
            raise PeerError("the snapshot has more of a file than it told")
        view = memoryview(data)
        while self._fd >= 0 and view:
            view = view[os.write(self._fd, view) :]

    def keep(self) -> bool:
        """Finish the file; returns False if it could not be made. Raises PeerError when bytes are missing, OSError."""
        if self._left:
            raise PeerError("the snapshot has less of a file than it told")
        if self._fd < 0:
            return False
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)  # tells of writes that failed, where a file system is far away
        except OSError:
            self._remove()
            raise
        try:
            os.utime(self._place, (self._entry.modified, self._entry.modified))
        except (OSError, OverflowError, ValueError):
            pass  # a time that this file system cannot keep
        return True

    def abandon(self) -> None:
        """It is not whole: remove it."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self._place.unlink()


def _copy(source: Path, target: Path) -> None:
    """Copy a file of the snapshot to a new one. Raises OSError, ValueError; then there is no new one."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | open_flags("O_NOFOLLOW", "O_CLOEXEC"), 0o600)

    with open(source, "rb") as original, open(target, "xb", opener=opener) as copy:
        try:
            shutil.copyfileobj(original, copy)
            target.chmod(0o600 | stat.S_IMODE(os.fstat(original.fileno()).st_mode) & 0o100)
        except OSError:
            target.unlink(missing_ok=True)
            raise


def _checked(path: bytes) -> str:
    """Return the path as text. Raises PeerError for one that could lead elsewhere."""
    text = path.decode("utf-8", "surrogateescape")
    parts = text.split("/")
    if parts[0] or not 2 <= len(parts) <= MAX_PARTS + 1 or "\0" in text or not {"", ".", ".."}.isdisjoint(parts[1:]):
        raise PeerError("the snapshot has a path that leads elsewhere")
    return text


def _reason(error: Exception) -> str:
    return os_reason(error) if isinstance(error, OSError) else "this system cannot have such a name"
