"""The second run of tests that have failed (`tests/again.py`), with a real pytest."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONCE = """
from pathlib import Path
def test_once():
    mark = Path(__file__).with_suffix(".mark")
    was_there = mark.exists()
    mark.touch()
    assert was_there
"""


def first_and_again(folder, text, *cache):
    """The exit codes of both runs, and what the second printed."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "--cache-clear", "-n", "1", "test_it.py"]
    command += [option for name in cache for option in ("-o", f"cache_dir={name}")]
    first = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    command = [sys.executable, str(ROOT / "tests" / "again.py"), *cache]
    again = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return first.returncode, again.returncode, again.stdout + again.stderr


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        pytest.param(ONCE + "def test_other(): pass", 0, "1 passed", id="fails once"),
        pytest.param("def test_it(): assert 0", 1, "1 failed", id="fails always"),
        pytest.param("".join(f"def test_{n}(): assert 0\n" for n in range(5)), 1, "5 tests failed", id="too many"),
        pytest.param(ONCE + "def test_it(): assert 0", 1, "1 failed, 1 passed", id="one of two"),
    ],
)
def test_what_failed_runs_again_and_decides(tmp_path, text, code, said):
    first, again, output = first_and_again(tmp_path, text)
    assert (first, again) == (1, code), output
    assert said in output
    assert (code == 0) is ("test_it.py::test_once" in output and "failed, " not in output)


def test_each_of_two_runs_has_its_own_record(tmp_path):
    first, again, output = first_and_again(tmp_path, ONCE, "one")
    assert (first, again) == (1, 0), output
    assert not (tmp_path / ".pytest_cache").exists()


def test_nothing_runs_again_where_nothing_failed(tmp_path):
    first, again, output = first_and_again(tmp_path, "def test_it(): pass")
    assert (first, again) == (0, 1), output
    assert "0 tests failed" in output
