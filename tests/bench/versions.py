"""Two versions of the daemon by turns: start-up, memory and idle CPU, in local mode and in a cluster.

    python -m tests.bench.versions OTHER [--turns 3] [--starts 3] [--pods 100]

OTHER is a checkout with its own .venv. The harness and the pods are those of this checkout; only `sidestep` differs. A
start lasts until the local API answers; its CPU is that of the daemon and its children, ended ones included. For memory
and idle CPU all pods are steered by one intercept of their Deployment. The cluster is that of `tests.harness.cluster`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.cpu import cpu_seconds
from tests.bench.crowd import many_pods, pod_document
from tests.bench.extras import pss, rss
from tests.harness import cluster, manifests
from tests.harness.cli import Intercept, intercept
from tests.harness.namespaces import Netns
from tests.harness.node import Node, node
from tests.harness.peers import Server, http_app
from tests.harness.processes import Process, descendants
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

PORT = 8080
HEADER = "x-dev=ada"
MODES = ("local", "cluster")
BOOKMARKS = 60.0
"""Seconds between two bookmarks of a watch, as an API server sends them."""
SETTLE, IDLE = 3.0, 10.0
"""Seconds before idle CPU is measured, and for how long."""


@dataclass
class Version:
    """A version of the program, and what was measured of it: (mode, name of the figure) to values."""

    name: str
    program: str
    found: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, mode: str, figure: str, value: float) -> None:
        """Note one value."""
        self.found.setdefault((mode, figure), []).append(value)


@contextlib.contextmanager
def daemon(folder: Path, version: Version, mode: str, server: cluster.ApiServer) -> Iterator[Node]:
    """A daemon of this version that is not started yet."""
    folder.mkdir(parents=True, exist_ok=True)
    made = node(folder, start=False) if mode == "local" else cluster.cluster_node(folder, server, start=False)
    with made as found:
        found.program = version.program
        found.eve = None  # an older version may not know the option
        yield found


def tree_cpu(pid: int) -> float:
    """CPU seconds of a process and of all that it has started, ended ones included."""
    total = 0
    for each in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def start(folder: Path, version: Version, mode: str) -> None:
    """Start a daemon without pods and end it."""
    with cluster.api_server(folder) as server, daemon(folder / "node", version, mode, server) as running:
        if mode == "local":
            running.write("node.yaml", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": cluster.NODE}})
        began = time.monotonic()
        running.start()
        version.add(mode, "start-up, s", time.monotonic() - began)
        version.add(mode, "start-up, CPU s", tree_cpu(running.pid))


def pods(folder: Path, version: Version, mode: str, count: int) -> None:
    """Steer so many pods and look at the daemon."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(cluster.api_server(folder))
        server.api.bookmarks = BOOKMARKS
        spaces = stack.enter_context(many_pods(count))
        for name, address in spaces:
            stack.enter_context(Server(http_app, netns=Netns(name), address=address, port=PORT, record=False))
        running = stack.enter_context(daemon(folder / "node", version, mode, server))
        documents = [manifests.deployment("web", labels={"app": "web"})]
        documents[0]["metadata"]["uid"] = "uid-web"
        labels = {"labels": {"app": "web"}}
        owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-web", "controller": True}
        if mode == "local":
            for number, space in enumerate(spaces):
                document = pod_document(f"web-{number}", *space)
                document["metadata"] |= labels
                documents.append(document)
            running.write("web.yaml", *documents)
        else:
            named = {f"web-{number}": Netns(name) for number, (name, _) in enumerate(spaces)}
            found = stack.enter_context(cluster.residents(named))
            ports = [manifests.container_port(PORT)]
            for number, (_, address) in enumerate(spaces):
                name = f"web-{number}"
                documents.append(cluster.pod(name, found[name], [address], ports, ownerReferences=[owner], **labels))
            server.put(*documents)
        running.start()
        with _intercept(folder, version, mode, running, server) as session:
            began = time.monotonic()
            until(
                lambda: session.active() == count or not session.process.running,
                within=90,
                what=lambda: f"all pods: {session.active()}\n{session.process.text()}\n{running.log()[-3000:]}",
            )
            assert session.process.running, session.process.text()
            version.add(mode, "pods steered, s", time.monotonic() - began)
            time.sleep(SETTLE)
            before, since = cpu_seconds([running.pid]), time.monotonic()
            time.sleep(IDLE)
            version.add(mode, "idle CPU, %", (cpu_seconds([running.pid]) - before) / (time.monotonic() - since) * 100)
            version.add(mode, "daemon RSS, MiB", rss(running.pid))
            version.add(mode, "zygote PSS, MiB", pss(running.zygote()))


@contextlib.contextmanager
def _intercept(
    folder: Path, version: Version, mode: str, running: Node, server: cluster.ApiServer
) -> Iterator[Intercept]:
    words = ["web", "--port", f"1:{PORT}", "--http-header", HEADER, "--plaintext"]
    if mode == "local":
        with intercept(running, *words, pods=None) as session:
            yield session
        return
    command = [version.program, "intercept", *words, "--output", "json"]
    command += ["--kubeconfig", str(server.kubeconfig(folder / "config"))]
    with Process(command, log=folder / "intercept.log", stdout=folder / "intercept.jsonl") as process:
        yield Intercept(process)


def report(before: Version, after: Version) -> list[str]:
    """A row for each figure: the median, and all values, of both versions; the median of the ratios of the pairs."""
    lines = [f"{'':34} {before.name:>26} {after.name:>26}   ratio"]
    for mode, figure in after.found:
        sides = [version.found[mode, figure] for version in (before, after)]
        texts = [f"{statistics.median(side):.2f} ({min(side):.2f}-{max(side):.2f})" for side in sides]
        ratio = statistics.median(ours / theirs for theirs, ours in zip(*sides, strict=True) if theirs)
        lines.append(f"{mode + ': ' + figure:34} {texts[0]:>26} {texts[1]:>26}   {ratio:.2f}")
    return lines


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.versions", description=__doc__)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--turns", type=int, default=3, help="how often each version is measured (default 3)")
    parser.add_argument("--starts", type=int, default=3, help="starts of each version in a turn (default 3)")
    parser.add_argument("--pods", type=int, default=100, help="pods that are steered; 0: starts only (default 100)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces and eBPF programs need root")
    program = options.other / ".venv/bin/sidestep"
    if not program.exists():
        parser.error(f"{program} does not exist")
    before, after = Version("other", str(program)), Version("this", SIDESTEP)
    for turn in range(options.turns):
        order = (before, after) if turn % 2 == 0 else (after, before)
        for mode in MODES:
            for number in range(options.starts):
                for version in order if number % 2 == 0 else reversed(order):
                    with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
                        start(Path(folder), version, mode)
            for version in order if options.pods else ():
                with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
                    pods(Path(folder), version, mode, options.pods)
        print(f"turn {turn + 1} of {options.turns}", flush=True)
        for line in report(before, after):
            print(line, flush=True)


if __name__ == "__main__":
    main()
