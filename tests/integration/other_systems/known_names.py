"""Which names of the standard library a system has, from the type stubs that come with mypy (typeshed).

They say with `if sys.platform == …` what is where, and are independent of the machine that the test runs on.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SYSTEMS = ("linux", "darwin", "win32")
"""Values of `sys.platform`."""
MODULES = ("asyncio", "os", "select", "signal", "socket", "ssl", "time")
"""Modules whose names differ between systems, and which the command line uses."""
ABSENT = {
    "darwin": frozenset({"bcc"}),
    "win32": frozenset({"bcc", "fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}),
}
"""Modules that are absent as a whole."""
LOOP = {
    "darwin": frozenset[str](),
    "win32": frozenset(
        {"add_reader", "add_signal_handler", "add_writer", "create_unix_connection", "create_unix_server"}
    ),
}
"""Methods of an event loop that raise NotImplementedError (asyncio, "Platform Support")."""


@functools.cache
def names(module: str, system: str) -> frozenset[str]:
    """The names that a module has at its top on a system, for the Python that runs this."""
    return frozenset(_names(module, system))


def missing(module: str, system: str) -> frozenset[str]:
    """The names of Linux that a system lacks."""
    return names(module, "linux") - names(module, system)


def _stub(module: str) -> Path:
    found = importlib.util.find_spec("mypy")
    assert found is not None
    assert found.origin is not None
    base = Path(found.origin).parent / "typeshed" / "stdlib" / module.replace(".", "/")
    return base / "__init__.pyi" if base.is_dir() else base.with_suffix(".pyi")


def _names(module: str, system: str) -> Iterator[str]:
    for node in _top(ast.parse(_stub(module).read_text()).body, system):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.ImportFrom(module=source, names=aliases, level=level):
                for alias in aliases:
                    if alias.name != "*":
                        yield alias.asname or alias.name
                    elif source is not None:
                        yield from names(f"{module}.{source}" if level else source, system)


def _top(body: Iterable[ast.stmt], system: str) -> Iterator[ast.stmt]:
    """The statements that count on a system."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _top(node.body if _holds(node.test, system) else node.orelse, system)
        else:
            yield node


def _holds(test: ast.expr, system: str) -> bool:
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_holds(each, system) for each in values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return any(_holds(each, system) for each in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _holds(operand, system)
        case ast.Compare():
            asked = ast.unparse(test)
            code = compile(ast.Expression(test), asked, "eval")
            return bool(eval(code, {"sys": _System(system)}))
        case _:
            raise AssertionError(f"typeshed asks for what is not known here: {ast.unparse(test)}")


class _System:
    """`sys` as stubs ask it."""

    version_info = sys.version_info

    def __init__(self, platform: str) -> None:
        self.platform = platform
