"""Runs the unit tests and, meanwhile, the tests with real parts: `python -m tests.side_by_side PYTEST-ARGUMENTS`.

The unit tests compute. The tests with real parts wait for processes and clocks, and leave a third of two cores idle
when they run alone. So both run at once:

    unit tests    `make coverage` at low priority: they take what the others leave. Their output is kept, and printed
                  when the others have ended
    the others    pytest with the arguments of the command line. Their output is printed as it comes

Each of the two has a cache of pytest's own, so that each knows what failed in it. Unit tests that failed run again
within `make coverage`; the others do when both have ended, by themselves (`tests/again.py`).

An interrupt reaches both, since they are in this process's group; this one waits until they have cleaned up. The exit
status is 0 if everything passed, that of the others if they were interrupted or broken, and else 1.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.harness.processes import child

UNIT: Final = ("nice", "-n", "10", "make", "--no-print-directory", "coverage")
AGAIN: Final = Path(__file__).with_name("again.py")
UNIT_OUTPUT: Final = Path("build/unit.txt")
LOOK: Final = 0.5
"""Seconds between two looks at the output of the unit tests while nothing else is left to wait for."""
FAILED: Final = 1
"""Exit status of pytest if tests failed, and nothing else was wrong."""


def run(unit: Sequence[str], others: Sequence[str]) -> int:
    """Run both, `others` being arguments of pytest; returns the exit status."""
    # A handler, not SIG_IGN: what is started here must not inherit that SIGINT is ignored.
    signal.signal(signal.SIGINT, lambda *_: None)
    UNIT_OUTPUT.parent.mkdir(exist_ok=True)
    with UNIT_OUTPUT.open("wb") as kept, child(unit, stdout=kept, stderr=subprocess.STDOUT) as unit_tests:
        status = subprocess.call([sys.executable, "-m", "pytest", *others])
        print("sidestep: the unit tests, which ran meanwhile:", flush=True)
        follow(UNIT_OUTPUT, unit_tests)
    if status == FAILED:
        status = subprocess.call([sys.executable, AGAIN])
    return status or (FAILED if unit_tests.returncode else 0)


def follow(output: Path, process: subprocess.Popen[bytes]) -> None:
    """Print a process's output until it has ended."""
    with output.open("rb") as lines:
        ended = False
        while not ended:
            ended = process.poll() is not None
            shutil.copyfileobj(lines, sys.stdout.buffer)
            sys.stdout.flush()
            if not ended:
                time.sleep(LOOK)


if __name__ == "__main__":
    sys.exit(run(UNIT, sys.argv[1:]))
