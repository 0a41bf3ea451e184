"""Processes that inspect beside pod proxies, as root of the machine sees them, and what of them must be gone at last.

Everything is found by identity: the sockets, pipes and namespaces that an engine holds while it lives are those that
nobody may hold afterwards.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from tests.e2e import cgroups
from tests.e2e.cluster import Cluster
from tests.e2e.product import NAMESPACE, Product
from tests.harness.waiting import until

METRICS = 9464
LOG = "/var/log/sidestep/eve.json"
PATIENCE = 90.0
"""Seconds for what takes a start of Suricata in three pods, and a reading of ConfigMaps, which comes every 15 s."""
NAMESPACES = ("net", "mnt", "ipc", "uts", "pid", "user", "cgroup")
_OBJECT = re.compile(rf"(?:socket|pipe|{'|'.join(NAMESPACES)}):\[\d+\]")


def suricatas(product: Product) -> list[int]:
    """The Suricatas in the daemon's container."""
    return [pid for pid, command in _commands(product).items() if command.startswith(b"suricata\0")]


def inspectors(product: Product) -> list[int]:
    """The inspectors in the daemon's container, and the zygote that makes them."""
    return [pid for pid, command in _commands(product).items() if b"sidestep.inspector.zygote" in command]


def metrics(cluster: Cluster, product: Product, name: str, kind: str = "suricata") -> dict[str, float]:
    """The values of a metric of the daemon about engines of a kind, by pod."""
    text = cluster.curl(f"http://{product.daemon().ip}:{METRICS}/metrics").text
    lines = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
    found = {}
    for labels, value in lines:
        told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if told["engine"] == kind:
            found[told["pod"]] = float(value)
    return found


def records(product: Product) -> list[dict[str, Any]]:
    """The records in the node's log; the last line may be in the midst of being written."""
    words = ("exec", "-n", NAMESPACE, product.daemon().name, "--", "cat", LOG)
    text = product.cluster.kubectl_result(*words).stdout  # there is no log before the first record
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Traces:
    """What engines hold on the node: made while there are none, told of those that run, empty once they are gone."""

    def __init__(self, product: Product) -> None:
        self._product = product
        family = self._family()
        self._before = _open(family) | _namespaces(family) | self._mounts() | self._cgroups()
        self._open: set[str] = set()
        self._namespaces: set[str] = set()

    def note(self) -> None:
        """Keep in mind what the engines that run now hold, and nobody held before.

        Of namespaces only these, because the kernel gives the numbers of others to the next ones.
        """
        found = [*suricatas(self._product), *inspectors(self._product)]
        self._open |= _open(found) - self._before
        self._namespaces = _namespaces(found) - self._before

    def wait_gone(self) -> None:
        """Wait until no engine is left, nobody holds what they held, and there are no mounts and cgroups of theirs."""
        until(lambda: not self.left(), within=PATIENCE, every=0.5, what=lambda: f"nothing to be left: {self.left()}")

    def left(self) -> list[str]:
        """What is left of engines. Other programs of the machine may have namespaces of the same numbers by now."""
        family = self._family()
        engines = {f"process {pid}" for pid in (*suricatas(self._product), *inspectors(self._product))}
        everybody = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
        still = (self._open & _open(everybody)) | (self._namespaces & (_namespaces(family) | _open(family)))
        return sorted(engines | still | ((self._mounts() | self._cgroups()) - self._before))

    def _family(self) -> list[int]:
        return self._product.cluster.processes(self._product.daemon())

    def _mounts(self) -> set[str]:
        """The daemon's mounts of ours."""
        daemon = self._product.process(self._product.daemon())
        lines = Path(f"/proc/{daemon}/mounts").read_text().splitlines()
        return {f"mount {line}" for line in lines if line.startswith("sidestep ")}

    def _cgroups(self) -> set[str]:
        """The folders below the daemon's own, in every hierarchy."""
        lines = Path(f"/proc/{self._product.process(self._product.daemon())}/cgroup").read_text().splitlines()
        paths = {line.split(":", 2)[2].lstrip("/") for line in lines}
        homes = [root / path for root in cgroups.roots() for path in paths if path]
        return {f"cgroup {each}" for home in homes for each in home.rglob("*") if each.is_dir()}


def _open(pids: list[int]) -> set[str]:
    """Sockets, pipes and namespaces that processes have open."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            for each in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):  # it has just been closed
                    found.add(str(each.readlink()))
    return {each for each in found if _OBJECT.fullmatch(each)}


def _namespaces(pids: list[int]) -> set[str]:
    """The namespaces that processes are in."""
    found = set()
    for pid in pids:
        for kind in NAMESPACES:
            with contextlib.suppress(OSError):  # it has just ended
                found.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
    return found


def _commands(product: Product) -> dict[int, bytes]:
    found = {}
    for pid in product.cluster.processes(product.daemon()):
        with contextlib.suppress(OSError):  # it has just ended
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
    return found
