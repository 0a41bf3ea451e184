"""What a capture costs: CPU per request of the pod proxy with one as a ratio to without, and after it to before.

A capture shares the budget of copies, so that under a load without pause it leaves many requests out: the ratio is what
it costs at most.
"""

from __future__ import annotations

import contextlib
import re
import statistics
from collections.abc import Iterator

from tests.bench.arena import Arena, tree
from tests.bench.cpu import cpu_seconds
from tests.bench.figure import Figure
from tests.bench.rows import Row, cpu_rows
from tests.harness.processes import child
from tests.harness.waiting import until
from tests.harness.warm import SIDESTEP

NOISE = 1.05
"""Requests after a capture to those before it: what two runs of the same differ by."""
ROWS = ("h1 TLS, identical heads", "h2 TLS 16x1")
_SAID = re.compile(r"\d+ packets of \d+ connections")


@contextlib.contextmanager
def _captured(ring: Arena, row: Row, snap: str) -> Iterator[None]:
    """A capture of the row's port, which nobody looks at."""
    scene = ring.scene
    line = [SIDESTEP, "capture", "orders", "-n", "shop", "--port", str(row.ours), "--snap", snap, "-w", "-"]
    log = scene.folder / f"capture-{snap}.log"
    with (
        open("/dev/null", "wb") as nowhere,
        child([*line, "--socket", scene.node.socket], stdout=nowhere, stderr=log.open("wb")) as running,
    ):
        try:
            until(lambda: "Capturing" in log.read_text(), within=20, what=lambda: f"the capture: {log.read_text()}")
            yield
        finally:
            running.terminate()
    assert _SAID.search(log.read_text()), log.read_text()


def _cost(ring: Arena, row: Row) -> float:
    """CPU seconds of the pod proxy per request."""
    pids = tree(ring.sidestep())
    before = cpu_seconds(pids)
    load = row.run(ring, row.ours)
    assert load.failed == 0, f"{row.name}: {load.failed} requests failed"
    return (cpu_seconds(pids) - before) / load.requests


def figures(ring: Arena, *, pairs: int) -> list[Figure]:
    """The median of the ratios of `pairs` pairs for each kind of load and capture."""
    made = []
    for row in (each for each in cpu_rows(seconds=1) if each.name in ROWS):
        _cost(ring, row)  # warm
        rests = []
        for snap in ("heads", "all"):
            ratios = []
            for _ in range(pairs):
                before = _cost(ring, row)
                with _captured(ring, row, snap):
                    during = _cost(ring, row)
                after = _cost(ring, row)
                ratios.append(2 * during / (before + after))
                rests.append(after / before)
            made.append(Figure(f"a capture of {snap} to none, {row.name}", statistics.median(ratios), "x"))
        made.append(Figure(f"after a capture to before, {row.name}", statistics.median(rests), "x", NOISE))
    return made
