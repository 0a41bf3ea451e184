"""A pod whose main process has files of its own for names, what it can reach, and `sidestep connect` to it."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.harness.namespaces import PodNamespace
from tests.harness.node import SIDESTEP, Node
from tests.harness.processes import Process, child
from tests.harness.waiting import until

_numbers = itertools.count(1)

WAITS = [sys.executable, "-S", "-c", "import sys; print(1, flush=True); sys.stdin.read()"]


@contextlib.contextmanager
def main_process(space: PodNamespace, *, resolv_conf: Path, hosts: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The main process of the pod's container, in whose root these files are /etc/resolv.conf and /etc/hosts."""
    script = 'mount --bind "$0" /etc/resolv.conf && mount --bind "$1" /etc/hosts && shift && exec "$@"'
    command = [
        "nsenter", f"--net={space.pod.path}", "--", "unshare", "--mount", "--propagation", "private",
        "sh", "-c", script, str(resolv_conf), str(hosts), *WAITS,
    ]  # fmt: skip
    with child(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as found:
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
def connect(daemon: Node, folder: Path, *words: str) -> Iterator[Connection]:
    """`sidestep connect orders -n shop …`, once it listens."""
    command = [SIDESTEP, "connect", "orders", "-n", "shop", "--socket", daemon.socket, *words]
    number = next(_numbers)
    with Process(command, log=folder / f"connect-{number}.err", stdout=folder / f"connect-{number}.out") as process:
        found = Connection(process)
        until(lambda: not process.running or "NO_PROXY" in found.urls, within=30, what=lambda: found.said)
        assert process.running, found.said
        yield found
