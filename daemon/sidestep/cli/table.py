"""Text tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidestep.model.text import harmless


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Align rows under a head, two spaces apart, as kubectl does. Escapes control characters; empty cells show as
    `-`.
    """
    lines = [tuple(head), *(tuple(harmless(cell) or "-" for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
