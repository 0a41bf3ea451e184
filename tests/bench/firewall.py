"""What a web application firewall costs: CPU of the pod proxy, time of requests, memory, and many changes of policies.

Part of `make bench`; `python -m tests.bench.firewall` measures this alone. Requests come at a rate that an inspector
can follow: of faster ones it judges only some. The proxy and the inspector are measured apart: no client waits for the
inspector under Detect, and its priority is lower.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cpu import cpu_seconds
from tests.bench.extras import private_mib, rss
from tests.bench.figure import Figure
from tests.bench.load import Load, Place, h2load
from tests.harness import manifests
from tests.harness.inspection import FILE, wait_programmed
from tests.harness.manifests import Document
from tests.harness.namespaces import PodNamespace, pod_namespace
from tests.harness.node import Node, node
from tests.harness.peers import Client, Server, http_app
from tests.harness.processes import descendants
from tests.harness.scene import HOST, PLAIN_PORT, TLS_PORT, Shop
from tests.harness.waf import counted, inspector, waf_policy, waf_shop
from tests.harness.waiting import until

DETECTED, ADDED, MEANWHILE = 1.35, 4.0, 1.0
"""CPU of the proxy with a policy that detects, to none; milliseconds that one that enforces adds to a request, and to
the p99 of another connection."""
INSPECTOR, ZYGOTE, STORM = 5.0, 60.0, 20.0
"""MiB of each inspector, and of their zygote; per cent of a core of a daemon while policies change."""
LONG = 10.0
"""Seconds of a load whose p99 is compared."""
RATE = 100
"""Requests a second ..."""
CONNECTIONS = 4
"""... and the connections on which they come."""
PODS = 20
CHANGES = 200
STORM_SECONDS = 60.0


@dataclass
class Guarded:
    """The scene, and where load comes from; two loads at once come from two places."""

    scene: Shop
    place: Place
    other: Place

    def load(
        self,
        *,
        http1: bool,
        seconds: float = 4.0,
        place: Place | None = None,
        port: int = TLS_PORT,
        connections: int = CONNECTIONS,
    ) -> Load:
        """GETs at the rate. h2load gives all connections the same beat, so that theirs come at the same time."""
        scheme = "https" if port == TLS_PORT else "http"
        requests = int(seconds * RATE)
        url = f"{scheme}://{HOST}:{port}/orders?page=3"
        load = h2load(place or self.place, url, requests=requests, connections=connections, http1=http1, rate=RATE)
        assert load.failed == 0, f"{load.failed} requests failed"
        return load

    def cpu(self, pid: int, *, http1: bool) -> float:
        """CPU microseconds of a process for each request of a load."""
        before = cpu_seconds([pid])
        load = self.load(http1=http1)
        return (cpu_seconds([pid]) - before) / load.requests * 1e6

    @contextlib.contextmanager
    def policy(self, mode: str) -> Iterator[None]:
        """A policy with a firewall on the TLS port, once requests are judged."""
        scene = self.scene
        limits = {"limits": {"verdictTimeout": "2s"}}
        path = scene.node.write(FILE, waf_policy(mode, waf=limits, ports=[TLS_PORT]))
        wait_programmed(scene)
        before = counted(scene, "waf_verdicts")
        until(
            lambda: scene.get("/x").status == 200 and counted(scene, "waf_verdicts") > before,
            within=30, what=scene.conditions,
        )  # fmt: skip
        yield
        path.unlink()
        until(lambda: not (scene.node.status() or {}).get("policies"), within=10, what="the policy to go")


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[Guarded]:
    """The usual scene with nginx as the app, and an intercept that matches nothing, so that its ports are steered."""
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(waf_shop(folder))
        places = []
        for name in ("here", "there"):
            (folder / name).mkdir()
            hosts = folder / name / "hosts"
            hosts.write_text(f"{scene.space.ip} {HOST}\n")
            places.append(Place(scene.space.client, hosts))
        for port in (TLS_PORT, PLAIN_PORT):
            stack.enter_context(scene.intercept(port=port, plaintext=port == PLAIN_PORT))
        yield Guarded(scene, *places)


def detect(ring: Guarded, *, pairs: int) -> list[Figure]:
    """CPU per request with a policy that detects, each time to the mean of the runs around it."""
    found = []
    for http1, name in ((True, "h1 TLS"), (False, "h2 TLS")):
        ratios, own, judging = [], [], []
        proxy = ring.scene.proxy()
        ring.cpu(proxy, http1=http1)  # warm
        for _ in range(pairs):
            before = ring.cpu(proxy, http1=http1)
            with ring.policy("Detect"):
                pid = inspector(ring.scene)
                judged = cpu_seconds([pid])
                during = ring.cpu(proxy, http1=http1)
                judging.append((cpu_seconds([pid]) - judged) / (4 * RATE) * 1e6)
            after = ring.cpu(proxy, http1=http1)
            ratios.append(2 * during / (before + after))
            own.append(during - (before + after) / 2)
        found += [
            Figure(f"WAF Detect, CPU of the proxy, to none, {name}", statistics.median(ratios), "x", DETECTED),
            Figure(f"WAF Detect, CPU of the proxy, added, {name}", statistics.median(own), "us"),
            Figure(f"WAF Detect, CPU of the inspector, {name}", statistics.median(judging), "us"),
        ]
    return found


def enforce(ring: Guarded, *, pairs: int) -> list[Figure]:
    """What a policy that enforces adds to the time of a GET, and to that of one on another port meanwhile.

    An inspector judges one request after the other. So of four that come at the same time the median waits for two and
    a half judgements: that figure stands beside the one of requests that come alone.

    Each time to the mean of the runs around it. The p99 of a run is the tenth worst of a thousand requests: how much
    two runs without a policy differ in it is told, too, and how long the proxy waits for a processor, which is less
    chance.
    """
    added, ratios, together, others, noise, waits = [], [], [], [], [], []
    before = _both(ring)
    for _ in range(pairs):
        with ring.policy("Enforce"):
            during = _both(ring)
        after = _both(ring)
        plain = (before.alone.p50 + after.alone.p50) / 2
        added.append((during.alone.p50 - plain) * 1000)
        ratios.append(during.alone.p50 / plain)
        together.append((during.judged.p50 - (before.judged.p50 + after.judged.p50) / 2) * 1000)
        others.append((during.beside.p99 - (before.beside.p99 + after.beside.p99) / 2) * 1000)
        noise.append(abs(before.beside.p99 - after.beside.p99) * 1000)
        waits.append(during.waited - (before.waited + after.waited) / 2)
        before = after
    return [
        Figure("WAF Enforce, GET, added to p50", statistics.median(added), "ms", ADDED),
        Figure("WAF Enforce, GET, p50 to none", statistics.median(ratios), "x"),
        Figure(f"WAF Enforce, {CONNECTIONS} GETs at once, added to p50", statistics.median(together), "ms"),
        Figure("WAF Enforce, another connection, added to p99", statistics.median(others), "ms", MEANWHILE),
        Figure("p99 of two runs without a policy, difference", statistics.median(noise), "ms"),
        Figure("WAF Enforce, wait of the proxy for a processor, added to each request", statistics.median(waits), "us"),
    ]


@dataclass(frozen=True)
class Both:
    """Loads of the port with the policy: one request after the other, and several at the same time, while there is a
    load of a port without, too. `waited` are microseconds for which the proxy was ready and had no processor, for each
    request of these two."""

    alone: Load
    judged: Load
    beside: Load
    waited: float


def _both(ring: Guarded) -> Both:
    proxy = ring.scene.proxy()
    alone = ring.load(http1=True, seconds=LONG / 2, connections=1)
    begun = _waited(proxy)
    with ThreadPoolExecutor(2) as pool:
        judged = pool.submit(ring.load, http1=True, seconds=LONG)
        beside = pool.submit(ring.load, http1=True, seconds=LONG, place=ring.other, port=PLAIN_PORT)
        loads = judged.result(), beside.result()
    return Both(alone, *loads, (_waited(proxy) - begun) / sum(each.requests for each in loads) * 1e6)


def _waited(pid: int) -> float:
    """Seconds for which a process of one thread has waited for a processor (Documentation/scheduler/sched-stats)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def figures(folder: Path, *, pairs: int = 3) -> list[Figure]:
    """CPU and time."""
    with guarded(folder) as ring:
        return [*detect(ring, pairs=pairs), *enforce(ring, pairs=pairs)]


