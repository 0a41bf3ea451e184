"""The command line as a subprocess: short commands, and `sidestep intercept` as a running session."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.node import Node
from tests.harness.processes import Process
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP, run

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line on stderr."""
        lines = self.stderr.splitlines()
        assert len(lines) == 1, f"expected one line on stderr, not:\n{self.stderr}"
        return lines[0]

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def sidestep(
    *words: str | Path,
    socket: Path | None = None,
    within: float = 80.0,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Run a command to its end. `socket` is passed as --socket; each variable replaces one of this process's.

    It may come from an interpreter that has imported it (`tests.harness.warm`).
    """
    extra: list[str | Path] = [] if socket is None else ["--socket", socket]
    done = run([SIDESTEP, *map(str, [*words, *extra])], within=within, environment=environment)
    return Result(done.returncode, done.stdout, done.stderr)


class Intercept:
    """A running `sidestep intercept --output json`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._events: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}
        """The last of them that says on which pods it is active."""
        self._read = 0
        """Bytes of its output that have been read, whole lines: a soak prints a hundred thousand of them."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self) -> list[dict[str, Any]]:
        """The JSON lines so far."""
        if self.process.stdout is not None and self.process.stdout.exists():
            with open(self.process.stdout, "rb") as output:
                output.seek(self._read)
                whole, newline, _ = output.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.splitlines():
                if line.endswith(b"}"):
                    event = json.loads(line)
                    self._events.append(event)
                    if event.get("event") in ("state", "interrupted"):
                        self._last = event
        return self._events

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events() if event.get("event") == kind]

    def active(self) -> int:
        """On how many pods it says that it is active, now."""
        self.events()
        pods = self._last.get("pods", [])
        return sum(pod["state"] in ("active", "attached") for pod in pods)

    def wait_active(self, *, pods: int = 1, within: float = 10.0) -> None:
        """Wait until it says that it is active on `pods` pods."""
        until(
            lambda: not self.process.running or (self.of("state") and self.active() == pods),
            within=within,
            what=lambda: f"the intercept to be active\n{self.process.output()}\n{self.process.text()}",
        )
        assert self.process.running, self.process.output() + self.process.text()

    def stop(self) -> int:
        """Ctrl-C, as a developer does; the exit status."""
        self.process.signal(signal.SIGINT)
        return self.process.wait(20)


@contextlib.contextmanager
def intercept(
    node: Node,
    workload: str,
    *options: str | Path,
    pods: int | None = 1,
    namespace: str = "shop",
    command: str = "intercept",
) -> Iterator[Intercept]:
    """Run `sidestep intercept` (or `command`) and wait until it is active on `pods` pods (None: do not wait)."""
    number = next(_numbers)
    line = [SIDESTEP, command, workload, "-n", namespace, "--output", "json", "--socket", node.socket]
    line += options
    if "--name" not in options:
        line += ["--name", f"test-{number}"]
    process = Process(
        line, log=node.folder / f"intercept-{number}.log", stdout=node.folder / f"intercept-{number}.jsonl"
    )
    with process:
        running = Intercept(process)
        if pods is not None:
            running.wait_active(pods=pods)
        yield running
        process.signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(5)
