"""Figures that are no ratio of CPU: throughput, latency at a rate, memory, times, a hundred pods."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from pathlib import Path

from sidestep.netns import Netns
from sidestep.steering import Steering, compile_program
from tests.bench.arena import DIRECT_TLS, HAPROXY_TLS, Arena, arena
from tests.bench.cpu import cpu_seconds
from tests.bench.crowd import many_pods, pod_document
from tests.bench.figure import Figure
from tests.bench.load import Load, h2load
from tests.bench.sessions import sessions, spec
from tests.harness import manifests, namespaces
from tests.harness.cli import intercept
from tests.harness.namespaces import pod_namespace
from tests.harness.nginx import client_context
from tests.harness.node import node
from tests.harness.peers import Client, Server, http_app
from tests.harness.scene import DEV, HOST, PLAIN_PORT, TLS_PORT, Shop, shop
from tests.harness.waiting import until


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


def _tls_load(ring: Arena, port: int, requests: int, *, rate: float | None = None) -> Load:
    """HTTP/1.1 over TLS on 16 connections."""
    url = f"https://{HOST}:{port}/orders"
    load = h2load(ring.client, url, requests=requests, connections=16, http1=True, rate=rate)
    assert load.failed == 0, f"{load.failed} requests failed on port {port}"
    return load


_SIDES = (TLS_PORT, HAPROXY_TLS, DIRECT_TLS)


def throughput(ring: Arena, *, requests: int, turns: int = 5) -> tuple[list[Figure], float]:
    """Requests per second as fast as they are answered; also half of what the slower proxy answers."""
    ring.sidestep()
    rates: dict[int, list[float]] = {port: [] for port in _SIDES}
    for turn in range(turns):
        for port in _SIDES if turn % 2 else reversed(_SIDES):
            rates[port].append(_tls_load(ring, port, requests).rate)
    ours, theirs, direct = (statistics.median(rates[port]) for port in _SIDES)
    pairs = zip(rates[TLS_PORT], rates[HAPROXY_TLS], strict=True)
    figures = [
        Figure("throughput, h1 TLS, Sidestep", ours, "1/s"),
        Figure("throughput, h1 TLS, haproxy", theirs, "1/s"),
        Figure("throughput, h1 TLS, no proxy", direct, "1/s"),
        Figure("throughput, h1 TLS, to haproxy's", statistics.median(one / other for one, other in pairs), "x"),
    ]
    return figures, min(ours, theirs) / 2


def latency(ring: Arena, *, rate: float, requests: int, turns: int = 6) -> list[Figure]:
    """p50 and p99 at a fixed rate: as ratios to haproxy, and as they are."""
    found: dict[int, list[Load]] = {port: [] for port in _SIDES}
    for turn in range(turns):
        for port in _SIDES if turn % 2 else reversed(_SIDES):
            found[port].append(_tls_load(ring, port, requests, rate=rate))
    figures = []
    for name in ("p50", "p99"):
        ours, theirs, direct = ([getattr(load, name) for load in found[port]] for port in _SIDES)
        ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
        figures.append(Figure(f"latency {name} at half of saturation, to haproxy's", ratio, "x", 1.2))
        for side, values in (("Sidestep", ours), ("haproxy", theirs), ("no proxy", direct)):
            figures.append(Figure(f"latency {name}, {side}", statistics.median(values) * 1000, "ms"))
    return figures


def first_diverted(folder: Path, *, turns: int = 5) -> Figure:
    """Milliseconds from the request for an intercept to the first diverted answer: pod known, nothing steered yet."""
    times = []
    with shop(folder, ipv6=False) as scene, contextlib.ExitStack() as stack:
        app = Server(http_app, netns=scene.space.pod, address=scene.space.ip, port=PLAIN_PORT, record=False)
        stack.enter_context(app)
        for turn in range(turns):
            wanted = [spec(PLAIN_PORT, f"turn-{turn}", "1")]
            begin = time.monotonic()
            with sessions(scene.node.socket, wanted, handler=scene.plain_handler.port, wait=False):
                until(
                    lambda turn=turn: _served_by(scene, f"x-turn-{turn}: 1") == "handler",
                    within=10,
                    what="the handler",
                    every=0.002,
                )
                times.append(time.monotonic() - begin)
            until(lambda: not scene.node.proxies(scene.space.pod), within=30, what="the proxy to go")
    return Figure("from intercept request to first diverted request", statistics.median(times) * 1000, "ms", 150)


def _served_by(scene: Shop, line: str) -> str:
    with Client(scene.space.ip, PLAIN_PORT, netns=scene.space.client, record=False) as client:
        return client.get("/", line).header("x-served-by")


def attaching(turns: int = 20) -> Figure:
    """Milliseconds to load the compiled program for a pod and attach it."""
    program = asyncio.run(compile_program())
    times = []
    with pod_namespace() as space, Netns.open(str(space.pod.path)) as netns:
        for _ in range(turns):
            begin = time.perf_counter()
            steering = Steering.attach(program, netns.fd)
            times.append(time.perf_counter() - begin)
            steering.close()
    return Figure("attaching to a pod", statistics.median(times) * 1000, "ms", 5)


def memory(folder: Path) -> float:
    """MiB by which 100 TLS connections, each of which has been used, make a fresh proxy grow."""
    with arena(folder) as ring, contextlib.ExitStack() as stack:
        pid = ring.sidestep()
        idle = pss(pid)
        context = client_context(ring.scene.authority.pem)
        space = ring.scene.space
        for _ in range(100):
            client = Client(space.ip, TLS_PORT, netns=space.client, tls=context, server_name=HOST, record=False)
            assert stack.enter_context(client).get("/").status == 200
        return pss(pid) - idle


def private_mib(pid: int) -> float:
    """Memory that only this process has, in MiB."""
    total = 0
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total += int(line.split()[1])
    return total / 1024


def hundred_pods(folder: Path, *, count: int = 100) -> list[Figure]:
    """All steered, memory of the daemon, PSS of a proxy (what a pod costs among many), idle CPU."""
    connections = memory(folder / "connections")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        spaces = stack.enter_context(many_pods(count))
        daemon = stack.enter_context(node(folder, start=False))
        documents = [manifests.deployment("web", labels={"app": "web"})]
        for number, (name, address) in enumerate(spaces):
            stack.enter_context(
                Server(http_app, netns=namespaces.Netns(name), address=address, port=8080, record=False)
            )
            document = pod_document(f"web-{number}", name, address)
            document["metadata"]["labels"] = {"app": "web"}
            documents.append(document)
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
            each = statistics.median(map(pss, proxies))
            return [
                Figure(f"{count} pods steered", took, "s", 10),
                Figure(f"daemon RSS with {count} pods", rss(daemon.pid), "MiB", 85),
                Figure("memory per target pod, PSS, idle", each, "MiB", 6),
                Figure("memory per target pod, PSS, 100 TLS connections", each + connections, "MiB", 12),
                Figure(f"daemon idle CPU with {count} pods", idle, "%", 1),
            ]
