"""Locates the pods of this node: one walk through /proc serves all of them.

The node daemon sees every process (hostPID). The oldest process of a pod provides the network namespace; it belongs to
the sandbox, which outlives the containers. The oldest process of a container provides its root folder; processes of
`kubectl exec` are younger. A process id can be reused, so it is verified before use: the namespace must have the pod's
addresses before anything is attached (`node.pods.pod_netns`), and the start time of the process must match before a
file is read (`node.certificates.one_shot`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from sidestep.kube.cgroups import pod_cgroups
from sidestep.model.pod import Location

PROC = "/proc"
CGROUP_ROOTS = ("/host/sys/fs/cgroup/unified", "/host/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")
"""Mount points of cgroup version 2. The node's own mount, made available to the daemon's container, comes first."""
MAX_DEPTH = 3
"""Folder levels between the root of version 2 and the part of a path that a cgroup namespace shows."""


class PodToLocate(msgspec.Struct, frozen=True):
    """A pod to locate. `containers` maps container ids, without the runtime's prefix, to names."""

    uid: str
    containers: Mapping[str, str] = msgspec.field(default_factory=dict)


class Process(msgspec.Struct, frozen=True):
    """A process, identified by `pid` and `started` (clock ticks since boot)."""

    pid: int
    started: int


@dataclass(slots=True)
class _Found:
    oldest: Process | None = None
    containers: dict[str, Process] = field(default_factory=dict)
    path: str = ""


def locate_pods(
    wanted: Mapping[str, PodToLocate], *, proc: str = PROC, cgroup_roots: tuple[str, ...] = CGROUP_ROOTS
) -> dict[str, Location]:
    """Return the locations of the pods, by UID, without pods that have no process here.

    Blocks for about 20 µs per process of the node.
    """
    found: dict[str, _Found] = {}
    for entry in os.listdir(proc):  # noqa: PTH208 - names only
        if not entry.isdecimal():
            continue
        text = _read(f"{proc}/{entry}/cgroup")
        if "pod" not in text:
            continue
        place = next((each for each in pod_cgroups(text) if each.uid in wanted), None)
        if place is None:
            continue
        process = Process(int(entry), started(int(entry), proc=proc))
        if process.started < 0:
            continue
        pod = found.setdefault(place.uid, _Found())
        pod.path = pod.path or place.path
        if pod.oldest is None or _order(process) < _order(pod.oldest):
            pod.oldest = process
        if place.container:
            known = pod.containers.get(place.container)
            if known is None or _order(process) < _order(known):
                pod.containers[place.container] = process
    folders = _CgroupFolders(cgroup_roots)
    return {uid: _location(pod, wanted[uid], proc, folders) for uid, pod in found.items()}


def started(pid: int, *, proc: str = PROC) -> int:
    """Return the start time of a process in clock ticks since boot (proc_pid_stat(5), field 22); -1 when it has
    ended.
    """
    fields = _read(f"{proc}/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 else -1


def _order(process: Process) -> tuple[int, int]:
    return (process.started, process.pid)


class _CgroupFolders:
    """Maps paths of cgroup files to folders. Searches for the part that a cgroup namespace hides."""

    def __init__(self, roots: tuple[str, ...]) -> None:
        self._roots = [root for root in roots if os.path.isfile(f"{root}/cgroup.controllers")]  # noqa: PTH113
        self._bases: list[str] = []

    def of(self, path: str) -> str | None:
        """Return the folder; None when there is none."""
        tail = "/".join(segment for segment in path.split("/") if segment not in {"", ".", ".."})
        if not tail or not self._roots:
            return None
        for base in [*self._bases, *self._roots]:
            if os.path.isdir(f"{base}/{tail}"):  # noqa: PTH112 - as above
                return f"{base}/{tail}"
        for base in _below(self._roots[0], MAX_DEPTH):
            if os.path.isdir(f"{base}/{tail}"):  # noqa: PTH112 - as above
                self._bases.append(base)
                return f"{base}/{tail}"
        return None


def _below(folder: str, depth: int) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return found + [deeper for each in found if depth > 1 for deeper in _below(each, depth - 1)]


def _location(found: _Found, wanted: PodToLocate, proc: str, folders: _CgroupFolders) -> Location:
    processes = {
        wanted.containers[container]: process
        for container, process in sorted(found.containers.items())
        if container in wanted.containers
    }
    oldest = found.oldest
    meant = [*processes.values(), *([oldest] if oldest is not None else [])]
    return Location(
        netns=f"{proc}/{oldest.pid}/ns/net" if oldest is not None else None,
        pids={name: process.pid for name, process in processes.items()},
        cgroup=folders.of(found.path),
        births={process.pid: process.started for process in meant},
    )


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 64 * 1024).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)
