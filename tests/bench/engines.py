"""Twenty inspected pods on one node, each with a Suricata: memory and CPU while nothing happens, and in a policy storm.

`python -m tests.bench.engines --count 20` prints what daemon, proxies and Suricatas take while nobody sends anything,
and the processor time of the daemon, and of everything that it started, while 200 policies a minute are changed: once
policies with rules of Sidestep, once the ConfigMap with rules for Suricata. With `--waf` each pod has an inspector as
well; `--idle` leaves the storms out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.bench.cpu import cpu_seconds
from tests.bench.crowd import many_pods, pod_document
from tests.bench.figure import Figure
from tests.harness import namespaces
from tests.harness.inspection import cluster_policy, policy, rule
from tests.harness.manifests import Document
from tests.harness.node import Node, node
from tests.harness.processes import descendants
from tests.harness.waiting import until

IDLE = 20.0
"""Seconds for which nothing happens."""
STORM = 60.0
CHANGES = 200
"""Policies that are changed in STORM seconds."""
POLICIES = 50
"""Policies that there are meanwhile."""
BUDGET = 20.0
"""Per cent of a core for the daemon in a storm (docs/design.md, "Budgets")."""
RULE = 'alert http any any -> any any (msg:"evil"; http.uri; content:"/evil"; sid:{};)'


class Node20:
    """A daemon with inspected pods."""

    def __init__(self, daemon: Node) -> None:
        self.daemon = daemon

    def processes(self) -> Mapping[str, list[int]]:
        """All pids, by what they are."""
        found: dict[str, list[int]] = {kind: [] for kind in ("daemon", "proxies", "suricata", "inspectors", "rest")}
        found["daemon"].append(self.daemon.pid)
        for pid in descendants(self.daemon.pid):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                suricata = command.startswith(b"suricata\0") or b"sidestep.ids.launcher" in command
                others = {b"proxy.runtime.zygote": "proxies", b"sidestep.inspector.zygote": "inspectors"}
                other = next((kind for program, kind in others.items() if program in command), "rest")
                found["suricata" if suricata else other].append(pid)
        return found

    def engines(self) -> list[dict[str, object]]:
        """What the status shows of them."""
        return [each for pod in (self.daemon.status() or {}).get("pods", ()) for each in pod["engines"]]

    def wait(self, count: int) -> None:
        """Wait until so many engines run."""
        up = lambda: sum(each["state"] == "running" for each in self.engines()) == count  # noqa: E731
        until(up, within=120, every=0.2, what=lambda: f"{count} engines: {self.engines()}\n{self.daemon.log()[-3000:]}")


@contextlib.contextmanager
def inspected(folder: Path, count: int, *, waf: bool = False) -> Iterator[Node20]:
    """So many pods, a listening socket in each, and a policy with `ids` for all, and `waf` if that is wanted."""
    with contextlib.ExitStack() as stack:
        spaces = stack.enter_context(many_pods(count))
        daemon = stack.enter_context(node(folder, start=False))
        for name, address in spaces:
            stack.enter_context(namespaces.Netns(name).call(_listener(address)))
        documents = [pod_document(f"web-{number}", *space) for number, space in enumerate(spaces)]
        for each in documents:
            each["metadata"]["labels"]["tier"] = "inspected"
            each["metadata"]["annotations"]["telepresence.io/downstream-plaintext"] = "true"
            each["spec"]["containers"][0]["ports"][0]["name"] = "http"
        daemon.write("web.yaml", *documents)
        daemon.write("rules.yaml", config_map(1))
        daemon.write("ids.yaml", ids_policy(waf=waf))
        daemon.start()
        found = Node20(daemon)
        found.wait(count * (1 + waf))
        yield found


def _listener(address: str) -> Callable[[], contextlib.AbstractContextManager[object]]:
    return lambda: socket.create_server((address, 8080))


def config_map(version: int) -> Document:
    """The rules, in one of many versions."""
    data = {"local.rules": RULE.format(version)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ids", "namespace": "shop"}, "data": data}


def ids_policy(*, waf: bool) -> Document:
    """The policy of all pods."""
    reference = {"name": "ids", "key": "local.rules", "namespace": "shop"}
    made = cluster_policy(name="ids", mode="Detect", ids={"rulesFrom": {"configMapRef": reference}})
    del made["spec"]["rules"]
    if waf:
        made["spec"]["waf"] = {}
    return made


def memory(pids: list[int], kind: str) -> float:
    """MiB of these processes: `Rss`, or `Pss`, in which shared pages are divided among those that share them."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found = re.search(rf"^{kind}: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
    return total / 1024


