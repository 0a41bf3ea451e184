"""What a GiB costs that a pod's connection carries to or from the developer's machine, beside `kubectl port-forward`.

`python -m tests.bench.forwarded` boots the cluster of tests/e2e and has curl fetch a file of 1 GiB from a server in a
pod, or with `--upload` store one there, in turns: through `kubectl port-forward` to that pod, and through `sidestep
connect`, for which another pod makes the connection. CPU is counted whole: that of the command and of curl, and that of
everything on the node, which is the API server, the kubelet, containerd, the node daemon, the pod's proxy, and the
server. Both ways lead through the API server and the kubelet: Sidestep's tunnel is a port-forward to the node daemon.
Needs root, and cgroups of version 1.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.cpu import children, cpu_seconds
from tests.bench.figure import Figure
from tests.e2e import cgroups, images, machine
from tests.e2e import cluster as clusters
from tests.e2e import product as products
from tests.e2e import shop as shops
from tests.e2e.cluster import Cluster, Pod
from tests.harness.processes import child
from tests.harness.warm import SIDESTEP

GIB = 1 << 30
SPACE, PORT = "pay", 8080
ROLE, USER = "sidestep-pod-access", "ada"


@dataclass(frozen=True)
class Spent:
    """Seconds of one transfer, and of CPU time on the laptop and on the node; the most memory of the command (MiB)."""

    wall: float
    laptop: float
    node: float
    memory: float

    @property
    def cpu(self) -> float:
        return self.laptop + self.node


def _node_cpu(cluster: Cluster) -> float:
    """CPU seconds of the node's programs, and of everything that runs, or has run, in pods."""
    programs = cpu_seconds([pid for each in cluster.node.programs for pid in children(each.pid)])
    [counted] = [
        root / cluster.node.name / "cpuacct.usage" for root in cgroups.roots() if (root / "cpuacct.usage").exists()
    ]
    return programs + int(counted.read_text()) / 1e9


def _laptop_cpu() -> float:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def _spent(cluster: Cluster, transfer: Callable[[], tuple[float, float]]) -> Spent:
    """What a transfer took; it returns its seconds and MiB, and has waited for all that it started."""
    laptop, node = _laptop_cpu(), _node_cpu(cluster)
    wall, memory = transfer()
    return Spent(wall, _laptop_cpu() - laptop, _node_cpu(cluster) - node, memory)


def _curl(url: str, upload: Path | None) -> list[str]:
    words = ["curl", "-sS", "--fail", "--max-time", "600", "-o", "/dev/null"]
    if upload is None:
        return [*words, "-w", "%{size_download} %{time_total}", f"{url}/gib"]
    return [*words, "-H", "Expect:", "-T", str(upload), "-w", "%{size_upload} %{time_total}", f"{url}/stored"]


def _run(command: list[str]) -> tuple[float, float]:
    """The seconds that curl tells, and the most memory that the command has taken (MiB)."""
    with child(command, stdout=subprocess.PIPE, text=True) as running:
        told = running.stdout.read() if running.stdout is not None else ""
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    assert running.returncode == 0, told
    size, seconds = told.split()
    assert int(size) == GIB
    return float(seconds), used.ru_maxrss / 1024


def _server(cluster: Cluster) -> Pod:
    """nginx with a file of 1 GiB, which takes no room; it stores another one."""
    stores = "dav_methods PUT; client_max_body_size 0; client_body_temp_path /tmp/www/body"
    config = f"events {{}} http {{ sendfile on; server {{ listen {PORT}; access_log off; root /tmp/www; {stores}; }} }}"
    script = (
        "mkdir /tmp/www; truncate -s 1G /tmp/www/gib; chmod -R a+rwX /tmp/www; "
        f"echo '{config}' > /tmp/conf; exec nginx -c /tmp/conf -g 'daemon off;'"
    )
    container = {"name": "web", "image": images.APP, "imagePullPolicy": "Never", "command": ["sh", "-c", script]}
    container["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    metadata = {"name": "web", "labels": {"app": "web"}}
    cluster.apply(*clusters.namespaces(SPACE))
    cluster.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}, namespace=SPACE
    )
    return cluster.wait_pods(SPACE, "app=web", 1)[0]


def figures(folder: Path, *, pairs: int, uploads: bool) -> list[Figure]:
    """Measure."""
    laptop = folder / "laptop"
    laptop.mkdir()
    stored = None
    if uploads:
        stored = laptop / "gib"
        stored.touch()
        os.truncate(stored, GIB)
    with clusters.cluster(folder) as cluster:
        shop = shops.open_shop(cluster, laptop, replicas=1)
        product = products.Product(cluster, laptop)
        product.install(user=USER, namespace=shop.namespace)
        binding = ("rolebinding", ROLE, f"--clusterrole={ROLE}", f"--user={USER}", "-n", shop.namespace)
        cluster.kubectl("create", *binding)
        server = _server(cluster)

        def forwarded() -> tuple[float, float]:
            with cluster.port_forward(f"pod/{server.name}", PORT, namespace=SPACE) as port:
                return _run(cluster.node.laptop.enter(_curl(f"http://127.0.0.1:{port}", stored)))

        def connected() -> tuple[float, float]:
            words = [SIDESTEP, "connect", "deploy/orders", "-n", shop.namespace, "--"]
            return _run(cluster.command(*words, *_curl(f"http://{server.ip}:{PORT}", stored), user=USER))

        turns = []
        for _ in range(pairs):
            began = time.monotonic()
            turns.append((_spent(cluster, connected), _spent(cluster, forwarded)))
            print(f"a pair took {time.monotonic() - began:.0f} s: {turns[-1]}", flush=True)

    def median(of: Callable[[Spent, Spent], float]) -> float:
        return statistics.median(of(ours, theirs) for ours, theirs in turns)

    return [
        Figure("a GiB: CPU of sidestep connect to port-forward", median(lambda a, b: a.cpu / b.cpu), "x"),
        Figure("a GiB: seconds of sidestep connect to port-forward", median(lambda a, b: a.wall / b.wall), "x"),
        Figure("a GiB, sidestep connect: CPU of the laptop", median(lambda a, _: a.laptop), "s"),
        Figure("a GiB, sidestep connect: CPU of the node", median(lambda a, _: a.node), "s"),
        Figure("a GiB, sidestep connect: seconds", median(lambda a, _: a.wall), "s"),
        Figure("a GiB, sidestep connect: most memory of the command", median(lambda a, _: a.memory), "MiB"),
        Figure("a GiB, port-forward: CPU of the laptop", median(lambda _, b: b.laptop), "s"),
        Figure("a GiB, port-forward: CPU of the node", median(lambda _, b: b.node), "s"),
        Figure("a GiB, port-forward: seconds", median(lambda _, b: b.wall), "s"),
    ]


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--upload", action="store_true", help="from the laptop to the pod")
    wanted = parser.parse_args()
    folder = machine.folder_of_our_own()
    try:
        for figure in figures(folder, pairs=wanted.pairs, uploads=wanted.upload):
            print(figure.line(), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
