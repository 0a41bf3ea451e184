"""The programs of the tests explain themselves, and reject wrong arguments in one line instead of a traceback."""

import subprocess
import sys

import pytest

PROGRAMS = ["tests.soak", "tests.demo", "tests.bench", "tests.bench.crowd", "tests.bench.versions"]


def run(*words):
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_what_the_program_does(program):
    done = run(program, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {program}")
    assert done.stderr == ""


@pytest.mark.parametrize(
    "words",
    [
        ["tests.soak", "soon"],
        ["tests.soak", "0"],
        ["tests.soak", "nan"],
        ["tests.soak", "60", "seed"],
        ["tests.demo", "twice"],
        ["tests.bench", "--pairs", "many"],
        ["tests.bench.crowd", "--count", "many"],
        ["tests.bench.versions"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_an_error_without_a_traceback(words):
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: python -m {words[0]}")
    assert "Traceback" not in done.stderr


def test_what_tests_start_keeps_the_modules_that_it_compiles():
    words = [sys.executable, "-c", "import sys; sys.exit(sys.dont_write_bytecode)"]
    assert subprocess.run(words, timeout=60, check=False).returncode == 0
