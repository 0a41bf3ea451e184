"""Process 1 of a room: `unshare --mount --pid --fork … python init.py SETTINGS [COMMAND…]`; see `tests.debian.room`.

It puts a root together, enters it by pivot_root(2), and runs COMMAND in it, whose exit status becomes its own. Without
one it prints a line when the place is furnished. It reaps orphans all the while. When it ends the kernel ends every
process of the room, and with the last one all mounts go.

SETTINGS is JSON, the fields of `tests.debian.room.Room`. This file uses the standard library only: it is run by the
interpreter outside, and goes on running when that interpreter's files are out of sight.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

READY = "ready"
"""What is printed when the place is furnished."""

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "kmsg", "fuse", "kvm", "net/tun")
"""What a room sees of the machine's devices, where the machine has it."""
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}

KERNEL = ("fs/cgroup", "fs/bpf", "kernel/security", "kernel/debug", "kernel/tracing")
"""Below /sys: file systems that stay the machine's when a room has a network, and so a sysfs, of its own."""

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SHARED = 0x1, 0x20, 0x1000, 0x4000, 1 << 20
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError."""
    words = [os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()]
    if _libc.mount(*words) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source} on {target}: {os.strerror(number)}")


def bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Show a file or a folder, and what is mounted below it, in another place, which is made when it is not there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir() if source.is_dir() else target.touch()
    mount(source, target, flags=_MS_BIND | _MS_REC)
    if read_only:
        mount("none", target, flags=_MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def copy(source: Path, target: Path) -> None:
    """Copy a file, a link or a folder, if it is there; files of the same name are replaced."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            copy(path, target / path.name)
    elif source.is_symlink() or source.is_file():
        target.unlink(missing_ok=True)
        shutil.copy2(source, target, follow_symlinks=False)


def assemble(settings: dict) -> Path:
    """The new root as a mount: the cached one with a layer for writes over it, or the cached one itself."""
    root = Path(settings["root"])
    stage = root.parent / "stage"
    mount("tmpfs", stage, "tmpfs", data="mode=0755")
    new = stage / "new"
    new.mkdir()
    if settings["in_place"]:
        mount(root, new, flags=_MS_BIND)
        return new
    layer = Path(settings["writes"] or stage)
    for name in ("upper", "work"):
        (layer / name).mkdir(parents=True, exist_ok=True)
    mount("overlay", new, "overlay", data=f"lowerdir={root},upperdir={layer / 'upper'},workdir={layer / 'work'}")
    return new


def furnish(new: Path, settings: dict) -> None:
    """What a system expects to find: proc, sys, dev, run, and what the caller wants to have there."""
    mount("proc", new / "proc", "proc")
    if "net" in settings["own"]:
        mount("sysfs", new / "sys", "sysfs")
        for name in KERNEL:
            if os.path.ismount(Path("/sys") / name) and (new / "sys" / name).is_dir():
                bind(Path("/sys") / name, new / "sys" / name)
    else:
        bind(Path("/sys"), new / "sys")
    _devices(new / "dev")
    mount("tmpfs", new / "run", "tmpfs", data="mode=0755")
    for path in settings["copies"]:
        copy(Path(path), new / path[1:])
    for path, text in settings["files"].items():
        (new / path[1:]).write_text(text)
    for path in settings["memory"]:
        (new / path[1:]).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", new / path[1:], "tmpfs", data="mode=0755")
    for outside, inside, read_only in settings["binds"]:
        bind(Path(outside), new / inside[1:], read_only=read_only)
    if settings["hostname"]:
        socket.sethostname(settings["hostname"])


def _devices(folder: Path) -> None:
    mount("tmpfs", folder, "tmpfs", data="mode=0755")
    for name in DEVICES:
        if (Path("/dev") / name).exists():
            bind(Path("/dev") / name, folder / name)
    for name, target in LINKS.items():
        (folder / name).symlink_to(target)
    for name, kind, data in (
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("shm", "tmpfs", "mode=1777"),
        ("mqueue", "mqueue", ""),
    ):
        (folder / name).mkdir()
        mount(kind, folder / name, kind, data=data)


def enter(new: Path) -> None:
    """Make `new` the root and let go of the old one. Mounts made from here on reach copies of this namespace."""
    os.chdir(new)
    if _libc.pivot_root(b".", b".") < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"pivot_root to {new}: {os.strerror(number)}")
    if _libc.umount2(b".", _MNT_DETACH) < 0:
        raise OSError(ctypes.get_errno(), "the old root stays mounted")
    os.chdir("/")
    mount("none", "/", flags=_MS_SHARED | _MS_REC)


def start(command: list[str], settings: dict) -> int:
    """Start the command; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(settings["directory"])
        os.execvpe(command[0], command, settings["environment"])
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def main() -> None:
    """Furnish, enter, run, reap."""
    settings, command = json.loads(sys.argv[1]), sys.argv[2:]
    # A signal of the terminal reaches the command by itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    new = assemble(settings)
    furnish(new, settings)
    enter(new)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    first = start(command, settings) if command else 0
    if not command:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        print(READY, flush=True)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            signal.sigwait({signal.SIGCHLD})
            continue
        if pid == first:
            sys.exit(os.waitstatus_to_exitcode(status) % 256)


if __name__ == "__main__":
    main()
