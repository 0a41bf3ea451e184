"""Targets of the Makefile in a Debian of another suite: python -m tests.debian.suite SUITE PACKAGES TARGETS [NETWORK].

The sources, as they are in the working tree, are copied into a folder of the cache, where the room sees them as /src
and makes a virtual environment of its own. A first room has the machine's network and installs what pip has to fetch.
A second one runs the targets, with a network namespace of its own that leads nowhere, and an empty file system for
pinned BPF objects; NETWORK=machine leaves it the machine's network and shows it the cache, for targets that fetch and
build something (`make e2e`). When the command ends, both rooms and the copy are gone; the root stays in the cache.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.debian import cache, roots
from tests.debian.room import Bind, Room

MAKE = ("ca-certificates", "make", "python3", "git", "util-linux")
"""What the Makefile takes for granted."""

PIP = Path("/etc/pip.conf")
"""The machine's settings of pip, beside those in the environment."""

_PREPARE = "make .venv/.stamp build/layers/.stamp"
_NETWORK = "ip link set lo up; ip link add eth0 type veth peer name eth1; ip address add 198.18.0.1/24 dev eth0; "
_NETWORK += "ip link set eth0 up; ip link set eth1 up; "
"""A machine has an address of its own; this one leads nowhere (RFC 2544)."""
_RUN = 'chmod 1777 /tmp; mount -t bpf bpf /sys/fs/bpf; exec make "$@"'
_WITHIN = 15 * 60.0
"""Seconds for making the virtual environment; the targets have the deadlines of their tests."""


def sources() -> list[str]:
    """The files of the working tree that git knows or would add, relative to it."""
    command = ["git", "-C", cache.REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    return [name for name in listed.split("\0") if name and (cache.REPOSITORY / name).is_file()]


def copy(target: Path) -> None:
    """Copy the sources."""
    for name in sources():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(cache.REPOSITORY / name, target / name)


def prepare(suite: str, root: Path, source: Path, log: Path) -> Sequence[Bind]:
    """Copy the sources to the new folder `source` and make their virtual environment. Raises BuildError.

    Returns what a room of that `root` has to bind in order to see them as /src.
    """
    source.mkdir(parents=True)
    copy(source)
    binds = [Bind(source, "/src"), *([Bind(PIP, str(PIP), read_only=True)] if PIP.exists() else [])]
    outside = Room(root, binds=binds, memory=["/tmp"], directory="/src")
    cache.step(
        f"making the virtual environment in Debian {suite}",
        outside.run("sh", "-c", _PREPARE),
        log=log,
        within=_WITHIN,
    )
    return binds


def run(suite: str, packages: Sequence[str], targets: Sequence[str], *, network: bool) -> int:
    """Run the targets in `suite`; the exit status of make. `network`: the machine's. Raises BuildError."""
    root = roots.root("suite", suite, sorted({*MAKE, *packages}))
    with tempfile.TemporaryDirectory(prefix=f"suite-{suite}-", dir=cache.folder()) as folder:
        binds = prepare(suite, root, Path(folder) / "src", Path(folder) / "log")
        inside = _place(root, binds, network=network)
        cache.say(f"make {' '.join(targets)} in Debian {suite}")
        script = _RUN if network else _NETWORK + _RUN
        began = time.monotonic()
        status = subprocess.run(inside.run("sh", "-euc", script, "sh", *targets), check=False).returncode
        cache.say(
            f"make {' '.join(targets)} in Debian {suite}: exit status {status} after {time.monotonic() - began:.0f} s"
        )
        return status


def _place(root: Path, binds: Sequence[Bind], *, network: bool) -> Room:
    """Where the targets run."""
    if not network:
        return Room(root, binds=binds, memory=["/tmp"], directory="/src", own=["net"])
    # At the same path, because what is built in the cache holds paths of it.
    kept = cache.folder()
    environment = {"SIDESTEP_E2E_CACHE": str(kept)}
    return Room(root, binds=[*binds, Bind(kept, str(kept))], memory=["/tmp"], directory="/src", environment=environment)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(suite: str, packages: str, targets: str, network: str = "") -> int:
    """Returns the exit status: that of make, 1 when the place could not be made, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        return run(suite, packages.split(), targets.split(), network=network == "machine")
    except cache.BuildError as error:
        print(f"sidestep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sidestep: interrupted; nothing is left running", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
