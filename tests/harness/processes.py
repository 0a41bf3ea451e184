"""One child process: its log in a file, its memory, and its end by its own pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness.waiting import until
from tests.harness.warm import spawn


class Process:
    """A started process. `log` holds stdout and stderr, or stderr alone when stdout has a file of its own.

    `sidestep` may come from an interpreter that has imported it (`tests.harness.warm`).
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        stdout: Path | None = None,
        environment: Mapping[str, str] | None = None,
        patience: float = 5.0,
    ) -> None:
        self.log = log
        self.stdout = stdout
        self.patience = patience
        self.port = 0
        """Where it listens, once the test that started a server has been told."""
        """Seconds between SIGTERM and SIGKILL at the end."""
        with open(log, "ab") as errors, contextlib.ExitStack() as files:
            output = errors if stdout is None else files.enter_context(open(stdout, "ab"))
            self.popen = spawn(command, stdout=output, stderr=errors, environment=environment)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="replace")

    def output(self) -> str:
        """What it has written to stdout so far."""
        return "" if self.stdout is None else self.stdout.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self.popen.send_signal(number)

    def wait(self, within: float) -> int:
        """The exit status; AssertionError when it does not end in time."""
        until(
            lambda: not self.running, within=within, what=lambda: f"{self.popen.args!r} to end\n{self.text()[-4000:]}"
        )
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL and reap."""
        self.signal(signal.SIGKILL)
        self.popen.wait(10)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after `patience`; reaps."""
        self.signal(signal.SIGTERM)
        try:
            self.popen.wait(self.patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def child(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A child with pipes; options as for `subprocess.Popen`, whose own context manager waits for the child's end.

    When something in the body has failed, nobody may be left to end it: then it is killed, or the run would hang.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(pid: int) -> int:
    """Start time of a process in clock ticks since boot: with the pid, its identity (proc(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in path.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """All processes below one, nearest first."""
    found = children(pid)
    for child in found:
        found += [more for more in children(child) if more not in found]
    return found


def reset_peak(pid: int) -> int:
    """Forget the peak memory of a process (clear_refs 5, proc(5)); returns its resident memory in bytes now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(pid, "VmRSS")


def peak(pid: int) -> int:
    """The highest resident memory since `reset_peak`, in bytes."""
    return _memory(pid, "VmHWM")


def _memory(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def kill(pid: int, *, within: float = 5.0) -> float:
    """SIGKILL one process by pid and wait until it is gone; the monotonic time of the kill."""
    when = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), within=within, what=f"process {pid} to die")
    return when


def cpu_seconds(pid: int) -> float:
    """User and system CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
