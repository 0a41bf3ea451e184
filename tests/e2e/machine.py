"""A machine made of namespaces: the cluster's node, and beside it a "laptop" that reaches the node by network alone.

The node is a room (`tests.debian.room`): a Debian root with mount, process, host name and IPC namespaces of its own, in
a network namespace of its own, like a node of kind. Its processes see no others, its programs, mounts, addresses,
bridges and files are nobody else's, and the machine's distribution plays no part. Whatever happens, the kernel cleans
up: process 1 dies with this process, every process of the node with process 1, and with the last one all mounts. What
remains to be removed by name are two network namespaces, one folder in each cgroup hierarchy and the data folder; names
carry our pid, and a later run sweeps what a killed one left.

The kubelet wants to set a few kernel parameters that belong to the whole machine. It finds them set already: files with
the values it wants cover them, on the node only.

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
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.debian import room
from tests.debian.room import Bind, Room
from tests.e2e import cgroups
from tests.harness.namespaces import Netns, run
from tests.harness.processes import Process, alive, children
from tests.harness.waiting import until

NODE_NAME = "sidestep-node"
NODE_IP = "198.18.0.1"
LAPTOP_IP = "198.18.0.2"
SERVICE_IP = "10.201.0.1"
SERVICE_NETWORK = "10.201.0.0/24"
POD_NETWORK = "10.202.0.0/24"

TUNABLES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet (pkg/kubelet/cm, setupKernelTunables) wants under /proc/sys."""

IN_MEMORY = 8 << 30
"""Bytes of memory that must be available for images and containers (2 GiB) to lie there instead of on the disk, where
removing them takes half a minute."""

_NAMED = re.compile(r"sdk-(\d+)")


class Machine:
    """A running node. `folder` holds its data and logs, `root` is what it runs; it sees the folders `shown` as well."""

    def __init__(
        self, folder: Path, root: Path, *, shown: Sequence[Path] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self._place = folder / "machine"
        self._binds = [Bind(path, str(path)) for path in shown]
        self._room = Room(
            root,
            binds=self._binds,
            own=("uts", "ipc"),
            hostname=NODE_NAME,
            files={"/etc/hosts": f"127.0.0.1 localhost {NODE_NAME}\n"},
            memory=["/var/lib"] if available_memory() > IN_MEMORY else [],
            # Nothing on the node reaches the machine's proxies.
            environment={"no_proxy": "*", "NO_PROXY": "*", **(environment or {})},
        )
        self.logs = folder / "logs"
        self.name = f"sdk-{os.getpid()}"
        self.network = Netns(f"{self.name}-node")
        self.laptop = Netns(f"{self.name}-laptop")
        self.cgroup = f"/{self.name}"
        self._held: int | None = None
        self._init: Process | None = None
        self.programs: list[NodeProcess] = []
        """What `spawn` has started."""

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
        cgroups.make(self.name)
        self._held = cgroups.hold(self.name)
        self._furnish()
        self._init = Process(self.network.enter(self._room.stay()), log=self.logs / "init.log")
        first = self._init
        until(
            lambda: not first.running or room.READY in first.text().splitlines(),
            within=20,
            what=lambda: f"the node's first process\n{first.text()}",
        )
        assert first.running, first.text()

    def _furnish(self) -> None:
        """Make the files and folders that cover what a root has in their place."""
        self._place.mkdir()
        for name in ("log", "lib"):
            (self._place / name).mkdir()
        self._binds.append(Bind(self._place / "log", "/var/log"))
        if not self._room.memory:
            self._binds.append(Bind(self._place / "lib", "/var/lib"))
        for number, (tunable, value) in enumerate(TUNABLES.items()):
            cover = self._place / f"tunable-{number}"
            cover.write_text(f"{value}\n")
            if (Path("/proc/sys") / tunable).exists():
                self._binds.append(Bind(cover, f"/proc/sys/{tunable}"))

    @property
    def pid(self) -> int:
        """Process 1 of the node, as seen from outside."""
        assert self._init is not None
        return children(self._init.pid)[0]

    def enter(self, command: Sequence[str | Path]) -> list[str]:
        """The argument vector that runs `command` on the node."""
        return self.network.enter(self._room.join(self.pid, *command))

    def run(self, *command: str | Path, within: float = 60.0) -> str:
        """Run a tool on the node; its output."""
        return run(*self.enter(command), within=within)

    def spawn(self, name: str, *command: str | Path) -> NodeProcess:
        """Start a long-lived program on the node; its log is `logs/NAME.log`."""
        program = NodeProcess(self.enter(command), log=self.logs / f"{name}.log")
        self.programs.append(program)
        return program

    def stop(self) -> None:
        """End every process of the node at once and remove what bears its name."""
        if self._init is not None:
            with contextlib.suppress(IndexError, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._init.stop()
            self._init = None
        for program in self.programs:
            program.popen.wait(10)
        if self._held is not None:
            os.close(self._held)
            self._held = None
        _remove(self.name)
        remove_tree(self._place)


class NodeProcess(Process):
    """A program on the node. nsenter stays in front of it: signals go to the program itself."""

    def signal(self, number: signal.Signals) -> None:
        """Send to the program."""
        for pid in children(self.pid) if self.running else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def machine(
    folder: Path, root: Path, *, shown: Sequence[Path] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Machine]:
    """A machine that is gone afterwards, whatever happened."""
    made = Machine(folder, root, shown=shown, environment=environment)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def folder_of_our_own() -> Path:
    """A temporary folder that a later run sweeps if this one cannot."""
    return Path(tempfile.mkdtemp(prefix=f"sdk-{os.getpid()}-"))


def sweep() -> None:
    """Remove what runs left behind whose process was killed.

    The cgroups are the machine's, and a run in a room (`make debian13 TARGET=e2e`) has one of the room's numbers there.
    """
    for path in Path(tempfile.gettempdir()).glob("sdk-*"):
        if (found := _NAMED.match(path.name)) and not alive(int(found[1])):
            remove_tree(path)
    names = [path.name for path in Path("/run/netns").glob("sdk-*")]
    names += [path.name for root in cgroups.roots() for path in root.glob("sdk-*")]
    for name in {found[0] for name in names if (found := _NAMED.match(name)) and not alive(int(found[1]))}:
        if not cgroups.is_held(name):
            _remove(name)


def _remove(name: str) -> None:
    for netns in (Netns(f"{name}-node"), Netns(f"{name}-laptop")):
        if netns.exists():
            run("ip", "netns", "del", netns.name)
    cgroups.remove(name)


def available_memory() -> int:
    """Bytes that can be had without swapping (proc(5), MemAvailable)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def remove_tree(folder: Path) -> None:
    """Remove the data; the kernel takes a moment to undo the mounts of a namespace that ended."""
    deadline = time.monotonic() + 20
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
