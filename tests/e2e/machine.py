"""A machine made of namespaces: the cluster's node, and beside it a "laptop" that reaches the node by network alone.

The node has mount, process, host name, IPC and network namespaces of its own, like a node of kind, but made by
unshare(1). Its processes see no others, its mounts, addresses, bridges and files are nobody else's. Whatever happens,
the kernel cleans up: process 1 dies with this process, every process of the node with process 1, and with the last one
all mounts. What remains to be removed by name are two network namespaces, one folder in each cgroup hierarchy and the
data folder; names carry our pid, and a later run sweeps what a killed one left.

    laptop 198.18.0.2 ──veth── 198.18.0.1 node ──bridge── pods 10.202.0.0/24
                               10.201.0.1 the API server, as the cluster's `kubernetes` service
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.debian import cache
from tests.e2e import init
from tests.harness.namespaces import Netns, run
from tests.harness.processes import Process, alive, children
from tests.harness.waiting import until

NODE_NAME = "sidestep-node"
NODE_IP = "198.18.0.1"
LAPTOP_IP = "198.18.0.2"
SERVICE_IP = "10.201.0.1"
SERVICE_NETWORK = "10.201.0.0/24"
POD_NETWORK = "10.202.0.0/24"

CGROUPS = Path("/sys/fs/cgroup")
_NAMED = re.compile(r"sdk-(\d+)")
_SPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")


class Machine:
    """A running node. `folder` holds its data and logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.name = f"sdk-{os.getpid()}"
        self.network = Netns(f"{self.name}-node")
        self.laptop = Netns(f"{self.name}-laptop")
        self.cgroup = f"/{self.name}"
        self._init: Process | None = None
        self._programs: list[NodeProcess] = []

    def start(self) -> None:
        """Make the namespaces and furnish them."""
        sweep()
        self.logs.mkdir(parents=True)
        for netns in (self.network, self.laptop):
            run("ip", "netns", "add", netns.name)
            netns.run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "laptop", "netns", self.network.name, "type", "veth",
            "peer", "name", "eth0", "netns", self.laptop.name)  # fmt: skip
        for netns, device, ip in ((self.network, "laptop", NODE_IP), (self.laptop, "eth0", LAPTOP_IP)):
            netns.run("ip", "addr", "add", f"{ip}/24", "dev", device)
            netns.run("ip", "link", "set", device, "up")
        self.network.run("ip", "addr", "add", f"{SERVICE_IP}/32", "dev", "lo")
        self.network.run("ip", "route", "add", "default", "via", LAPTOP_IP)
        self.network.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.laptop.run("ip", "route", "add", "default", "via", NODE_IP)
        for folder in _cgroup_roots():
            _make_cgroup(folder / self.name)
        place = self.folder / "machine"
        place.mkdir()
        unshare = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        command = ["setpriv", "--pdeathsig=KILL", *unshare, sys.executable, "-m", "tests.e2e.init", place, NODE_NAME]
        self._init = Process(
            self.network.enter(command),
            log=self.logs / "init.log",
            environment={"PYTHONPATH": str(cache.REPOSITORY)},
        )
        first = self._init
        until(
            lambda: not first.running or init.READY in first.text().splitlines(),
            within=20,
            what=lambda: f"the node's first process\n{first.text()}",
        )
        assert first.running, first.text()

    @property
    def pid(self) -> int:
        """Process 1 of the node, as seen from outside."""
        assert self._init is not None
        return children(self._init.pid)[0]

    def enter(self, command: Sequence[str | Path]) -> list[str]:
        """The argument vector that runs `command` on the node."""
        return ["nsenter", f"--target={self.pid}", *_SPACES, "--", *(str(word) for word in command)]

    def run(self, *command: str | Path, within: float = 60.0) -> str:
        """Run a tool on the node; its output."""
        return run(*self.enter(command), within=within)

    def spawn(self, name: str, *command: str | Path) -> NodeProcess:
        """Start a long-lived program on the node; its log is `logs/NAME.log`."""
        program = NodeProcess(self.enter(command), log=self.logs / f"{name}.log")
        self._programs.append(program)
        return program

    def stop(self) -> None:
        """End every process of the node at once and remove what bears its name."""
        if self._init is not None:
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._init.stop()
            self._init = None
        for program in self._programs:
            program.popen.wait(10)
        _remove(self.name)
        _remove_tree(self.folder / "machine")


class NodeProcess(Process):
    """A program on the node. nsenter stays in front of it: signals go to the program itself."""

    def signal(self, number: signal.Signals) -> None:
        """Send to the program."""
        for pid in children(self.pid) if self.running else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A machine that is gone afterwards, whatever happened."""
    made = Machine(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def folder_of_our_own() -> Path:
    """A temporary folder that a later run sweeps if this one cannot."""
    return Path(tempfile.mkdtemp(prefix=f"sdk-{os.getpid()}-"))


def sweep() -> None:
    """Remove what runs left behind whose process was killed."""
    for path in Path(tempfile.gettempdir()).glob("sdk-*"):
        if (found := _NAMED.match(path.name)) and not alive(int(found[1])):
            _remove_tree(path)
    names = [path.name for path in Path("/run/netns").glob("sdk-*")]
    names += [path.name for root in _cgroup_roots() for path in root.glob("sdk-*")]
    for name in {found[0] for name in names if (found := _NAMED.match(name)) and not alive(int(found[1]))}:
        _remove(name)


def _remove(name: str) -> None:
    for netns in (Netns(f"{name}-node"), Netns(f"{name}-laptop")):
        if netns.exists():
            run("ip", "netns", "del", netns.name)
    for root in _cgroup_roots():
        _remove_cgroup(root / name)


def _cgroup_roots() -> list[Path]:
    """The root folder of every cgroup hierarchy: one in version 2, several in version 1 and hybrid setups."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    links = {path.resolve() for path in CGROUPS.iterdir() if path.is_dir()}
    return sorted(path for path in links if (path / "cgroup.procs").exists())


def _make_cgroup(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 lets nobody in before these are set
        if (folder / name).exists() and (folder.parent / "cgroup.procs").exists():
            value = (folder.parent / name).read_text() if (folder.parent / name).exists() else ""
            if value.strip():
                (folder / name).write_text(value)


def _remove_cgroup(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while folder.exists():
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _remove_tree(folder: Path) -> None:
    """Remove the data; the kernel takes a moment to undo the mounts of a namespace that ended."""
    deadline = time.monotonic() + 20
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
