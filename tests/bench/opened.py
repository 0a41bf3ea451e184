"""What opening a pod's outbound connections costs: CPU of the pod proxy for each, and memory of those that are open.

`python -m tests.bench.opened` measures it. One server has an address for each mode; connections to them are made in
turns in one run, each with one request, judged by twelve rules about requests. All processes share the machine: ratios
say more than times.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sidestep.node.resident_memory import resident_bytes
from tests.bench.figure import Figure
from tests.bench.outbound import PLAIN, TLS, Sending
from tests.bench.outbound_client import NAME
from tests.harness import cgroups, manifests
from tests.harness.authority import Authority
from tests.harness.inspection import policies, policy
from tests.harness.nginx import nginx
from tests.harness.processes import Process
from tests.harness.scene import shop
from tests.harness.waiting import until

HOSTS = {"Observe": "203.0.113.10", "Originate": "203.0.113.12", "Decrypt": "203.0.113.13"}
"""Of a documentation network (RFC 5737), in the client's namespace, by mode."""
WAYS = {
    "clear, read": ("clear", "Observe"),
    "clear, Originate": ("clear", "Originate"),
    "HTTPS, Observe": ("tls", "Observe"),
    "HTTPS, Decrypt": ("tls", "Decrypt"),
}
"""Each to the one of its protocol that stays as it came."""
FIRST = {"clear": "clear, read", "tls": "HTTPS, Observe"}


def _secrets(issuer: Authority, roots: Authority) -> list[manifests.Document]:
    key, begin, certificate = issuer.pair.partition(b"-----BEGIN CERTIFICATE")
    texts = {"egress-ca": {"tls.crt": begin + certificate, "tls.key": key}, "roots": {"ca.crt": roots.pem}}
    return [
        manifests.secret(name, {field: base64.b64encode(text).decode() for field, text in data.items()})
        for name, data in texts.items()
    ]


@contextlib.contextmanager
def sending(folder: Path) -> Iterator[Sending]:
    """The pod, its server, and the policy."""
    issuer, roots = Authority("Egress"), Authority("Roots")
    with (
        cgroups.cgroup() as group,
        shop(folder / "scene", annotations={"sidestep.dev/cgroup": str(group)}) as scene,
    ):
        space = scene.space
        for address in HOSTS.values():
            space.client.run("ip", "addr", "add", f"{address}/32", "dev", "lo")
            space.pod.run("ip", "route", "add", f"{address}/32", "via", space.client_ip)
        rules = [
            {
                "name": f"never-{at}",
                "action": "Block",
                "match": {"paths": [{"match": "Prefix", "value": f"/never-{at}"}]},
            }
            for at in range(12)
        ]
        egress = {
            "destinations": [
                {"name": mode.lower(), "mode": mode, "networks": [f"{host}/32"]} for mode, host in HOSTS.items()
            ],
            "rules": rules,
            "issuer": {"secretRef": {"name": "egress-ca"}},
            "trust": {"secretRef": {"name": "roots"}},
        }
        scene.node.write("secrets.yaml", *_secrets(issuer, roots))
        written = policy(name="out", egress=egress)
        del written["spec"]["rules"]
        with (
            nginx(
                space.client,
                folder / "web",
                listen=[f"{each}:{TLS}" for each in HOSTS.values()],
                plain=[f"{each}:{PLAIN}" for each in HOSTS.values()],
                certificate=roots.issue(NAME),
            ),
            policies(scene, written),
        ):
            yield Sending(scene, group, scene.node.proxy(space.pod))


def _counters(pod: Sending) -> dict[str, int]:
    shown = ((pod.scene.node.status() or {}).get("pods") or [{}])[0].get("outbound") or {}
    found: dict[str, int] = shown.get("counters", {})
    return found


def _held(pod: Sending, folder: Path, way: str, count: int) -> float:
    """KiB that each of so many connections adds to the proxy, once all are open and have had an answer."""
    kind, mode = WAYS[way]
    port = str(PLAIN if kind == "clear" else TLS)
    words = [sys.executable, "-m", "tests.bench.outbound_client", f"hold-{kind}", HOSTS[mode], port, str(count)]
    before = resident_bytes(pod.proxy)
    log = folder / f"{kind}-{mode}.log"
    with Process(cgroups.inside(pod.group, pod.scene.space.pod.enter(words)), log=log) as process:
        until(lambda: "held" in process.text(), within=120, what=process.text)
        added = resident_bytes(pod.proxy) - before
    return added / count / 1024


def figures(folder: Path, *, pairs: int = 3, count: int = 100, held: int = 500) -> list[Figure]:
    """Measure."""
    found = []
    with sending(folder) as pod:
        for way, (kind, mode) in WAYS.items():
            pod.made(kind, HOSTS[mode], 20)
            sys.stderr.write(f"{way}: {os.getloadavg()[0]:.0f}\n")
        until(lambda: _counters(pod).get("outbound_opened", 0) >= 42, within=60, what=lambda: str(_counters(pod)))
        turns = [{way: pod.made(kind, HOSTS[mode], count) for way, (kind, mode) in WAYS.items()} for _ in range(pairs)]
        for way, (kind, _) in WAYS.items():
            cost = statistics.median(each[way]["proxy"] for each in turns) * 1e6
            found.append(Figure(f"{way}: CPU of the proxy for a connection", cost, "us"))
            ratio = statistics.median(each[way]["proxy"] / each[FIRST[kind]]["proxy"] for each in turns)
            found.append(Figure(f"{way}: to one that stays as it came", ratio, "x"))
            whole = statistics.median(each[way]["whole"] - each[FIRST[kind]]["whole"] for each in turns) * 1e3
            found.append(Figure(f"{way}: whole exchange, p50 added to that", whole, "ms"))
        found += [Figure(f"{way}: memory of an open one", _held(pod, folder, way, held), "KiB") for way in WAYS]
    return found


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--count", type=int, default=100)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
        for figure in figures(Path(folder), pairs=wanted.pairs, count=wanted.count):
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
