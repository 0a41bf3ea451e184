"""Where a pod of a manifest lives on this machine, as its annotations say (design, section 8, local mode).

Local mode only: the files are the operator's own. Annotations of pods in a cluster are written by their users, who must
not be able to point the node daemon at a namespace or a folder of their choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sidestep.config import annotation_names as names
from sidestep.config.field_error import FieldError
from sidestep.model.pod import Location

MAX_PID = 4_194_304
"""PID_MAX_LIMIT of 64-bit Linux (include/linux/threads.h)."""


def parse_location(annotations: Mapping[str, str], *, ended: bool = False) -> Location:
    """Where a pod of a manifest lives on this machine. Raises FieldError; a pod that has ended needs no place."""
    paths: dict[str, str | None] = {}
    for annotation in (names.NETNS, names.ROOT, names.CGROUP):
        path = annotations.get(annotation)
        if path is not None and (not path.startswith("/") or not path.isprintable() or len(path) > 4095):
            raise FieldError(f"metadata.annotations.{annotation}", "must be an absolute path")
        paths[annotation] = path
    pid = annotations.get(names.PID)
    if pid is not None and not (re.fullmatch(r"[1-9][0-9]{0,6}", pid) and int(pid) <= MAX_PID):
        raise FieldError(f"metadata.annotations.{names.PID}", f"must be a process id from 1 to {MAX_PID}")
    if pid is None and paths[names.NETNS] is None and not ended:
        reason = f'add {names.NETNS}: /run/netns/NAME or {names.PID}: "PID" to say where this pod lives on the machine'
        raise FieldError("metadata.annotations", reason)
    return Location(
        netns=paths[names.NETNS] or (f"/proc/{pid}/ns/net" if pid else None),
        pids={"": int(pid)} if pid else {},
        root=paths[names.ROOT],
        cgroup=paths[names.CGROUP],
    )
