"""What the kernel holds for a namespace, seen by tools that know nothing of Sidestep: bpftool, ss, nft, /proc."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.namespaces import Netns, run
from tests.harness.waiting import until

BPF_FOLDER = Path("/sys/fs/bpf")


@dataclass(frozen=True)
class Programs:
    """eBPF objects that hang on a namespace."""

    links: frozenset[int]
    programs: frozenset[int]
    maps: frozenset[int]

    def left(self) -> list[str]:
        """Which of these objects still exist."""
        return [
            f"{kind} {number}"
            for kind, numbers in (("link", self.links), ("prog", self.programs), ("map", self.maps))
            for number in numbers
            if _exists(kind, number)
        ]


def objects(kind: str) -> list[dict[str, Any]]:
    """What bpftool lists: every "link", "prog" or "map". It gives up when one of them goes in the meantime."""

    def listed() -> str | None:
        done = subprocess.run(["bpftool", "-j", kind, "show"], capture_output=True, text=True, check=False)
        return (done.stdout or "[]") if done.returncode == 0 else None

    return json.loads(until(listed, within=10, what=f"bpftool to list every {kind}"))  # type: ignore[no-any-return]


def programs(inode: int) -> Programs:
    """The links on the namespace with this inode, their programs and maps."""
    links, programs_, maps = set(), set(), set()
    for link in objects("link"):
        if link.get("netns_ino") == inode:
            links.add(link["id"])
            programs_.add(link["prog_id"])
    for number in programs_:
        maps |= _maps(number)
    return Programs(frozenset(links), frozenset(programs_), frozenset(maps))


def _maps(program: int) -> set[int]:
    with contextlib.suppress(subprocess.CalledProcessError):
        return set(json.loads(run("bpftool", "prog", "show", "id", str(program), "-j")).get("map_ids", []))
    return set()


def on_cgroup(folder: Path) -> Programs:
    """The eBPF objects that hang on a cgroup now."""
    inode = folder.stat().st_ino
    found = [link for link in objects("link") if link.get("cgroup_id") == inode]
    return Programs(
        frozenset(link["id"] for link in found),
        frozenset(link["prog_id"] for link in found),
        frozenset(each for link in found for each in _maps(link["prog_id"])),
    )


def steering(netns: Netns) -> Programs:
    """The eBPF objects that hang on a namespace now."""
    return programs(netns.inode)


def _exists(kind: str, number: int) -> bool:
    return (
        subprocess.run(["bpftool", kind, "show", "id", str(number)], capture_output=True, check=False).returncode == 0
    )


def listeners(netns: Netns) -> frozenset[str]:
    """The listening TCP and bound UDP sockets of a namespace, one text per socket: protocol, address, port."""
    lines = netns.run("ss", "-Hlntu").splitlines()
    return frozenset(" ".join([line.split()[0], line.split()[4]]) for line in lines)


def pins() -> frozenset[Path]:
    """Everything under /sys/fs/bpf."""
    return frozenset(BPF_FOLDER.rglob("*")) if BPF_FOLDER.is_dir() else frozenset()


def rules(netns: Netns | None = None) -> str:
    """The firewall rules of a namespace, or of this one: nftables, and iptables where it is installed."""
    commands = [["nft", "list", "ruleset"]]
    if shutil.which("iptables-save"):
        commands.append(["iptables-save"])
    texts = [netns.run(*command) if netns else run(*command) for command in commands]
    return "".join(line for text in texts for line in text.splitlines(keepends=True) if not line.startswith("#"))


def devices(netns: Netns | None = None) -> frozenset[str]:
    """The network devices of a namespace, or of this one."""
    if netns is not None:
        return netns.devices()
    return frozenset(name for _, name in socket.if_nameindex())


def files_with(secret: bytes, folders: tuple[Path, ...], *, since: float, but: tuple[Path, ...] = ()) -> list[Path]:
    """Files below `folders` (not below `but`) that contain `secret`, on real file systems as on tmpfs.

    Of those written `since` then (seconds since the epoch): the secret is not older. What others remove meanwhile is
    passed over.
    """
    found = []
    for folder in folders:
        for place, below, names in os.walk(folder):
            below[:] = [name for name in below if Path(place, name) not in but]
            for path in (Path(place, name) for name in names):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    small = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 22
                    if small and status.st_ctime >= since and secret in path.read_bytes():
                        found.append(path)
    return found


def memory_contains(pid: int, secrets: tuple[bytes, ...]) -> bool:
    """Whether any writable memory of a process contains one of the byte strings (needs root)."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, flags = line.split()[:2]
        if not flags.startswith("rw") or line.endswith(("[vvar]", "[vsyscall]")):
            continue
        start, end = (int(word, 16) for word in span.split("-"))
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(start)
            content = memory.read(end - start)
            if any(secret in content for secret in secrets):
                return True
    return False


def descriptors(pid: int) -> frozenset[str]:
    """What the descriptors of a process are, as readlink(2) tells."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(path.readlink()))
    return frozenset(found)
