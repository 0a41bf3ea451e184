"""Runs the steps in the guest: `python -m tests.kernels.guest PORT [STEPS]`. PORT is the serial port of the results.

What the steps print goes to the console.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from typing import TextIO

from tests.kernels.report import COUNTED, Outcome, ReportError, spoken
from tests.kernels.steps import Step, confine, named

ENDING = 120.0
"""Seconds for a command that is interrupted because its time is up; pytest cleans up and prints its summary."""


def run(step: Step, release: str) -> Outcome:
    """Run it and count what it printed, which is copied to the console."""
    command = confine(step.command, release) if step.confined else list(step.command)
    print(f"sidestep: {step.name}: {' '.join(command)}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        status = _wait(process, step.within)
        seconds = round(time.monotonic() - began, 1)
        output.seek(0)
        printed = output.read()
    print(printed, flush=True)
    try:
        return Outcome(step.name, status, seconds, **COUNTED[step.counted](printed))  # type: ignore[arg-type]
    except ReportError as error:
        print(f"sidestep: {step.name}: {error}", flush=True)
        return Outcome(step.name, status, seconds)


def _wait(process: subprocess.Popen[bytes], within: float) -> int | None:
    """The exit status, or None when it was not done in time and had to be ended."""
    try:
        return process.wait(within)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return None


def main(port: str, steps: str = "") -> None:
    """Run all of them in order, whatever becomes of each."""
    release = platform.release()
    with open(port, "w") as results:
        _say(results, f'{{"release": "{release}"}}')
        for step in named(steps):
            _say(results, spoken(run(step, release)))
        os.sync()
        _say(results, '{"end": true}')


def _say(results: TextIO, line: str) -> None:
    results.write(f"{line}\n")
    results.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
