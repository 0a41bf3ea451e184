"""`sidestep node` as a subprocess: a manifests folder and a socket of its own, ready when its API answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from tests.harness import manifests
from tests.harness.compiled_once.bcc import VARIABLE
from tests.harness.namespaces import Netns
from tests.harness.processes import Process, alive, children, descendants
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

START = 30.0
"""Seconds until the daemon must answer (it compiles a program first)."""

COMPILED_ONCE = Path(__file__).parent / "compiled_once"
"""A folder for PYTHONPATH that has a stand-in for bcc."""


class Node:
    """A running node daemon."""

    compiled: ClassVar[Path | None] = None
    """A folder in which daemons share the instructions that bcc made."""
    compiles: ClassVar[bool] = False
    """Each daemon compiles for itself, although there is such a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.patience = START
        """Seconds until it must answer."""
        self.manifests = folder / "manifests"
        self.socket = folder / "run" / "node.sock"
        self.eve: Path | None = folder / "eve.json"
        """Where records of inspection go; None: where the Node says."""
        self.crs: Path | None = None
        """The folder of its Core Rule Set; None: Debian's."""
        self.stdout: Path | None = None
        """Where its standard output goes; None: to its log."""
        self.manifests.mkdir(parents=True, exist_ok=True)
        self.socket.parent.mkdir(mode=0o700, exist_ok=True)
        self.process: Process | None = None
        self.prefix: tuple[str, ...] = ()
        """What the daemon is started by, such as `prlimit`."""
        self.program = SIDESTEP
        self.environment: dict[str, str] = {}
        self._family: set[int] = set()
        self._before: list[Process] = []

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str | Path]:
        """The command line that starts it."""
        eve: list[str | Path] = [] if self.eve is None else ["--eve", self.eve]
        crs: list[str | Path] = [] if self.crs is None else ["--crs", self.crs]
        return [self.program, "node", "--manifests", self.manifests, "--socket", self.socket, *eve, *crs]

    def variables(self) -> dict[str, str]:
        """Environment variables that the daemon gets."""
        if self.compiled is None or self.compiles:
            return self.environment
        shared = {"PYTHONPATH": str(COMPILED_ONCE), VARIABLE: str(self.compiled)}
        return {**shared, **self.environment}

    def _process(self, command: list[str | Path], stdout: Path | None = None) -> Process:
        log, variables = self.folder / "node.log", self.variables()
        return Process(command, log=log, stdout=stdout, environment=variables, patience=40)

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        command = [*self.prefix, *self.command()]
        process = self._process(command, stdout=self.stdout)
        self.process = process
        until(
            lambda: not process.running or self.status() is not None,
            within=self.patience,
            what=lambda: f"the node daemon to answer\n{process.text()[-6000:]}",
            every=0.03,
        )
        assert process.running, process.text()

    def upgrade(self) -> Process:
        """Start another daemon on the same socket and wait until it is the one that answers; returns the old one."""
        old = self.process
        assert old is not None
        self._before.append(old)
        self.family()
        process = self._process(self.command())
        self.process = process

        def answers() -> bool:
            status = self.status()
            return status is not None and status["node"]["pid"] == process.pid

        until(
            lambda: not process.running or answers(),
            within=self.patience,
            what=lambda: f"the new daemon to answer\n{process.text()[-6000:]}",
            every=0.03,
        )
        assert process.running, process.text()
        return old

    def write(self, name: str, *documents: manifests.Document) -> Path:
        """Put a manifest file in place."""
        return manifests.write(self.manifests, name, *documents)

    def records(self) -> list[dict[str, Any]]:
        """The records of inspection so far; the last line may be in the midst of being written."""
        text = self.eve.read_bytes() if self.eve is not None and self.eve.exists() else b""
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def log(self) -> str:
        return (self.folder / "node.log").read_text(errors="replace")

    def status(self) -> dict[str, Any] | None:
        """What GET /v1/status answers; None while nobody does."""
        return self.get("/v1/status")

    def get(self, path: str) -> Any:
        """One GET on the daemon's socket, decoded; None while nobody answers."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(str(self.socket))
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n".encode())
                with sock.makefile("rb") as answer:
                    status = answer.readline().split()
                    length = None
                    while (line := answer.readline()) not in (b"\r\n", b""):
                        name, _, value = line.partition(b":")
                        if name.lower() == b"content-length":
                            length = int(value)
                    body = answer.read() if length is None else answer.read(length)
        except OSError:
            return None
        return json.loads(body) if len(status) > 1 and status[1] == b"200" else None

    def family(self) -> set[int]:
        """The daemon's child processes, remembered: also those seen earlier that are still alive."""
        if self.process is not None and self.process.running:
            self._family |= set(descendants(self.pid))
        return {pid for pid in self._family if alive(pid)}

    def proxies(self, netns: Netns) -> list[int]:
        """The daemon's descendants inside a namespace: its pod proxy."""
        return sorted(netns.processes() & self.family())

    def proxy(self, netns: Netns, *, within: float = 5.0, but: int | None = None) -> int:
        """The pod proxy at work in a namespace (not one that drains), once there is one, another than `but`."""

        def look() -> int | None:
            named = {pod["proxy_pid"] for pod in (self.status() or {}).get("pods", [])}
            return next((pid for pid in self.proxies(netns) if pid in named and pid != but), None)

        return until(look, within=within, what="a pod proxy")

    def zygote(self) -> int:
        """The pid of the zygote; proxies, its forks, are not the daemon's own children."""

        def look() -> int | None:
            for pid in children(self.pid):
                with contextlib.suppress(OSError):
                    if b"sidestep.proxy.runtime.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        return pid
            return None

        return until(look, within=10, what="the zygote")

    def kill(self) -> float:
        """SIGKILL the daemon alone; the monotonic time of it."""
        assert self.process is not None
        self.family()
        when = time.monotonic()
        self.process.kill()
        return when

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        assert self.process is not None
        self.family()
        self.process.signal(signal.SIGTERM)
        return self.process.wait(40)

    def clean(self) -> None:
        """End the daemon and whatever of its children outlived it."""
        if self.process is not None:
            self.family()
            self.process.stop()
        for process in self._before:
            process.stop()
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def node(folder: Path, *, start: bool = True) -> Iterator[Node]:
    """A node daemon in a folder of its own."""
    daemon = Node(folder)
    try:
        if start:
            daemon.start()
        yield daemon
    finally:
        daemon.clean()
