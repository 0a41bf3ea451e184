"""Location of a pod on this machine, from the annotations of its manifest. Local mode only.

In local mode the operator writes the manifests. In a cluster, users write annotations and must not be able to direct
the node daemon to a namespace or folder of their choice; the daemon then locates pods by their processes.
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
    """Parse the location of a pod from its annotations. Raises FieldError; a pod that has `ended` needs no location."""
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
