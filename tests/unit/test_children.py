"""No test hangs because it failed: a child that a `with` statement ends is killed when the statement's body fails."""

import ast
import sys
from pathlib import Path

import pytest

from tests.harness.processes import child

TESTS = Path(__file__).parents[1]
HARNESS = TESTS / "harness" / "processes.py"


def waited_for(tree):
    """The lines on which `Popen`'s own context manager is entered, which waits for the child whatever happened."""
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            yield from (call.lineno for call in calls if ast.unparse(call.func).rpartition(".")[2] == "Popen")


def test_no_test_waits_for_a_child_after_it_has_failed():
    paths = [path for path in TESTS.rglob("*.py") if path != HARNESS]
    found = [f"{path.relative_to(TESTS)}:{line}" for path in paths for line in waited_for(ast.parse(path.read_text()))]
    assert found == []


def test_it_is_found():
    assert list(waited_for(ast.parse("with open(a) as f, subprocess.Popen(b) as child:\n    pass"))) == [1]


def test_a_child_is_killed_when_the_body_fails():
    with pytest.raises(ZeroDivisionError), child([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        raise ZeroDivisionError
    assert process.returncode == -9


def test_a_child_may_end_by_itself():
    with child([sys.executable, "-c", "raise SystemExit(3)"]) as process:
        pass
    assert process.returncode == 3
