"""Tables with hundreds of rows, in one test each.

`pytest.mark.parametrize` makes a test of every row, and pytest spends five milliseconds on each before and after its
code runs; most rows of our tables take one. A test with `each_row` goes through its whole table instead:

    every row runs, whether or not others fail
    if any fails the test fails, with a group of all failures whose message names all rows that failed
    if the time of the test is over (pytest-timeout) no further row runs

The rows share the fixtures of the test. So this is for tests whose rows leave these as they found them.
"""

from __future__ import annotations

import functools
import inspect
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Rows = list[tuple[str, dict[str, object]]]


def each_row(
    arguments: str, rows: Iterable[object], *, ids: Iterable[object] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Use in the place of `pytest.mark.parametrize`, with the same parameters; several of them multiply, likewise.

    `arguments` are names with commas between them; `pytest.param` is not for these rows. Without `ids`, the name of a
    row is what it consists of, or its number where that is long.
    """
    names = [each.strip() for each in arguments.split(",")]
    alone = len(names) == 1 and "," not in arguments
    table = [(row,) if alone else tuple(row) for row in rows]
    labels = [str(each) for each in ids] if ids is not None else [_label(at, row) for at, row in enumerate(table)]
    named = [(label, dict(zip(names, row, strict=True))) for label, row in zip(labels, table, strict=True)]
    assert named, "a table without rows tests nothing"

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        return _test(*_multiplied(function, named))

    return decorate


def _multiplied(function: Callable[..., None], named: Rows) -> tuple[Callable[..., None], Rows]:
    """The function that takes rows, and its rows times these if it has some already."""
    inner, first = getattr(function, "each_row", (function, [("", {})]))
    return inner, [(f"{label}, {more}".lstrip(", "), row | values) for label, row in first for more, values in named]


def _test(function: Callable[..., None], rows: Rows) -> Callable[..., None]:
    @functools.wraps(function)
    def test(**fixtures: object) -> None:
        failed: list[str] = []
        failures: list[BaseException] = []
        timed = _has_timer()
        for label, row in rows:
            try:
                function(**fixtures, **row)
            except (Exception, pytest.fail.Exception, pytest.skip.Exception) as raised:  # noqa: BLE001 # raised below
                is_skip = isinstance(raised, pytest.skip.Exception)
                failure = AssertionError(f"a row cannot skip: {raised}") if is_skip else raised
                failure.add_note(f"row: {label}")
                failed.append(label)
                failures.append(failure)
                if timed and not _has_timer():
                    break
        if failures:
            raise BaseExceptionGroup(f"{len(failed)} of {len(rows)} rows failed: {', '.join(failed)}", failures)

    parameters = inspect.signature(function).parameters
    kept = [each for name, each in parameters.items() if name not in rows[0][1]]
    vars(test).update(__signature__=inspect.Signature(kept), each_row=(function, rows))
    return test


def _label(at: int, row: tuple[object, ...]) -> str:
    shown = ", ".join(map(repr, row))
    return shown if len(shown) <= 80 else f"number {at}"


def _has_timer() -> bool:
    """Whether pytest-timeout waits for the end of this test; when it has interrupted it, it does so no more."""
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0
