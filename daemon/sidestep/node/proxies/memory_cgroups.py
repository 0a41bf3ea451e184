"""A memory cgroup for each pod proxy, IDS and inspector, where there may be any. It bounds what RLIMIT_DATA does not.

Version 1 (alone or beside version 2): below the daemon's own group. Version 2: beside it, because a group with
processes cannot have child groups with controllers; at the root, below it. All groups are in one folder,
`sidestep-proxies`, and are named PID-PID after daemon and process. A group is removed with its process, the folder with
the last one. A daemon removes the groups of daemons that do not run any more, which SIGKILL leaves: at its start and,
while processes start, every `SWEEP` seconds (looking at all groups for each would be quadratic in their number).

One thread does all of it, in order, because the kernel may take 20 ms to move a process: no proxy is delayed. Whoever
starts an IDS waits for it. A failure is logged once, and processes are then bounded by their resource limits alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from sidestep.aio.process import Process
from sidestep.model.errors import ConfigurationError
from sidestep.observability.logs import get_logger

FOLDER = "sidestep-proxies"
SWEEP = 10.0
"""Seconds between two looks for groups that others left."""
GONE, BUSY = 0.5, 0.005
"""Seconds that the kernel has to end a process that was killed, and between two looks."""
MAX_TEXT = 1 << 20
"""Bytes of a file of /proc that are looked at."""


class MemoryCgroups:
    """Those of one daemon. Make it with `find`; `version` is that of the memory controller, `home` its own group."""

    def __init__(self, parent: Path, home: Path, version: int, *, proc: Path = Path("/proc")) -> None:
        self.folder = parent / FOLDER
        self.version = version
        self._home = home
        self._proc = proc
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cgroups")
        self._failed = False
        self._swept: float | None = None
        """When groups that others left were last looked for."""
        self._log = get_logger("memory-cgroups")

    @classmethod
    def find(cls, proc: Path = Path("/proc")) -> Self:
        """Where this process may make them. Raises ConfigurationError that says why it may not."""
        mounts = [line.split() for line in _text(proc / "self/mountinfo").splitlines()]
        own = [line.split(":", 2) for line in _text(proc / "self/cgroup").splitlines()]
        for _, controllers, path in own:
            if "memory" in controllers.split(","):
                home = _place(mounts, "cgroup", path, option="memory")
                return cls(home, home, 1, proc=proc)
        for number, _, path in own:
            if number == "0":
                home = _place(mounts, "cgroup2", path)
                is_root = not (home / "cgroup.type").exists()  # which the root alone does not have
                parent = home if is_root else home.parent
                if "memory" in _text(parent / "cgroup.subtree_control").split():
                    return cls(parent, home, 2, proc=proc)
        raise ConfigurationError("no memory controller for this process", subject="cgroups")

    def enter(self, process: Process, limit: int) -> Future[None]:
        """Move a process into a group of its own, some time soon: when the result is done, which never has an error."""
        return self._thread.submit(self._do, lambda: self._enter(process, limit))

    def leave(self, pid: int) -> None:
        """The process has ended, or was killed: remove its group."""
        self._thread.submit(self._do, lambda: self._remove(pid))

    def begin(self) -> None:
        """Remove what a daemon left that was killed, some time soon."""
        self._thread.submit(self._do, self.remove_folder)

    def prepare(self) -> None:
        """Make the folder and remove what others left, unless that was done just now. Raises OSError."""
        self.folder.mkdir(exist_ok=True)
        if self.version == 2:
            _write(self.folder / "cgroup.subtree_control", "+memory")
        now = time.monotonic()
        if self._swept is None or now - self._swept >= SWEEP:
            self._swept = now
            self._sweep()

    async def aclose(self) -> None:
        """Remove the folder, if nobody uses it. All proxies have ended."""
        await asyncio.wrap_future(self._thread.submit(self.remove_folder))
        self._thread.shutdown(wait=False)

    def remove_folder(self) -> None:
        """Remove what is empty."""
        with contextlib.suppress(OSError):
            self._sweep()
            self.folder.rmdir()

    def group(self, pid: int) -> Path:
        """The group of a process of this daemon."""
        return self.folder / f"{os.getpid()}-{pid}"

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, ConfigurationError) as error:
            if not self._failed:
                self._failed = True
                self._log.warning("proxies have no memory cgroups of their own", reason=str(error))

    def _enter(self, process: Process, limit: int) -> None:
        self.prepare()
        group = self.group(process.pid)
        group.mkdir()
        if self.version == 2:
            _write(group / "memory.max", str(limit))
        else:
            _write(group / "memory.limit_in_bytes", str(limit))
        if _has_ended(process):
            return
        with contextlib.suppress(ProcessLookupError):
            _write(group / "cgroup.procs", str(process.pid))
        if _has_ended(process):  # its number could be somebody else's by now
            for pid in _text(group / "cgroup.procs").split():
                with contextlib.suppress(ProcessLookupError):
                    _write(self._home / "cgroup.procs", pid)

    def _remove(self, pid: int) -> None:
        """Remove the group of a process, which has ended or is about to; what is not possible is left to `_sweep`."""
        deadline = time.monotonic() + GONE
        while True:
            try:
                self.group(pid).rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                    return
                time.sleep(BUSY)
            else:
                return

    def _sweep(self) -> None:
        for group in list(self.folder.iterdir()):
            daemon, _, proxy = group.name.partition("-")
            if not group.is_dir() or (self._lives(daemon) and (daemon != str(os.getpid()) or self._lives(proxy))):
                continue
            with contextlib.suppress(OSError):  # a proxy of it that ends later than we begin
                group.rmdir()

    def _lives(self, pid: str) -> bool:
        return pid.isdecimal() and (self._proc / pid).exists()


def own_group(proc: Path = Path("/proc")) -> Path:
    """The cgroup v2 folder of this process, where it is mounted. Raises ConfigurationError when it is not."""
    for line in _text(proc / "self/cgroup").splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            mounts = [each.split() for each in _text(proc / "self/mountinfo").splitlines()]
            return _place(mounts, "cgroup2", path)
    raise ConfigurationError("this process is in no cgroup of version 2", subject="cgroups")


def _has_ended(process: Process) -> bool:
    return not process.alive


def _place(mounts: list[list[str]], kind: str, path: str, *, option: str = "") -> Path:
    """Where the group `path` of a hierarchy is mounted."""
    for words in mounts:
        end = words.index("-") if "-" in words else len(words)
        if len(words) < end + 4 or words[end + 1] != kind or (option and option not in words[end + 3].split(",")):
            continue
        root, point = words[3].rstrip("/"), words[4]
        if path == root or path.startswith(root + "/"):
            return Path(point + path[len(root) :])
    name = "the memory controller" if option else f"the group {path}"
    raise ConfigurationError(f"{name} is not mounted", subject="cgroups")


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT).decode(errors="replace")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", subject="cgroups") from error


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
