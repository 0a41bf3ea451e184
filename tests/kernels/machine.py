"""A guest: QEMU without KVM, one processor, disks that are never written to, results on a serial port of their own.

With `-icount shift=0` the guest's clock counts instructions, so load on this machine trips no deadline in the guest;
with `sleep=off` it jumps over the time in which the guest has nothing to do. More than one processor hangs Linux 5.10
with it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.debian import cache
from tests.kernels.packages import Kernel
from tests.kernels.report import Outcome, Report, ReportError

MEMORY = 4096
"""MiB; the programs of a Kubernetes node alone take more than one GiB."""
POLL = 1.0
"""Seconds between two looks at the results."""


class GuestError(Exception):
    """A guest ended early, too late, or wrote what no guest writes; the text says which."""


@dataclass(frozen=True)
class Guest:
    """What a guest boots from, and the files that its console and its results go to."""

    kernel: Kernel
    root: Path
    sources: Path
    initrd: Path
    console: Path
    results: Path

    def command(self, steps: str) -> list[str]:
        """The argument vector of QEMU, which ends when whoever started it ends."""
        return [
            *("nice", "-n", "19", "setpriv", "--pdeathsig=KILL", "qemu-system-x86_64"),
            *("-accel", "tcg", "-cpu", "max", "-icount", "shift=0,sleep=off", "-rtc", "clock=vm"),
            *("-smp", "1", "-m", str(MEMORY), "-nodefaults", "-no-reboot", "-display", "none"),
            *("-drive", f"file={self.root},format=raw,if=virtio,snapshot=on"),
            *("-drive", f"file={self.sources},format=raw,if=virtio,snapshot=on"),
            *("-serial", f"file:{self.console}", "-serial", f"file:{self.results}"),
            *("-kernel", str(self.kernel.image), "-initrd", str(self.initrd)),
            *("-append", f"console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on SIDESTEP_STEPS={steps}"),
        ]


def run(guest: Guest, steps: str, *, report: Report, within: float, seen: Callable[[Outcome], None]) -> None:
    """Boot, add what the guest says to `report`, show each outcome to `seen`; no guest remains. Raises GuestError.

    `within`: seconds of this machine's time for all of it.
    """
    for path in (guest.console, guest.results):
        path.unlink(missing_ok=True)  # another run may be writing to the file of that name, and keeps it
        path.touch()
    begin = said = time.monotonic()
    process = subprocess.Popen(guest.command(steps), stdin=subprocess.DEVNULL)
    try:
        with open(guest.results, newline="", errors="replace") as results:
            while not report.ended:
                running = process.poll() is None
                for outcome in report.feed(results.read()):
                    seen(outcome)
                    said = time.monotonic()
                if not running:
                    break
                if time.monotonic() - begin > within:
                    raise GuestError(f"not done after {within:.0f} s")
                if time.monotonic() - said > cache.SIGN_OF_LIFE:
                    said = time.monotonic()
                    cache.say(f"  … {said - begin:.0f} s")
                time.sleep(POLL)
    except ReportError as error:
        raise GuestError(f"not a guest's result: {error}") from error
    finally:
        process.kill()
        process.wait()
    # A guest that has said its last word is not waited for: nothing of it is kept.
    if not report.ended:
        raise GuestError(f"it ended early, with exit status {process.returncode}\n{cache.tail(guest.console)}")