# --- many pods ------------------------------------------------------------------------------------------------------


def _policies(threshold: int) -> list[Document]:
    """One policy for each pod."""
    made = []
    for number in range(PODS):
        document = waf_policy("Enforce", name=f"web-{number}", waf={"anomalyThreshold": threshold})
        document["spec"]["podSelector"] = {"matchLabels": {"app": f"web-{number}"}}
        made.append(document)
    return made


def _programmed(daemon: Node) -> int:
    """How many policies are on their pods."""
    return sum(bool(each["programmed"]) for each in (daemon.status() or {}).get("policies", ()))


def _ask(space: PodNamespace, times: int) -> None:
    """Have requests of several kinds judged, so that the inspector holds what it holds in use."""
    document = b'{"items": [' + b", ".join([b'{"id": 1, "name": "shoes"}'] * 100) + b"]}"
    head = b"POST /orders HTTP/1.1\r\nHost: a\r\nUser-Agent: b\r\nAccept: */*\r\nContent-Type: application/json\r\n"
    with Client(space.ip, PLAIN_PORT, netns=space.client) as client:
        for _ in range(times):
            assert client.get("/orders?page=3", "User-Agent: b", "Accept: */*").status == 200
            client.request(head + b"Content-Length: %d\r\n\r\n%b" % (len(document), document), method="POST")


