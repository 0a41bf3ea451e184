"""Benchmarks: prints each figure beside its budget."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import (
    captures,
    crowd,
    extras,
    firewall,
    growth,
    history,
    inspection,
    opened,
    outbound,
    report,
    rows,
    taps,
)
from tests.bench.arena import Arena, arena
from tests.bench.figure import Figure
from tests.bench.growth import Growth
from tests.bench.rows import Measured, Row, measure
from tests.harness.scene import TLS_PORT


def main() -> int:
    """Measure and report; exit status 1 when a budget is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="CPU per request only, in less than a minute")
    parser.add_argument("--pairs", type=int, default=0, help="interleaved pairs per row (default 10, quick: 3)")
    parser.add_argument("--only", default="", help="only rows whose name contains this text")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--history", type=Path, help="add the figures and what they depend on to this folder, as JSON")
    parser.add_argument("--chart", type=Path, help="draw the ratios into this SVG file")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("network namespaces and eBPF programs need root")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    facts = history.facts()
    bench = Bench(options.pairs or (3 if options.quick else 10), options.only)
    bench.ratios(quick=options.quick)
    if not options.quick:
        bench.rest()
    for line in bench.table():
        print(line)
    content = {"facts": facts, **report.content(bench.measured, bench.figures, bench.growth)}
    if options.json is not None:
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if options.history is not None:
        print(f"added {history.add(options.history, content)}", file=sys.stderr)
    if options.chart is not None:
        options.chart.write_text(report.chart(bench.measured))
    return 0 if bench.ok else 1


class Bench:
    """What was measured so far; `only` limits it to what has that text in its name."""

    def __init__(self, pairs: int, only: str) -> None:
        self.pairs = pairs
        self.only = only
        self.measured: list[Measured] = []
        self.figures: list[Figure] = []
        self.growth: list[Growth] = []

    @property
    def ok(self) -> bool:
        """Whether every budget was met."""
        return all(figures.ok for figures in self.measured) and all(figure.ok for figure in self.figures)

    def table(self) -> list[str]:
        """Everything as text."""
        lines = [each.line() for each in self.measured] + [each.line() for each in self.figures]
        for each in self.growth:
            lines += each.lines()
        return lines

    def ratios(self, *, quick: bool) -> None:
        """Everything that is measured in pairs; the parts that need the same scene come after each other."""
        wanted = rows.cpu_rows(seconds=1)
        if not quick:
            wanted += [*rows.go_rows(), *rows.nginx_rows(), rows.connection_row("ecdsa", seconds=1), rows.wire_row()]
            if "MITMPROXY" in os.environ:
                wanted.append(rows.mitmproxy_row())
        peers = {row.peer for row in wanted if self._wants(row.name)} - {"haproxy"}
        with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder, arena(Path(folder), peers=peers) as ring:
            self._pairs(ring, wanted)
            if quick:
                return
            diverted = [rows.diverted_row(seconds=1)]
            if self._wants(diverted[0].name):
                with ring.scene.intercept(*rows.DIVERTED, port=TLS_PORT):
                    self._pairs(ring, diverted)
            wires = [each for each in self.measured if each.row.per == "GiB"]
            self.figures += [
                Figure("wire, throughput, to haproxy's", each.rate, "x", 1.0, at_least=True) for each in wires
            ]
            self._on(ring)
        rsa = [rows.connection_row("rsa", seconds=1)]
        if self._wants(rsa[0].name):
            with (
                tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder,
                arena(Path(folder), kind="rsa") as ring,
            ):
                self._pairs(ring, rsa)

    def _pairs(self, ring: Arena, wanted: Sequence[Row]) -> None:
        measured = [Measured(row) for row in wanted if self._wants(row.name)]
        self.measured += measured
        for number in range(self.pairs if measured else 0):
            for figures in measured:
                measure(ring, figures, ours_first=number % 2 == 0)
            print(f"pair {number + 1} of {self.pairs} of {len(measured)} rows", file=sys.stderr)

    def _on(self, ring: Arena) -> None:
        """What needs the same scene as the ratios."""
        if self._wants("throughput, latency"):
            figures, rate = extras.throughput(ring, requests=4000)
            self.figures += figures
            self.figures += extras.latency(ring, rate=rate, requests=3000)
        if self._wants("inspection rules"):
            self.figures += inspection.figures(ring, pairs=self.pairs)
        if self._wants("captures"):
            self.figures += captures.figures(ring, pairs=self.pairs)
        if self._wants("four live wiretaps"):
            self.figures += taps.live(ring)
        if self._wants("four dead wiretaps"):
            self.figures += taps.dead(ring)
        if self._wants("memory after load"):
            private = extras.private_mib(ring.sidestep())
            self.figures.append(Figure("memory of a proxy's own, after all this load", private, "MiB"))
        if self._wants("growth with connections"):
            self.growth.append(growth.connections(ring))
        if self._wants("growth with intercepts"):
            self.growth.append(growth.intercepts(ring))

    def rest(self) -> None:
        """What has scenes of its own."""
        alone: dict[str, Callable[[Path], Sequence[Figure]]] = {
            "intercept to first diverted": lambda folder: [extras.first_diverted(folder)],
            "attaching": lambda _: [extras.attaching()],
            "pods": extras.hundred_pods,
            "crowd": crowd.figures,
            "firewall": firewall.figures,
            "pods with firewalls": firewall.pods,
            "outbound": outbound.figures,
            "opened": opened.figures,
        }
        for name, run in alone.items():
            if self._wants(name):
                with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder:
                    self.figures += run(Path(folder))
                    print(name, file=sys.stderr)

    def _wants(self, name: str) -> bool:
        return self.only in name


if __name__ == "__main__":
    sys.exit(main())
