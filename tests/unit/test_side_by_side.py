"""Unit tests and others at the same time (`tests/side_by_side.py`), with a real pytest."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.processes import child
from tests.harness.waiting import until
from tests.unit.test_again import ONCE

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from tests import side_by_side
sys.exit(side_by_side.run(["sh", "-c", sys.argv[1]], sys.argv[2:]))
"""
SLEEPER = """
from pathlib import Path
from time import sleep
def test_it():
    Path("begun").touch()
    try:
        sleep(60)
    finally:
        print("swept")
"""


def both(folder, unit, text):
    """The command that runs the shell's commands `unit` and a file of tests, and its options."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-c", PROGRAM, unit, "-q", "-s", "--cache-clear", "test_it.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return command, {"cwd": folder, "env": environment, "stdout": subprocess.PIPE, "text": True}


@pytest.mark.parametrize(
    ("unit", "text", "code"),
    [
        pytest.param("echo 7 passed", "def test_it(): pass", 0, id="both pass"),
        pytest.param("echo 7 passed; false", "def test_it(): pass", 1, id="the unit tests fail"),
        pytest.param("echo 7 passed", "def test_it(): assert 0", 1, id="the others fail"),
        pytest.param("echo 7 passed", ONCE, 0, id="the others fail once"),
        pytest.param("echo 7 passed", "import nothing_of_that_name", 2, id="the others cannot run"),
    ],
)
def test_what_both_print_and_how_they_end(tmp_path, unit, text, code):
    command, options = both(tmp_path, unit, text)
    done = subprocess.run(command, **options, timeout=120, check=False)
    assert done.returncode == code, done
    assert done.stdout.index("sidestep: the unit tests") < done.stdout.index("7 passed")
    if text == ONCE:
        assert done.stdout.rstrip().splitlines()[-1].startswith("1 passed")


def test_an_interrupt_is_left_to_those_who_clean_up(tmp_path):
    unit = "trap 'echo cleaned; exit 3' INT; i=0; while [ $i -lt 600 ]; do sleep 0.1; i=$((i + 1)); done"
    command, options = both(tmp_path, unit, SLEEPER)
    with child(command, **options, start_new_session=True) as process:
        until((tmp_path / "begun").exists, within=20, what="the test to begin")
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert output.index("swept") < output.index("cleaned")
