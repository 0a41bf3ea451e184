"""A machine for kind, made of namespaces: Debian's kind and podman run inside, the nodes are podman's containers.

The box is a room (tests/debian/room.py) with mount, network, process, host name, IPC and cgroup namespaces of its own;
its root folder is an overlay on the tools', so that nothing of the machine and of the cache is written. When process 1
is killed the kernel ends every process of the box, the nodes' included, and with the last one all mounts, links and
rules go. What remains to be removed by name are one folder in each cgroup hierarchy and the data folder; names carry
our pid, and a later run sweeps what a killed one left.

    laptop (the box's network) 10.89.0.1 ──podman's bridge── nodes 10.89.0.x ──ptp── pods 10.244.x.0/24
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.debian import cache
from tests.debian.room import READY, Bind, Room
from tests.e2e import cgroups, machine
from tests.harness.namespaces import Netns, run
from tests.harness.processes import Process, children
from tests.harness.waiting import until
from tests.kind.parts import HERE, Parts

IN_MEMORY = 12 << 30
"""Bytes of memory that must be available for the nodes' images and containers (5 GiB) to lie there."""
STORAGE = "/var/lib/containers"

ENVIRONMENT = {
    "KIND_EXPERIMENTAL_PROVIDER": "podman",
    "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
    "KUBECONFIG": "/shared/kubeconfig",
    "PATH": "/programs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


class Box:
    """The running box. `shared` is a folder that is seen inside as /shared."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.folder = folder
        self.parts = parts
        self.shared = folder / "shared"
        self.logs = folder / "logs"
        self.name = f"sdk-{os.getpid()}"
        self._room = self._furnished()
        self.pid = 0
        """Process 1 of the box, as seen from outside."""
        self._held: int | None = None
        self._unshare: Process | None = None

    def start(self) -> None:
        """Make the namespaces and furnish them."""
        machine.sweep()
        for path in (self.shared, self.logs, self.folder / "containers"):
            path.mkdir(parents=True)
        # The first process begins in the folder itself, which so becomes what the box sees as the root.
        cgroups.make(self.name, delegated=False)
        self._held = cgroups.hold(self.name)
        self._unshare = Process(self._joined(self._room.stay()), log=self.logs / "box.log")
        first = self._unshare
        until(
            lambda: not first.running or READY in first.text().splitlines(),
            within=30,
            what=lambda: f"the box\n{first.text()}",
        )
        assert first.running, first.text()
        self.pid = children(first.pid)[0]
        cgroups.hand_down(self.name)
        self.run("bash", "-s", stdin=(HERE / "box.sh").read_text())

    def _furnished(self) -> Room:
        """The room: Debian's tools, what the nodes are made of, and the repository's script and configuration."""
        parts = self.parts
        binds = [
            Bind(parts.node.parent, "/parts", read_only=True),
            Bind(parts.product[0].parent, "/archives", read_only=True),
            Bind(parts.programs, "/programs", read_only=True),
            Bind(cache.REPOSITORY / "deploy" / "kind.sh", "/repository/deploy/kind.sh", read_only=True),
            Bind(HERE / "kind.yaml", "/repository/deploy/kind.yaml", read_only=True),
            Bind(self.shared, "/shared"),
        ]
        # kind shows its nodes the machine's modules; that there are none is enough.
        memory = ["/lib/modules"]
        if machine.available_memory() > IN_MEMORY:
            memory.append(STORAGE)
        else:
            binds.append(Bind(self.folder / "containers", STORAGE))
        return Room(
            parts.tools,
            binds=binds,
            memory=memory,
            files={"/etc/containers/containers.conf": (HERE / "containers.conf").read_text()},
            own=("net", "ipc", "uts", "cgroup"),
            hostname="kindbox",
            environment=ENVIRONMENT,
        )

    def _joined(self, command: Sequence[str | Path]) -> list[str]:
        """The argument vector that runs `command` in the box's cgroups."""
        join = "; ".join(f"echo $$ >{entrance}" for entrance in cgroups.entrances(self.name))
        return ["sh", "-ec", f'{join}; exec "$@"', "sh", *(str(word) for word in command)]

    def command(self, *words: str | Path) -> list[str]:
        """The argument vector that runs `words` in the box."""
        return self._joined(self._room.join(self.pid, *words))

    def run(self, *words: str | Path, within: float = 60.0, stdin: str | None = None) -> str:
        """Run a tool in the box; its output."""
        return run(*self.command(*words), within=within, stdin=stdin)

    def step(self, what: str, *words: str | Path, within: float) -> None:
        """Run something long in the box, with progress lines and, unlike what is built, at the usual priority."""
        cache.say(what)
        log = self.logs / "steps.log"
        begin = time.monotonic()
        with Process(self.command(*words), log=log) as process:
            while process.running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.popen.wait(cache.SIGN_OF_LIFE)
                    break
                spent = time.monotonic() - begin
                assert spent < within, f"{what}: not done after {spent:.0f} s\n{cache.tail(log)}"
                cache.say(f"  … {spent:.0f} s")
            assert process.wait(1) == 0, f"{what}\n{cache.tail(log)}"

    @property
    def laptop(self) -> Laptop:
        """The network of the box with the files of this machine."""
        return Laptop(self.name, self.pid)

    def stop(self) -> None:
        """End every process of the box at once and remove what bears its name."""
        if self._unshare is not None:
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(children(self._unshare.pid)[0], signal.SIGKILL)
            self._unshare.stop()
            self._unshare = None
        if self._held is not None:
            os.close(self._held)
            self._held = None
        cgroups.remove(self.name)
        machine.remove_tree(self.folder / "containers")


@dataclass(frozen=True)
class Laptop(Netns):
    """Where commands of developers run: in the box's network, so that nodes and pods are reached by address."""

    pid: int

    @property
    def path(self) -> Path:
        return Path(f"/proc/{self.pid}/ns/net")


@contextlib.contextmanager
def box(folder: Path, parts: Parts) -> Iterator[Box]:
    """A box that is gone afterwards, whatever happened."""
    made = Box(folder, parts)
    try:
        made.start()
        yield made
    finally:
        made.stop()
