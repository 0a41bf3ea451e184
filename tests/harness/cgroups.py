"""A cgroup v2 folder that stands for a pod's."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.harness.waiting import until

_numbers = itertools.count(1)


def mount() -> Path:
    """Where cgroup v2 is mounted."""
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return Path(next(words[1] for words in lines if words[2] == "cgroup2"))


@contextlib.contextmanager
def cgroup() -> Iterator[Path]:
    """Make a cgroup; commands run in it by `inside`. At the end it and those below must have no process any more."""
    folder = mount() / f"sidestep-test-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        events = folder / "cgroup.events"
        until(lambda: "populated 0" in events.read_text(), within=10, what="the cgroup to be empty")
        for each in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            each.rmdir()
        folder.rmdir()


def inside(folder: Path, command: Sequence[str | Path]) -> list[str]:
    """The command line that runs a command inside the cgroup."""
    return ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(folder / "cgroup.procs"), *map(str, command)]


def unified(command: Sequence[str | Path]) -> list[str]:
    """The command line that runs a command where version 2 alone is mounted, at /sys/fs/cgroup.

    The mounts are in a namespace of its own. The root is the one of the cgroup namespace that the command is in.
    """
    script = 'umount --recursive /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)]
