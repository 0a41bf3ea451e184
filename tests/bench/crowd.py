"""A crowd: as many pods as sessions, each session with a pod of its own, and a daemon that is restarted under them.

`python -m tests.bench.crowd --count 200` prints how long and how much CPU it takes until all are active, what the first
and the last activations cost, and how long all take to come back after SIGKILL and after SIGTERM, with `--load` beside
a process per core that does nothing but compute.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sidestep.tunnel.messages import HeaderSpec, SessionSpec
from tests.bench.cpu import CORES, cpu_seconds
from tests.bench.figure import Figure
from tests.bench.sessions import Held, held
from tests.harness import manifests, namespaces
from tests.harness.namespaces import run
from tests.harness.node import Node, node
from tests.harness.processes import descendants
from tests.harness.waiting import until

PORT = 8080
STEP = 25
"""Sessions that are started together when the cost of activations is compared."""
PATIENCE = 180.0
"""Seconds until the measurement is given up."""


@contextlib.contextmanager
def many_pods(count: int) -> Iterator[list[tuple[str, str]]]:
    """Namespaces with an address each and nothing else; (name, address)."""
    made: list[tuple[str, str]] = []
    try:
        for number in range(count):
            name, address = f"sdb-{os.getpid()}-{number}", f"10.98.{number // 250}.{number % 250 + 1}"
            run("ip", "netns", "add", name)
            made.append((name, address))
            namespaces.Netns(name).configure("lo", [f"{address}/32"])
        yield made
    finally:
        for name, _ in made:
            run("ip", "netns", "del", name)


def pod_document(name: str, netns: str, address: str) -> manifests.Document:
    """A pod of namespace `shop` with one port."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {"app": name},
            "annotations": {"sidestep.dev/netns": f"/run/netns/{netns}"},
        },
        "spec": {"containers": [{"name": "app", "ports": [{"containerPort": PORT}]}]},
        "status": {"phase": "Running", "podIP": address},
    }


class Crowd:
    """Pods with a listening socket each, a daemon, and as many sessions as were asked for so far."""

    def __init__(self, daemon: Node, count: int, sessions: Held) -> None:
        self.daemon = daemon
        self.count = count
        self.sessions = sessions

    def activate(self, first: int, last: int) -> tuple[float, float]:
        """Start the sessions of these pods; (seconds until all are active, CPU seconds of daemon and proxies)."""
        begin, before = time.monotonic(), self.cpu()
        self.sessions.add([_spec(number) for number in range(first, last)])
        self._until_active(last)
        return time.monotonic() - begin, self.cpu() - before

    def restart(self, *, kill: bool) -> tuple[float, float]:
        """End the daemon and start another; (seconds until all sessions are active again, CPU seconds of its tree)."""
        begin = time.monotonic()
        if kill:
            self.daemon.kill()
        else:
            self.daemon.stop()
        self.sessions.forget()
        self.daemon.start()
        self._until_active(self.count)
        return time.monotonic() - begin, self.cpu()

    def cpu(self) -> float:
        """CPU seconds of the daemon and its living descendants so far."""
        return cpu_seconds([self.daemon.pid, *descendants(self.daemon.pid)])

    def longest_stall(self) -> float:
        """Seconds of the longest turn of the daemon's event loop so far."""
        status = self.daemon.status()
        assert status is not None
        return float(status["node"]["loop"]["longest"])

    def _until_active(self, count: int) -> None:
        until(
            lambda: self.sessions.active() >= count,
            within=PATIENCE,
            what=lambda: f"{count} sessions, {self.sessions.active()} are active\n{self.daemon.log()[-3000:]}",
            every=0.05,
        )


def _spec(number: int) -> SessionSpec:
    header = HeaderSpec("x-dev", "exact", f"dev-{number}")
    return SessionSpec(
        namespace="shop", workload=f"pod/web-{number}", port=str(PORT), headers=(header,), plaintext=True
    )


@contextlib.contextmanager
def crowd(folder: Path, count: int) -> Iterator[Crowd]:
    """Pods and a daemon; no session yet."""
    with contextlib.ExitStack() as stack:
        spaces = stack.enter_context(many_pods(count))
        daemon = stack.enter_context(node(folder, start=False))
        for name, address in spaces:
            stack.enter_context(_listener(name, address))
        documents = [pod_document(f"web-{number}", *space) for number, space in enumerate(spaces)]
        daemon.write("web.yaml", *documents)
        daemon.start()
        yield Crowd(daemon, count, stack.enter_context(held(daemon.socket, handler=9)))


def _listener(netns: str, address: str) -> socket.socket:
    return namespaces.Netns(netns).call(lambda: socket.create_server((address, PORT)))


@contextlib.contextmanager
def computing(processes: int = CORES) -> Iterator[None]:
    """So many processes that only compute."""
    loads = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for load in loads:
            load.kill()
            load.wait()


def activations(scene: Crowd) -> list[Figure]:
    """Start all sessions, `STEP` at a time; what the last cost, to what the first cost."""
    begin = time.monotonic()
    costs = [scene.activate(first, min(first + STEP, scene.count)) for first in range(0, scene.count, STEP)]
    took = time.monotonic() - begin
    first, last = costs[0][1] / STEP * 1000, costs[-1][1] / (scene.count - (len(costs) - 1) * STEP) * 1000
    return [
        Figure(f"{scene.count} sessions active", took, "s", 15),
        Figure(f"CPU of each of the first {STEP} activations", first, "ms"),
        Figure(f"CPU of each of the last {STEP} activations", last, "ms"),
        Figure("CPU of the last activations, to the first", last / first, "x", 1.5),
        Figure("longest stall of the daemon meanwhile", scene.longest_stall() * 1000, "ms", 100),
    ]


def restarts(scene: Crowd, *, loaded: bool = True) -> list[Figure]:
    """How long until all sessions are active again."""
    found = []

    def measure(name: str, budget: float | None, action: Callable[[], tuple[float, float]]) -> None:
        took, cpu = action()
        found.append(Figure(f"{scene.count} sessions back after {name}", took, "s", budget))
        found.append(Figure(f"CPU of daemon and proxies since {name}", cpu, "s"))
        found.append(Figure(f"longest stall of the daemon since {name}", scene.longest_stall() * 1000, "ms"))

    measure("SIGKILL", 20, lambda: scene.restart(kill=True))
    measure("SIGTERM", 20, lambda: scene.restart(kill=False))
    if loaded:
        with computing():
            measure("SIGKILL, beside load", None, lambda: scene.restart(kill=True))
    return found


def figures(folder: Path, *, count: int = 200) -> list[Figure]:
    """Activations and restarts."""
    with crowd(folder, count) as scene:
        return [*activations(scene), *restarts(scene)]


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.crowd", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="pods and sessions (default 200)")
    parser.add_argument("--load", action="store_true", help="measure a restart beside CPU load as well")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces and eBPF programs need root")
    with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder, crowd(Path(folder), options.count) as scene:
        for figure in activations(scene):
            print(figure.line(), flush=True)
        for figure in restarts(scene, loaded=options.load):
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
