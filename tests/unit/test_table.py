"""Tests that go through a table (`tests/harness/table.py`), in a real pytest."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.table import each_row

ROOT = Path(__file__).parents[2]
TESTS = """
import time
import pytest
from tests.harness.table import each_row

@each_row("number", range(9), ids="abcdefghi")
def test_names(number):
    assert number not in (2, 7)

@each_row("first, second", [(1, 2), (3, 4)])
@each_row("third", [10, 20])
def test_product(tmp_path, first, second, third):
    assert tmp_path.is_dir()
    assert first + second + third != 17

@pytest.mark.parametrize("mode", "xy")
@each_row("number", [1, 2])
def test_modes(number, mode):
    assert mode != "y"

@each_row("number", [1, 2])
def test_raises(number):
    with pytest.raises(ValueError):
        int("1" * number)

@pytest.mark.timeout(1)
@each_row("number", [0, 30, 40])
def test_late(number):
    time.sleep(number)

@each_row("number", [1, 2])
def test_skips(number):
    pytest.skip("not here") if number == 1 else pytest.fail("as it does")

@each_row("number", range(9))
def test_right(number):
    assert number < 9
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What pytest prints about all of them."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\n")
    (folder / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False).stdout


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(["2 of 9 rows failed: c, h", "row: c", "row: h", "assert 7 not in (2, 7)"], id="all are named"),
        pytest.param(["1 of 4 rows failed: 10, 3, 4"], id="tables multiply, and there are fixtures"),
        pytest.param(["test_modes[y] - ExceptionGroup: 2 of 2 rows failed: 1, 2"], id="within several tests"),
        pytest.param(["test_raises - ", "2 of 2 rows failed: 1, 2", "DID NOT RAISE"], id="an exception is missing"),
        pytest.param(["1 of 3 rows failed: 30", "Failed: Timeout"], id="no row runs when the time is over"),
        pytest.param(["2 of 2 rows failed: 1, 2", "a row cannot skip: not here", "as it does"], id="no row skips"),
        pytest.param(["6 failed, 2 passed"], id="nothing else fails"),
    ],
)
def test_what_it_says(printed, said):
    assert [each for each in said if each not in printed] == [], printed


def test_a_table_has_rows():
    with pytest.raises(AssertionError, match="a table without rows tests nothing"):
        each_row("number", [])
