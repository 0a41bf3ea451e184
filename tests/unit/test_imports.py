"""No import circle in the whole tree, imports for type checking and inside functions included.

import-linter (`make check`) watches layers between packages; it leaves out what is imported for types only. A circle of
that kind does no harm when the program runs, and still means that none of its modules can be understood alone.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sidestep

ROOT = Path(sidestep.__file__).parent


def sources() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, modules: dict[str, Path]) -> set[str]:
    """The modules of ours that a source imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules else node.module)
    return found & modules.keys()


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, each module importing the next; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({}, []),
        ({"a": {"b"}, "b": {"c"}}, []),
        ({"a": {"b"}, "b": {"a"}}, ["a", "b"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c"]),
    ],
)
def test_circles_are_found(graph, found):
    assert sorted(set(circle(graph))) == found


def test_every_way_to_import_counts():
    modules = dict.fromkeys(("p", "p.a", "p.b", "p.c", "p.d"), Path())
    source = """
from __future__ import annotations
import os, p.a
from p import b
from p.c import name
if TYPE_CHECKING:
    from p.d import Other
"""
    assert imported(source, modules) == {"p.a", "p.b", "p.c", "p.d"}
    assert imported("def late():\n    from p import d, name", modules) == {"p", "p.d"}


def test_no_module_imports_itself_through_others():
    modules = sources()
    assert len(modules) > 300
    graph = {name: imported(path.read_text(), modules) - {name} for name, path in modules.items()}
    assert circle(graph) == []
