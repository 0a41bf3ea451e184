"""Boot Debian's kernels under QEMU without KVM, run a selection of the tests in each, and print a table of the results.

    python -m tests.kernels --packages "PACKAGES" [--steps NAME,...] [KERNEL...]

PACKAGES are those that the product and its tests need, as the Makefile names them. What the guests printed is kept in
the folder `kernel-logs` of the cache, and so is `table.md`, which is written anew with each result: a run that is
interrupted leaves what it found. The table is printed at the end in any case.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from tests.debian import cache
from tests.debian.cache import BuildError
from tests.kernels import image, machine
from tests.kernels import packages as kernels
from tests.kernels.machine import Guest, GuestError
from tests.kernels.report import Outcome, Report, table
from tests.kernels.steps import named

WITHIN = 4 * 3600.0
"""Seconds for one guest: with a core of its own it needs about one hour."""


def run(names: list[str], packages: list[str], rows: dict[str, str], reports: dict[str, Report]) -> bool:
    """Boot each kernel, and fill in its report. True when all of it passed. Raises BuildError.

    `rows`: the steps, by name, with their titles.
    """
    chosen = {name: kernels.kernel(name) for name in kernels.chosen(names)}
    root = image.root(packages)
    logs = cache.folder() / "kernel-logs"
    logs.mkdir(exist_ok=True)

    def seen(outcome: Outcome) -> None:
        (logs / "table.md").write_text(table(reports, rows) + "\n")
        _show(outcome)

    good = True
    with tempfile.TemporaryDirectory(prefix="kernels-", dir=cache.folder()) as temporary:
        folder = Path(temporary)
        cluster = any(step.cluster for step in named(",".join(rows)))
        sources = image.sources(folder, packages, list(chosen.values()), cluster=cluster)
        for name, kernel in chosen.items():
            reports[name] = report = Report()
            initrd = image.initrd(folder, kernel)
            guest = Guest(kernel, root, sources, initrd, logs / f"{name}.console", logs / f"{name}.results")
            cache.say(f"booting Linux {kernel.release}; its console: {guest.console}")
            try:
                machine.run(guest, ",".join(rows), report=report, within=WITHIN, seen=seen)
            except GuestError as error:
                cache.say(f"Linux {kernel.release}: {error}")
                good = False
            good = good and all(outcome.good for outcome in report.outcomes)
    return good


def _show(outcome: Outcome) -> None:
    cache.say(f"  {outcome.step}: {outcome.cell()} ({outcome.seconds:.0f} s of the guest's time)")
    for name in outcome.names:
        cache.say(f"    failed: {name}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status: 0 all passed, 1 something did not, 130 interrupted. No guest remains in any case."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--packages", required=True, help="Debian packages of the product and its tests")
    parser.add_argument("--steps", default="", help="a selection of the steps, separated by commas")
    parser.add_argument("kernels", nargs="*", help=f"{', '.join(kernels.SUITES)}; all when none is named")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("sidestep: this makes Debian roots and disks; run it as root: sudo make kernels", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    reports: dict[str, Report] = {}
    rows: dict[str, str] = {}
    status = 1
    try:
        rows = {step.name: step.title for step in named(given.steps)}
        status = 0 if run(given.kernels, given.packages.split(), rows, reports) else 1
    except (BuildError, ValueError) as error:
        print(f"sidestep: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("sidestep: interrupted; no guest is left running", file=sys.stderr)
        status = 130
    if reports:
        print(table(reports, rows))
    return status


if __name__ == "__main__":
    sys.exit(main())
