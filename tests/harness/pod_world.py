"""A pod whose main process has files of its own for names, what it can reach, and `sidestep connect` to it."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.harness import manifests
from tests.harness.namespaces import PodNamespace, pod_namespace
from tests.harness.node import Node, node
from tests.harness.processes import Process, child
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

_numbers = itertools.count(1)
WAITS = [sys.executable, "-S", "-c", "import sys; print(1, flush=True); sys.stdin.read()"]


@contextlib.contextmanager
def main_process(
    space: PodNamespace, *, resolv_conf: Path, hosts: Path, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The main process of the pod's container, in whose root these files are /etc/resolv.conf and /etc/hosts."""
    script = 'mount --bind "$0" /etc/resolv.conf && mount --bind "$1" /etc/hosts && shift && exec "$@"'
    command = [
        "nsenter", f"--net={space.pod.path}", "--", "unshare", "--mount", "--propagation", "private",
        "sh", "-c", script, str(resolv_conf), str(hosts), *WAITS,
    ]  # fmt: skip
    environment = {**variables, "PATH": os.environ["PATH"]}
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as found:
        assert found.stdout is not None
        assert found.stdout.readline() == b"1\n"
        yield found


@contextlib.contextmanager
def dns_server(space: PodNamespace, folder: Path, *options: str) -> Iterator[Process]:
    """dnsmasq in the client's namespace, on port 53 of its addresses."""
    command = ["dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--bind-dynamic", "--log-facility=-"]
    command += ["--user=root", "--pid-file=", "--log-queries", f"--listen-address={space.client_ip}", *options]
    with Process(space.client.enter(command), log=folder / "dnsmasq.log") as server:
        until(
            lambda: not server.running or ":53 " in space.client.run("ss", "-Hlnu"),
            within=10,
            what=lambda: f"dnsmasq\n{server.text()}",
        )
        yield server


SEARCH = "shop.svc.cluster.test svc.cluster.test cluster.test"


@contextlib.contextmanager
def orders(
    folder: Path, *records: str, variables: Mapping[str, str] | None = None
) -> Iterator[tuple[PodNamespace, Node]]:
    """Pod shop/orders, whose resolver is in the client's namespace, where the services are; and its node's daemon.

    The resolver knows `db`, at the client's address, and `records` (options of dnsmasq), and that there is nothing else
    in .test and .pay. `variables` are those of the pod's main process.
    """
    with pod_namespace() as space:
        resolv_conf, hosts = folder / "resolv.conf", folder / "hosts"
        resolv_conf.write_text(f"nameserver {space.client_ip}\nsearch {SEARCH}\noptions ndots:5\n")
        hosts.write_text(f"127.0.0.1 localhost\n{space.client_ip} aliased\n{space.ip} orders-1\n")
        known = [f"--address=/db.shop.svc.cluster.test/{space.client_ip}", "--local=/test/", "--local=/pay/", *records]
        with (
            main_process(space, resolv_conf=resolv_conf, hosts=hosts, variables=variables or {}) as process,
            dns_server(space, folder, *known),
            node(folder) as daemon,
        ):
            stated = {"sidestep.dev/pid": str(process.pid)}
            port = manifests.container_port(8080, "http")
            daemon.write("pod.yaml", manifests.pod("orders", space, annotations=stated, ports=[port]))
            until(lambda: daemon.get("/v1/workloads"), within=10, what="the pod")
            yield space, daemon


class Connection:
    """A running `sidestep connect`."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def said(self) -> str:
        """What it has written to standard error."""
        return self.process.text()

    @property
    def urls(self) -> dict[str, str]:
        """The variables that it prints, by name."""
        return dict(re.findall(r"^export (\w+)=(.*)$", self.process.output(), re.MULTILINE))

    @property
    def port(self) -> int:
        return int(self.urls["ALL_PROXY"].rpartition(":")[2])


@contextlib.contextmanager
def connect(daemon: Node, folder: Path, *words: str, workload: str = "orders") -> Iterator[Connection]:
    """`sidestep connect WORKLOAD -n shop …`, once it listens."""
    command = [SIDESTEP, "connect", workload, "-n", "shop", "--socket", daemon.socket, *words]
    number = next(_numbers)
    with Process(command, log=folder / f"connect-{number}.err", stdout=folder / f"connect-{number}.out") as process:
        found = Connection(process)
        until(lambda: not process.running or "NO_PROXY" in found.urls, within=30, what=lambda: found.said)
        assert process.running, found.said
        yield found


def curl(proxy: str, url: str, *options: str) -> tuple[int, str, str]:
    """curl through a proxy; (exit status, body, what it said)."""
    command = ["curl", "-sS", "--max-time", "40", "--noproxy", "", "-x", proxy, *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr
