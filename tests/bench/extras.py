"""Figures that are no ratio of CPU: memory, time to the first diverted request, a hundred pods, latency at a rate."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.arena import HAPROXY_TLS, Arena, arena
from tests.bench.cpu import LOAD_CORE, cpu_seconds
from tests.harness import manifests
from tests.harness.cli import intercept
from tests.harness.curl import curl
from tests.harness.namespaces import Netns, run
from tests.harness.nginx import client_context
from tests.harness.node import node
from tests.harness.peers import Client, Server, http_app
from tests.harness.scene import DEV, HOST, PLAIN_PORT, TLS_PORT
from tests.harness.waiting import until


@dataclass(frozen=True)
class Figure:
    """One measured value beside its budget."""

    name: str
    value: float
    unit: str
    budget: float

    @property
    def ok(self) -> bool:
        return self.value <= self.budget

    def line(self) -> str:
        """The row of the text table."""
        return f"{self.name:44} {self.value:7.2f} {self.unit:8} budget {self.budget:g} {'ok' if self.ok else 'MISS'}"


def pss(pid: int) -> float:
    """Proportional set size of a process in MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no Pss for {pid}")


def rss(pid: int) -> float:
    """Resident set size of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no VmRSS for {pid}")


def latency(ring: Arena, *, requests: int) -> list[Figure]:
    """p50 and p99 at half of the saturation of the slower side, as ratios to haproxy."""

    def h1(port: int, count: int, *extra: str, log: Path | None = None) -> float:
        command = ["taskset", "-c", str(LOAD_CORE), "h2load", "--h1", "-t1", "-c16", "-m1", f"-n{count}", *extra]
        if log is not None:
            command.append(f"--log-file={log}")
        mount = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(ring.client.hosts)]
        words = ring.client.netns.enter([*mount, *command, f"https://{HOST}:{port}/orders"])
        begin = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        assert f"{count} succeeded" in done.stdout, done.stdout
        return time.monotonic() - begin

    ring.sidestep()
    slower = min(requests / h1(port, requests) for port in (TLS_PORT, HAPROXY_TLS))
    found: dict[int, tuple[list[float], list[float]]] = {TLS_PORT: ([], []), HAPROXY_TLS: ([], [])}
    for turn in range(6):
        for port in (TLS_PORT, HAPROXY_TLS) if turn % 2 else (HAPROXY_TLS, TLS_PORT):
            log = ring.scene.folder / "latency.log"
            log.unlink(missing_ok=True)
            h1(port, requests, f"--rps={max(1, int(slower / 2 / 16))}", log=log)
            times = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
            found[port][0].append(times[len(times) // 2])
            found[port][1].append(times[len(times) * 99 // 100])
    figures = []
    for index, name in enumerate(("p50", "p99")):
        ratios = [one / other for one, other in zip(found[TLS_PORT][index], found[HAPROXY_TLS][index], strict=True)]
        figures.append(Figure(f"latency {name} at half of saturation", statistics.median(ratios), "x", 1.2))
    return figures


def first_diverted(folder: Path) -> Figure:
    """Milliseconds from the request for an intercept, made by a running client, to the first diverted answer."""
    times = []
    with arena(folder) as ring:
        scene = ring.scene
        for _ in range(5):
            begin = time.monotonic()
            with scene.intercept("--http-header", "x-bench=1", port=PLAIN_PORT, plaintext=True):
                answer = curl(
                    scene.space.client,
                    f"http://{HOST}:{PLAIN_PORT}/",
                    address=scene.space.ip,
                    headers=["x-bench: 1"],
                )
                assert answer.served_by == "handler"
                times.append(time.monotonic() - begin)
    return Figure("intercept to first diverted (CLI start incl.)", statistics.median(times) * 1000, "ms", 1000)


def memory(ring: Arena) -> list[Figure]:
    """PSS of one of many proxies is what a pod costs; one alone is charged half of what it shares with the zygote."""
    pid = ring.sidestep()
    private = private_mib(pid)
    context = client_context(ring.scene.authority.pem)
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(
                Client(
                    ring.scene.space.ip,
                    TLS_PORT,
                    netns=ring.scene.space.client,
                    tls=context,
                    server_name=HOST,
                    record=False,
                )
            )
            assert client.get("/").status == 200
        loaded = private_mib(pid)
    return [
        Figure("memory per pod, private, after load", private, "MiB", 12),
        Figure("memory per pod, private, 100 TLS connections", loaded, "MiB", 12),
    ]


def private_mib(pid: int) -> float:
    """Memory that only this process has, in MiB."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1])
    return total / 1024


@contextlib.contextmanager
def many_pods(count: int) -> Iterator[list[tuple[str, str]]]:
    """Namespaces with an address each and nothing else; (name, address)."""
    made: list[tuple[str, str]] = []
    try:
        for number in range(count):
            name, address = f"sdb-{os.getpid()}-{number}", f"10.98.{number // 250}.{number % 250 + 1}"
            run("ip", "netns", "add", name)
            made.append((name, address))
            run("ip", "-n", name, "addr", "add", f"{address}/32", "dev", "lo")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for name, _ in made:
            run("ip", "netns", "del", name)


def hundred_pods(folder: Path, *, count: int = 100) -> list[Figure]:
    """All steered, memory of the daemon, PSS of a proxy, idle CPU."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        spaces = stack.enter_context(many_pods(count))
        daemon = stack.enter_context(node(folder, start=False))
        documents = [manifests.deployment("web", labels={"app": "web"})]
        for number, (name, address) in enumerate(spaces):
            stack.enter_context(Server(http_app, netns=Netns(name), address=address, port=8080, record=False))
            documents.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"web-{number}",
                        "namespace": "shop",
                        "labels": {"app": "web"},
                        "annotations": {"sidestep.dev/netns": f"/run/netns/{name}"},
                    },
                    "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
                    "status": {"phase": "Running", "podIP": address},
                }
            )
        daemon.write("web.yaml", *documents)
        daemon.start()
        begin = time.monotonic()
        filters = ["--http-header", DEV.replace(": ", "=")]
        with intercept(daemon, "web", "--port", "1:8080", *filters, "--plaintext", pods=None) as running:
            until(lambda: running.active() == count, within=60, what="all pods")
            took = time.monotonic() - begin
            status = daemon.status() or {}
            proxies = [pod["proxy_pid"] for pod in status["pods"]]
            time.sleep(3)
            before, since = cpu_seconds([daemon.pid]), time.monotonic()
            time.sleep(10)
            idle = (cpu_seconds([daemon.pid]) - before) / (time.monotonic() - since) * 100
            return [
                Figure(f"{count} pods steered", took, "s", 10),
                Figure(f"daemon RSS with {count} pods", rss(daemon.pid), "MiB", 100),
                Figure("memory per target pod, PSS, idle", statistics.median(map(pss, proxies)), "MiB", 6),
                Figure(f"daemon idle CPU with {count} pods", idle, "%", 1),
            ]