def idle(scene: Node20, count: int) -> list[Figure]:
    """Memory and CPU of all of it while nothing happens."""
    kinds = scene.processes()
    before = {kind: cpu_seconds(pids) for kind, pids in kinds.items()}
    time.sleep(IDLE)
    found = []
    for kind, pids in kinds.items():
        if not pids:
            continue
        percent = (cpu_seconds(pids) - before[kind]) / IDLE * 100
        found.append(Figure(f"{count} inspected pods, idle: CPU of {kind} ({len(pids)} processes)", percent, "%"))
        found.append(Figure(f"{count} inspected pods, idle: memory of {kind} (Pss)", memory(pids, "Pss"), "MiB"))
    largest = max(memory([pid], "Rss") for pid in kinds["suricata"])
    found.append(Figure("the largest Suricata (Rss)", largest, "MiB", 64))
    return found


def storm(scene: Node20, name: str, change: Callable[[int], None]) -> list[Figure]:
    """CHANGES changes in STORM seconds, at an even pace."""
    own = [scene.daemon.pid]
    begun, before, everything = time.monotonic(), cpu_seconds(own), _spent(scene.daemon.pid)
    for number in range(CHANGES):
        change(number)
        time.sleep(max(0.0, begun + (number + 1) * STORM / CHANGES - time.monotonic()))
    seconds = time.monotonic() - begun
    daemon = (cpu_seconds(own) - before) / seconds * 100
    total = (_spent(scene.daemon.pid) - everything) / seconds * 100
    return [
        Figure(f"{name}, {CHANGES} changes a minute: CPU of the daemon", daemon, "%", BUDGET),
        Figure(f"{name}, {CHANGES} changes a minute: CPU of all that it started, too", total, "%"),
    ]


def _spent(pid: int) -> float:
    """CPU seconds of the daemon, its living descendants, and its children that have ended."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = (int(words[13]) + int(words[14])) / os.sysconf("SC_CLK_TCK")
    return cpu_seconds([pid, *descendants(pid)]) + ended


def storms(scene: Node20, count: int) -> list[Figure]:
    """A storm of policies with rules, then one of rules for Suricata."""

    def write(number: int, version: int) -> None:
        selector = {"matchLabels": {"tier": "inspected"}}
        document = policy(rule(f"/never-{version}"), name=f"p{number}", podSelector=selector)
        scene.daemon.write(f"policy-{number}.yaml", document)

    def write_rules(version: int) -> None:
        scene.daemon.write("rules.yaml", config_map(version))

    for number in range(POLICIES):
        write(number, 0)
    until(
        lambda: sum(each["accepted"] for each in (scene.daemon.status() or {})["policies"]) == POLICIES + 1,
        within=120,
        every=0.5,
        what="the policies to be accepted",
    )
    found = storm(scene, "policies with rules", lambda at: write(at % POLICIES, at + 1))
    found += storm(scene, "rules for Suricata", lambda at: write_rules(at + 2))
    scene.wait(count)
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engines", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="inspected pods (default 20)")
    parser.add_argument("--waf", action="store_true", help="an inspector for each pod, too")
    parser.add_argument("--idle", action="store_true", help="no storms")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces and eBPF programs need root")
    with (
        tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder,
        inspected(Path(folder), options.count, waf=options.waf) as scene,
    ):
        for figure in idle(scene, options.count):
            print(figure.line(), flush=True)
        for figure in () if options.idle else storms(scene, options.count * (1 + options.waf)):
            print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
