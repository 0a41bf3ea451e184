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
    """Make a cgroup; commands run in it by `inside`. It must be empty again at the end."""
    folder = mount() / f"sidestep-test-{os.getpid()}-{next(_numbers)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        until(lambda: not (folder / "cgroup.procs").read_text(), within=10, what="the cgroup to be empty")
        folder.rmdir()


def inside(folder: Path, command: Sequence[str | Path]) -> list[str]:
    """The command line that runs a command inside the cgroup."""
    return ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(folder / "cgroup.procs"), *map(str, command)]
