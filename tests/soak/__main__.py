"""Soak test: traffic at the limits of a port for a third of the time, then traffic while parts are killed in turn."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.limits import at_limits
from tests.soak.soak import soaking


def main() -> int:
    """Run the soak; returns the exit status: 1 when something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("seconds", type=_seconds, nargs="?", default=1800.0, help="duration in seconds (default 1800)")
    parser.add_argument("seed", type=int, nargs="?", help="seed of the random choices (default: the time)")
    parser.add_argument(
        "--fail", action="store_true", help="only the traffic while parts are killed, under a policy that fails closed"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces and eBPF programs need root")
    seconds: float = options.seconds
    seed: int = int(time.time()) if options.seed is None else options.seed
    print(f"Soaking for {seconds:.0f} s, seed {seed}", flush=True)
    wrong: list[str] = []
    if not options.fail:
        with (
            tempfile.TemporaryDirectory(prefix="sidestep-soak-") as folder,
            at_limits(Path(folder), seed=seed, hold=6.0) as limits,
        ):
            findings = limits.run(seconds / 3)
        print(findings.text(), flush=True)
        wrong += findings.wrong
        seconds = seconds * 2 / 3
    with (
        tempfile.TemporaryDirectory(prefix="sidestep-soak-") as folder,
        soaking(Path(folder), seed=seed, fails=options.fail) as soak,
    ):
        account = soak.run(seconds)
    print(account.text())
    return int(bool(account.wrong or wrong))


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError("must be more than 0 seconds")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
