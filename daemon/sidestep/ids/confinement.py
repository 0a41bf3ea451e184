"""Locks a root process in, in which Suricata is started: no network, no file but its own, no right, bounded memory.

`lock` is called once, in a single-threaded process that executes Suricata next, and cannot be undone. What is left to
code that took over Suricata: its memory, the bytes of its own pod that it is fed, a socket to say what it found.

    network        an empty network namespace, without even a loopback that is up; abstract unix sockets belong to it
    files          a read-only tmpfs with Suricata, its libraries (bound from the system, read-only), its configuration
                   and rules. No /proc, /sys or /dev. Landlock allows to read and to execute, nothing else; where the
                   kernel has none (before 5.13, or switched off), `lock` fails
    rights         a user of its own, no capability, no_new_privs; `seccomp` refuses namespaces, mounts, tracing, eBPF,
                   io_uring, and every socket that is not of unix
    memory         RLIMIT_DATA, beside Suricata's own bounds (`suricata_config`)
    processes      at most THREADS tasks of this user; it dies with the thread that started it (PR_SET_PDEATHSIG)
    time           a low priority, and timers that may be SLACK late: while Suricata reads packets from a pipe two of
                   its threads sleep for 250 us at a time, which took 5 % of a processor and takes 0.2 % so

When a step fails it raises, and the caller must end the process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from sidestep.model.errors import KernelError
from sidestep.sandbox import capabilities, libc, seccomp

THREADS: Final = 32
"""Tasks of the user; Suricata has six."""
DESCRIPTORS: Final = 64
NICE: Final = 10
SLACK: Final = 100_000_000
"""Nanoseconds. Packets are not waited for by timers, so alerts are not later for it."""
SIZE: Final = "8m"
"""Bytes of configuration and rules at most."""

_SEALED: Final = libc.MS_NOSUID | libc.MS_NODEV
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Landlock's system calls; the same numbers on x86_64 and aarch64."""
_ACCESS_FS: Final = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}
"""Landlock ABI -> all rights about files that it knows (linux/landlock.h) ..."""
_NEWEST_FS: Final = 0xFFFF
"""... and those since version 5."""
_READ_AND_EXECUTE: Final = 0x1 | 0x4 | 0x8
"""LANDLOCK_ACCESS_FS_EXECUTE, _READ_FILE, _READ_DIR."""
_PATH_BENEATH: Final = 1
_GROWING: Final = 0x10000000 | 0x20000000 | 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x40000000
"""The flags of clone(2) that make namespaces: user, pid, mount, cgroup, UTS, IPC, network."""


def lock(files: Mapping[str, bytes], programs: Sequence[str], *, uid: int, memory: int, listen: str) -> socket.socket:
    """Confine this process; returns a listening unix socket at the path `listen` of the new root.

    `files` are made, by absolute path; `programs` are bound from the system, at their own paths. `memory` is in bytes.
    Raises KernelError, BugError, OSError; the caller ends the process then.
    """
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS | libc.CLONE_NEWNET)
    listener = _make_root(files, programs, uid=uid, listen=listen)
    _limit(memory)
    capabilities.become(uid)
    libc.prctl(_PR_SET_TIMERSLACK, SLACK, doing="letting timers be late")
    parent = os.getppid()
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, doing="ending with the daemon")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    capabilities.forbid_new_privileges()
    _restrict_files()
    seccomp.install(seccomp.assemble_denying(os.uname().machine, _GROWING))
    return listener


def _make_root(files: Mapping[str, bytes], programs: Sequence[str], *, uid: int, listen: str) -> socket.socket:
    """Replace the root, as `sandbox.namespaces.empty_root` does, which says why in this order."""
    os.umask(0o022)
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    root = "/proc"  # every machine has one
    held = {name: os.open(name, os.O_PATH | os.O_CLOEXEC) for name in programs}
    entry = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    libc.mount("sidestep", root, "tmpfs", _SEALED, f"size={SIZE},nr_inodes=512,mode=755")
    os.fchdir(entry)
    for name, fd in held.items():
        place = Path(root + name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        libc.mount(str(fd), str(place), flags=libc.MS_BIND)
        libc.mount("none", str(place), flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _SEALED)
    for name, content in files.items():
        Path(root + name).write_bytes(content)
    logs = Path(root, "log")
    logs.mkdir()
    libc.mount("sidestep", str(logs), "tmpfs", _SEALED | libc.MS_NOEXEC, f"size=4k,nr_inodes=1,mode=700,uid={uid}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.umask(0)  # for `uid`, and nobody else sees this root; to change the owner takes CAP_CHOWN, which a pod lacks
    listener.bind(root + listen)
    os.umask(0o022)
    listener.listen(1)
    for fd in (*held.values(), entry):
        os.close(fd)
    os.chdir(root)
    libc.pivot_root(".", ".")
    libc.umount(".", libc.MNT_DETACH)
    libc.mount("none", "/", flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _SEALED)
    os.chdir("/")
    return listener


def _limit(memory: int) -> None:
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_NPROC: THREADS,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))
    # To be nicer is everybody's right, to be less so is not.
    os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))


class _RulesetAttributes(ctypes.Structure):
    """`struct landlock_ruleset_attr`: rights about files, and since ABI 4 about TCP ports."""

    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    """`struct landlock_path_beneath_attr`."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """The version of Landlock's interface; 0 where the kernel has none, or has it switched off."""
    system = ctypes.CDLL(None, use_errno=True)
    return max(0, int(system.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def _restrict_files() -> None:
    version = landlock_version()
    if version == 0:
        raise KernelError("landlock_create_ruleset", 95, doing="looking for Landlock, which `ids` needs (Linux 5.13)")
    attributes = _RulesetAttributes(_ACCESS_FS.get(version, _NEWEST_FS), 3 if version >= 4 else 0)
    size = 16 if version >= 4 else 8
    ruleset = _call(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    beneath = _PathBeneath(_READ_AND_EXECUTE, root)
    _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), ctypes.byref(beneath), ctypes.c_uint32(0))
    _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(root)
    os.close(ruleset)


def _call(number: int, *arguments: object) -> int:
    system = ctypes.CDLL(None, use_errno=True)
    result = int(system.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise KernelError("landlock", ctypes.get_errno(), doing="restricting files")
    return result