def _attack(space: PodNamespace) -> int:
    """The status that an attack gets."""
    with Client(space.ip, PLAIN_PORT, netns=space.client) as client:
        return client.get("/items?id=1%27%20OR%20%271%27=%271", "User-Agent: b", "Accept: */*").status


def pods(folder: Path, *, seconds: float = STORM_SECONDS) -> list[Figure]:
    """Memory of the inspectors of 20 pods, and the daemon's CPU while 200 policies change in a minute."""
    with contextlib.ExitStack() as stack:
        spaces = [stack.enter_context(pod_namespace(ipv6=False)) for _ in range(PODS)]
        daemon = stack.enter_context(node(folder, start=False))
        documents = []
        for number, space in enumerate(spaces):
            stack.enter_context(Server(http_app, netns=space.pod, address=space.ip, port=PLAIN_PORT, record=False))
            ports = [manifests.container_port(PLAIN_PORT, "http")]
            documents.append(manifests.pod(f"web-{number}", space, ports=ports, labels={"app": f"web-{number}"}))
        daemon.write("web.yaml", *documents)
        daemon.write(FILE, *_policies(5))
        daemon.start()
        until(lambda: _programmed(daemon) == PODS, within=60, what=lambda: f"all policies: {daemon.status()}")
        for space in spaces:
            _ask(space, 10)
            until(lambda space=space: _attack(space) == 403, within=20, what="an attack to be refused")
        zygote, inspectors = _inspectors(daemon)
        own = [private_mib(pid) for pid in inspectors]
        held = rss(zygote)
        storm, family = _storm(daemon, seconds)
        daemon.write(FILE, *_policies(1000))
        for space in spaces:
            until(lambda space=space: _attack(space) == 200, within=20, what="the last change to be in force")
        return [
            Figure(f"memory of an inspector's own, {PODS} pods", statistics.mean(own), "MiB", INSPECTOR),
            Figure(f"memory of an inspector's own, the largest of {PODS}", max(own), "MiB"),
            Figure("memory of the zygote of inspectors, RSS", held, "MiB", ZYGOTE),
            Figure(f"CPU of the daemon, {CHANGES} policies changed in a minute", storm, "%", STORM),
            Figure("CPU of everything of ours meanwhile", family, "%"),
        ]


def _inspectors(daemon: Node) -> tuple[int, list[int]]:
    """The zygote and its inspectors."""
    found = [pid for pid in descendants(daemon.pid) if b"sidestep.inspector.zygote" in _command(pid)]
    [zygote] = [pid for pid in found if daemon.pid in _parents(pid)]
    return zygote, [pid for pid in found if pid != zygote]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _parents(pid: int) -> list[int]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return [int(status["PPid"])]


def _storm(daemon: Node, seconds: float) -> tuple[float, float]:
    """Change one policy after the other; per cent of a core of the daemon, and of it with all its descendants."""
    family = [daemon.pid, *descendants(daemon.pid)]
    before, whole, began = cpu_seconds([daemon.pid]), cpu_seconds(family), time.monotonic()
    changes = int(CHANGES * seconds / STORM_SECONDS)
    documents = _policies(5)
    for number in range(changes):
        waf = documents[number % PODS]["spec"]["waf"]
        waf["anomalyThreshold"] = 5 + (number // PODS + 1) % 5
        daemon.write(FILE, *documents)
        time.sleep(max(0.0, began + (number + 1) * seconds / changes - time.monotonic()))
    took = time.monotonic() - began
    share = (cpu_seconds([daemon.pid]) - before) / took * 100
    return share, (cpu_seconds(family) - whole) / took * 100


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.firewall", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="pairs per figure")
    parser.add_argument("--only", default="", help="cost or pods")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parts = {"cost": lambda place: figures(place, pairs=options.pairs), "pods": pods}
    for name, run in parts.items():
        if options.only in name:
            with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
                for figure in run(Path(folder)):
                    print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
