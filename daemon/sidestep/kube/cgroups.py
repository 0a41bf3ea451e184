"""Finds the pod and container of a process from the text of its /proc/<pid>/cgroup (cgroups(7)). Pure.

The kubelet creates a cgroup for each pod, and the runtime one for each container inside it. Formats:

    cgroupfs driver      /kubepods/burstable/pod<uid>/<cid>            CRI-O: crio-<cid>
    systemd driver       /kubepods.slice/…-pod<u_i_d>.slice/cri-containerd-<cid>.scope     CRI-O: crio-<cid>.scope
    drivers that differ  /system.slice/containerd.service/…-pod<u_i_d>.slice:cri-containerd:<cid>
    kind                 /kubelet.slice/kubelet-kubepods.slice/…, and with a cgroup namespace /../../pod<uid>/<cid>

Version 1 and hybrid setups have one line per hierarchy (that of version 2 may be empty), version 2 has one line. A
container can create cgroups below its own with any name. Therefore all matches are returned from the outside in, and
the caller uses the first pod that it knows: a nested name cannot impersonate another pod. `crio-conmon-<cid>` is a
process of CRI-O in the host's namespaces, not the container.
"""

from __future__ import annotations

import re

import msgspec

_UID = r"[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}"
_POD = re.compile(rf"(?:.*-)?pod({_UID})(?:\.slice)?(?::[a-z-]+:([0-9a-f]{{12,64}}))?")
_CONTAINER = re.compile(r"(?:(?:cri-containerd|crio|docker|libpod)-)?([0-9a-f]{12,64})(?:\.scope)?")
_CONMON = re.compile(r"(?:crio|libpod)-conmon-.*")
MAX_TEXT = 64 * 1024
"""Characters of a cgroup file that are parsed."""


class PodCgroup(msgspec.Struct, frozen=True):
    """The pod's UID (with dashes) and the container id; "" for a process outside of the containers.

    `path` is the pod's cgroup below the root of version 2; "" when only version 1 names it.
    """

    uid: str
    container: str
    path: str = ""


def pod_cgroups(text: str) -> tuple[PodCgroup, ...]:
    """Return all pods that the file names, from the outside in, without duplicates."""
    found: dict[tuple[str, str], PodCgroup] = {}
    # Version 2 first, because its path is used.
    for line in sorted(text[:MAX_TEXT].splitlines(), key=lambda line: not line.startswith("0::")):
        number, _, rest = line.partition(":")
        path = rest.partition(":")[2]
        for place in _in_path(path, unified=number == "0"):
            found.setdefault((place.uid, place.container), place)
    return tuple(found.values())


def _in_path(path: str, *, unified: bool) -> list[PodCgroup]:
    segments = path.removesuffix(" (deleted)").split("/")
    found = []
    for index, segment in enumerate(segments):
        pod = _POD.fullmatch(segment)
        if pod is None:
            continue
        inner = segments[index + 1] if index + 1 < len(segments) else ""
        if _CONMON.fullmatch(inner):
            continue
        container = pod.group(2) or ""
        if not container and (match := _CONTAINER.fullmatch(inner)):
            container = match.group(1)
        folder = "/".join(segments[: index + 1]) if unified and not pod.group(2) else ""
        found.append(PodCgroup(pod.group(1).replace("_", "-"), container, folder))
    return found
