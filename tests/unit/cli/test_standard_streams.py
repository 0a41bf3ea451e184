"""Standard streams as scripts leave them: closed, full, read by nobody, or unable to encode."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SIDESTEP = str(Path(sys.executable).parent / "sidestep")


def shell(script, **environment):
    return subprocess.run(
        ["bash", "-c", script.replace("SIDESTEP", SIDESTEP)],
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def test_a_reader_that_leaves_is_no_failure():
    result = shell("SIDESTEP --help | true; exit ${PIPESTATUS[0]}")
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_full_disk_is_told_in_one_line():
    result = shell("SIDESTEP --help >/dev/full")
    assert result.returncode == 1
    assert result.stderr == b"sidestep: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure_and_nothing_takes_their_numbers(closed):
    assert shell(f"SIDESTEP --help {closed}").returncode == 0
    result = shell(f"SIDESTEP status --socket /nonexistent/node.sock {closed}")
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr


def test_what_cannot_be_encoded_is_printed_as_escapes():
    result = shell("SIDESTEP status --socket /nonexistent/kn\u00f6del.sock", PYTHONIOENCODING="ascii")
    assert result.returncode == 1
    assert b"kn\\xf6del" in result.stderr
