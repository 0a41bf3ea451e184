"""Run the benchmarks and print each figure beside its budget."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.bench.arena import arena
from tests.bench.extras import Figure, first_diverted, hundred_pods, latency, memory
from tests.bench.report import chart, write_json
from tests.bench.rows import Measured, connection_row, cpu_rows, diverted_row, go_rows, measure, wire_row


def main() -> int:
    """Measure and report; exit status 1 when a budget is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="CPU per request only, in about a minute")
    parser.add_argument("--pairs", type=int, default=0, help="interleaved pairs per row (default 10, quick: 3)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--chart", type=Path, help="draw the ratios into this SVG file")
    options = parser.parse_args()
    pairs = options.pairs or (3 if options.quick else 10)
    rows = cpu_rows(seconds=1)
    if not options.quick:
        rows += [diverted_row(seconds=1), *go_rows(seconds=1), connection_row("ecdsa", seconds=1), wire_row()]
    rows = [row for row in rows if options.only in row.name]
    measured = [Measured(row) for row in rows]
    extras: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder, arena(Path(folder)) as ring:
        for number in range(pairs):
            for figures in measured:
                measure(ring, figures.row, figures, ours_first=number % 2 == 0)
            print(f"pair {number + 1} of {pairs}", file=sys.stderr)
        if not options.quick and "latency".startswith(options.only):
            extras += latency(ring, requests=8000)
        if not options.quick and "memory".startswith(options.only):
            extras += memory(ring)
    if not options.quick and "pods".startswith(options.only):
        with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
            extras += hundred_pods(Path(folder))
    if not options.quick and "intercept".startswith(options.only):
        with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
            extras.append(first_diverted(Path(folder)))
    for line in (*measured, *extras):
        print(line.line())
    if options.json is not None:
        write_json(options.json, measured, extras)
    if options.chart is not None:
        options.chart.write_text(chart(measured))
    met = [*(figures.median <= figures.row.budget for figures in measured), *(figure.ok for figure in extras)]
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
