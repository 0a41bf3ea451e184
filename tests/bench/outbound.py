"""What observing a pod's outbound connections costs: CPU of the pod proxy for each, and the time that it adds.

`python -m tests.bench.outbound` measures it; it is part of `make bench`. One server has two addresses. A policy means
one of them, so that connections to it are steered, judged by twelve rules, recorded and relayed; those to the other go
out directly, in turns with them in the same run. All processes share the machine: ratios say more than times.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cpu import cpu_seconds
from tests.bench.figure import Figure
from tests.bench.outbound_client import NAME
from tests.debian.cache import REPOSITORY
from tests.harness import cgroups
from tests.harness.inspection import policies, policy
from tests.harness.nginx import nginx
from tests.harness.scene import Shop, shop
from tests.harness.waiting import until

OBSERVED, DIRECT = "203.0.113.10", "203.0.113.11"
"""Of a documentation network (RFC 5737), in the client's namespace."""
TLS, PLAIN = 443, 80
CONNECTION = 150.0
"""Microseconds of CPU for each connection ..."""
REQUEST = 1.05
"""... and CPU of an HTTPS client's request and of the proxy together, to that of the client alone."""


@dataclass
class Sending:
    """A pod that sends, and its proxy."""

    scene: Shop
    group: Path
    proxy: int = 0

    def run(self, *command: str) -> str:
        """A command of the pod's; what it printed."""
        words = cgroups.inside(self.group, self.scene.space.pod.enter(list(command)))
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True, cwd=REPOSITORY)
        return done.stdout

    def made(self, kind: str, host: str, count: int) -> dict[str, float]:
        """What `outbound_client` says of so many connections, and the proxy's CPU for each."""
        before = cpu_seconds([self.proxy])
        port = str(PLAIN if kind == "clear" else TLS)
        told: dict[str, float] = json.loads(
            self.run(sys.executable, "-m", "tests.bench.outbound_client", kind, host, port, str(count))
        )
        time.sleep(0.3)  # records are sent 0.2 s after they were made, at most
        return {**told, "proxy": (cpu_seconds([self.proxy]) - before) / (count + 1)}

    def curl(self, host: str, count: int) -> dict[str, float]:
        """The same of so many runs of curl over HTTPS."""
        before = cpu_seconds([self.proxy])
        mine = resource.getrusage(resource.RUSAGE_CHILDREN)
        url, place = f"https://{NAME}/", f"{NAME}:{TLS}:{host}"
        line = (
            f'for n in $(seq {count}); do curl -sk -o /dev/null --noproxy "*" --resolve {place} {url} || exit 1; done'
        )
        self.run("sh", "-c", line)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        time.sleep(0.3)
        cpu = after.ru_utime + after.ru_stime - mine.ru_utime - mine.ru_stime
        return {"cpu": cpu / count, "proxy": (cpu_seconds([self.proxy]) - before) / count}


@contextlib.contextmanager
def sending(folder: Path) -> Iterator[Sending]:
    """The pod, its server, and the policy."""
    with (
        cgroups.cgroup() as group,
        shop(folder / "scene", annotations={"sidestep.dev/cgroup": str(group)}) as scene,
    ):
        space = scene.space
        for address in (OBSERVED, DIRECT):
            space.client.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
            space.pod.run("ip", "route", "add", f"{address}/32", "via", space.client_ip)
        rules = [
            {"name": f"never-{number}", "action": "Block", "match": {"serverNames": [f"never-{number}.test"]}}
            for number in range(12)
        ]
        egress = {"destinations": [{"name": "observed", "networks": [f"{OBSERVED}/32"]}], "rules": rules}
        written = policy(name="out", egress=egress)
        del written["spec"]["rules"]
        with (
            nginx(
                space.client,
                folder / "web",
                listen=[f"{each}:{TLS}" for each in (OBSERVED, DIRECT)],
                plain=[f"{each}:{PLAIN}" for each in (OBSERVED, DIRECT)],
                certificate=scene.authority.issue(NAME),
            ),
            policies(scene, written),
        ):
            yield Sending(scene, group, scene.node.proxy(space.pod))


def _figures(pod: Sending, *, pairs: int, count: int) -> list[Figure]:
    found = []
    for kind, name in (("clear", "HTTP in clear"), ("tls", "HTTPS")):
        turns = [(pod.made(kind, OBSERVED, count), pod.made(kind, DIRECT, count)) for _ in range(pairs)]
        cost = statistics.median(each["proxy"] for each, _ in turns) * 1e6
        found.append(Figure(f"observed connections, {name}: CPU of the proxy", cost, "us", CONNECTION))
        for what, budget in (("connect", 0.3), ("whole", None)):
            added = statistics.median(each[what] - direct[what] for each, direct in turns) * 1e3
            found.append(Figure(f"observed connections, {name}: {what}, p50 added", added, "ms", budget))
        ratio = statistics.median((each["cpu"] + each["proxy"]) / direct["cpu"] for each, direct in turns)
        found.append(Figure(f"observed connections, {name}: CPU to direct, bare client", ratio, "x"))
        alone = statistics.median(direct["cpu"] for _, direct in turns) * 1e6
        found.append(Figure(f"observed connections, {name}: CPU of a bare client", alone, "us"))
    turns = [(pod.curl(OBSERVED, count // 5), pod.curl(DIRECT, count // 5)) for _ in range(pairs)]
    ratio = statistics.median((each["cpu"] + each["proxy"]) / direct["cpu"] for each, direct in turns)
    found.append(Figure("observed requests of curl over HTTPS: CPU to direct", ratio, "x", REQUEST))
    share = statistics.median(1 + each["proxy"] / direct["cpu"] for each, direct in turns)
    found.append(Figure("observed requests of curl: CPU of curl and proxy to curl", share, "x", REQUEST))
    return found


def figures(folder: Path, *, pairs: int = 5, count: int = 200) -> list[Figure]:
    """Measure."""
    with sending(folder) as pod:
        seen = lambda: ((pod.scene.node.status() or {}).get("pods") or [{}])[0].get("outbound") or {}  # noqa: E731
        pod.made("tls", OBSERVED, 20)
        until(lambda: seen().get("counters", {}).get("outbound", 0) >= 21, within=20, what=lambda: str(seen()))
        return _figures(pod, pairs=pairs, count=count)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--count", type=int, default=200)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
        for figure in figures(Path(folder), pairs=wanted.pairs, count=wanted.count):
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
