"""A pod's network namespace and its client's, joined by a veth pair.

The pod end is called `eth0`, as in a real pod. Sockets of this very process are made inside a namespace by a thread
that enters it (setns(2) is per thread) and ends; processes enter by nsenter, which keeps their pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# Not `from pyroute2 import`, which runs the package's `__init__` and imports every protocol.
from pyroute2.iproute import IPRoute

from tests.harness.waiting import until

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
IFA_F_NODAD = 0x02
"""The IPv6 address may be used at once (no duplicate address detection)."""
IFF_LOWER_UP = 0x1_0000
NETNS_FOLDER = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def run(*command: str | Path, stdin: str | None = None, within: float = 20.0) -> str:
    """Run a system tool; its output, or CalledProcessError with what it said on stderr as a note."""
    done = subprocess.run(
        [str(word) for word in command], input=stdin, capture_output=True, text=True, timeout=within, check=False
    )
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr + f"\n{command}")
    return done.stdout


@dataclass(frozen=True)
class Netns:
    """A named network namespace."""

    name: str

    @property
    def path(self) -> Path:
        return NETNS_FOLDER / self.name

    @property
    def inode(self) -> int:
        return self.path.stat().st_ino

    def enter(self, command: Sequence[str | Path]) -> list[str]:
        """The argument vector that runs `command` inside; the pid stays that of the caller's child."""
        return ["nsenter", f"--net={self.path}", "--", *(str(word) for word in command)]

    def run(self, *command: str | Path, within: float = 20.0) -> str:
        """Run a system tool inside."""
        return run(*self.enter(command), within=within)

    def call(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread that is inside; sockets it makes stay there."""
        result: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                self._enter_this_thread()
                result.append(function())
            except BaseException as error:  # noqa: BLE001 - carried over to the calling thread, whatever it is
                failure.append(error)

        thread = threading.Thread(target=inside, name=f"in {self.name}")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def rtnetlink(self, function: Callable[[IPRoute], T]) -> T:
        """Call `function` with pyroute2's socket for links and addresses, made inside and closed afterwards."""

        def ask() -> T:
            with IPRoute() as route:
                return function(route)

        return self.call(ask)

    def devices(self) -> frozenset[str]:
        """The names of all links inside."""
        return self.rtnetlink(lambda route: frozenset(link.get("IFLA_IFNAME") for link in route.get_links()))

    def configure(self, device: str, addresses: Iterable[str]) -> None:
        """Give a device addresses (ADDRESS/LENGTH) and bring it and loopback up."""

        def steps(route: IPRoute) -> None:
            indices = {link.get("IFLA_IFNAME"): link["index"] for link in route.get_links()}
            for address in addresses:
                flags = IFA_F_NODAD if ":" in address else 0
                route.addr("add", index=indices[device], address=address, flags=flags)
            for index in {indices["lo"], indices[device]}:
                route.link("set", index=index, state="up")

        self.rtnetlink(steps)

    def has_carrier(self, device: str) -> bool:
        """Whether the device is up and so is what it is connected to."""
        (link,) = self.rtnetlink(lambda route: list(route.get_links(ifname=device)))
        return bool(link["flags"] & IFF_LOWER_UP)

    def _enter_this_thread(self) -> None:
        with open(self.path) as handle:
            if _libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(self.path))

    def processes(self) -> frozenset[int]:
        """The pids of all processes inside."""
        inode = self.inode
        found = set()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if (folder / "ns/net").stat().st_ino == inode:
                        found.add(int(folder.name))
        return frozenset(found)

    def exists(self) -> bool:
        return self.path.exists()


@dataclass(frozen=True)
class PodNamespace:
    """A pod's namespace (`pod`), its client's (`client`) and their addresses; `ip6` is None in a pod without IPv6."""

    pod: Netns
    client: Netns
    ip: str
    ip6: str | None
    client_ip: str
    client_ip6: str | None
    client_device: str

    @property
    def ips(self) -> list[str]:
        return [self.ip] if self.ip6 is None else [self.ip, self.ip6]

    def delete_pod(self) -> None:
        """Take the pod's namespace away, as a container runtime does when the pod ends."""
        run("ip", "netns", "del", self.pod.name)

    def peer_exists(self) -> bool:
        """Whether the client's end of the veth pair is still there; it goes when the pod's namespace is truly gone."""
        return self.client_device in self.client.devices()


@contextlib.contextmanager
def pod_namespace(*, ipv6: bool = True) -> Iterator[PodNamespace]:
    """Make a pod and a client namespace; both are gone when it ends, also when the pod's was deleted before."""
    number = next(_numbers)
    base = f"sdi-{os.getpid()}-{number}"
    subnet, device = number % 250, "veth0"
    space = PodNamespace(
        pod=Netns(f"{base}-pod"),
        client=Netns(f"{base}-client"),
        ip=f"10.99.{subnet}.2",
        ip6=f"fd99:{subnet:x}::2" if ipv6 else None,
        client_ip=f"10.99.{subnet}.1",
        client_ip6=f"fd99:{subnet:x}::1" if ipv6 else None,
        client_device=device,
    )
    with contextlib.ExitStack() as undo:
        for netns in (space.client, space.pod):
            run("ip", "netns", "add", netns.name)
            undo.callback(_delete, netns)
            if not ipv6:
                netns.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        with open(space.pod.path) as pod:
            peer = {"ifname": "eth0", "net_ns_fd": pod.fileno()}
            space.client.rtnetlink(lambda route: route.link("add", ifname=device, kind="veth", peer=peer))
        for netns, name, ip, ip6 in (
            (space.pod, "eth0", space.ip, space.ip6),
            (space.client, device, space.client_ip, space.client_ip6),
        ):
            netns.configure(name, [f"{ip}/24", *([f"{ip6}/64"] if ip6 is not None else [])])
        until(lambda: space.pod.has_carrier("eth0"), within=5, what="the veth pair to come up")
        yield space


def _delete(netns: Netns) -> None:
    if netns.exists():
        run("ip", "netns", "del", netns.name)
