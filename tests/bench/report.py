"""The figures as JSON and as a chart (SVG): each ratio as a bar, its budget as a line across it."""

from __future__ import annotations

from html import escape
from typing import Any

from tests.bench.figure import Figure
from tests.bench.growth import Growth
from tests.bench.rows import Measured

_ROW, _LEFT, _WIDTH, _SCALE = 26, 330, 760, 1.6


def content(measured: list[Measured], figures: list[Figure], growth: list[Growth]) -> dict[str, Any]:
    """All figures with their budgets, as JSON values."""
    return {
        "ratios": [
            {
                "row": each.row.name,
                "peer": each.row.peer,
                "ratio": round(each.median, 4),
                "ratios": [round(ratio, 4) for ratio in each.ratios],
                "budget": each.row.budget,
                "stretch": each.row.stretch,
                "microseconds": [[round(cost, 2) for cost in costs] for costs in (each.ours, each.theirs)],
                "rates": [[round(rate, 2) for rate in pair] for pair in each.rates],
            }
            for each in measured
        ],
        "figures": [
            {"row": each.name, "value": round(each.value, 3), "unit": each.unit, "budget": each.budget}
            for each in figures
        ],
        "growth": {
            each.name: [[point, round(ours, 2), round(theirs, 2)] for point, ours, theirs in each.points]
            for each in growth
        },
    }


def chart(measured: list[Measured]) -> str:
    """CPU ratios to the peer; less is better."""
    height = _ROW * len(measured) + 60
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 40}" height="{height}" '
            'font-family="sans-serif" font-size="13">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="12" y="22" font-weight="bold">CPU of Sidestep as a ratio to the peer (1.0 = the same)</text>',
        f'<line x1="{_at(1.0):.1f}" x2="{_at(1.0):.1f}" y1="34" y2="{height - 28}" stroke="#bbb"/>',
    ]
    for index, each in enumerate(measured):
        top = 38 + index * _ROW
        low, high, median = min(each.ratios), max(each.ratios), each.median
        colour = "#2e7d32" if each.ok else "#c62828"
        lines += [
            f'<text x="12" y="{top + 14}">{escape(each.row.name)}</text>',
            f'<rect x="{_LEFT}" y="{top + 3}" width="{_at(median) - _LEFT:.1f}" height="14" fill="{colour}"/>',
            f'<line x1="{_at(low):.1f}" x2="{_at(high):.1f}" y1="{top + 10}" y2="{top + 10}" stroke="#222"/>',
            f'<text x="{_WIDTH - 20}" y="{top + 14}">{median:.{3 if median < 0.1 else 2}f}</text>',
        ]
        if each.row.budget is not None:
            budget = _at(each.row.budget)
            lines.append(
                f'<line x1="{budget:.1f}" x2="{budget:.1f}" y1="{top}" y2="{top + 20}" '
                'stroke="#555" stroke-dasharray="3,2"/>'
            )
    note = "bar: median; line: min to max; dashes: budget; the peer is haproxy where the row names no other"
    lines.append(f'<text x="12" y="{height - 10}" fill="#555">{note}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def _at(ratio: float) -> float:
    return _LEFT + min(ratio, _SCALE) / _SCALE * (_WIDTH - _LEFT - 60)
