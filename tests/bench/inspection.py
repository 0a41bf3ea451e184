"""What inspection costs: CPU per request with a policy as a ratio to without.

Twelve rules that no request meets, without and with a record of every request (`log.samplePercent: 100`), are part of
`make bench`. This module as a script measures further policies, says how many of the requests that were to be told
have a record (records are bounded: `proxy.control.record_queue.RATE`), and compares ports whose policies have gone with
what they were before there were any.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.arena import Arena, arena, tree
from tests.bench.cpu import cpu_seconds
from tests.bench.figure import Figure
from tests.bench.load import Load, wrk
from tests.bench.rows import Row, cpu_rows
from tests.harness.inspection import FILE, policy, rule, wait_programmed
from tests.harness.manifests import Document
from tests.harness.scene import HOST, TLS_PORT
from tests.harness.suricata import config_map, counted, ids_policy, started, wait_fed
from tests.harness.waiting import until

BUDGET = 1.05
"""Twelve rules to none (docs/design.md, "Budgets") ..."""
LOGGED = 1.35
"""... and the same with every request logged, ..."""
FED = 1.25
"""... and the same with the connections fed to an IDS."""
NONE = 1.05
"""No policy: 1.00, within what such runs differ by themselves."""

_PROBE = "/never-0"
"""A path that the first rule blocks."""
_IDS_RULES = "".join(
    f'alert http any any -> any any (msg:"n{number}"; http.uri; content:"/never-{number}"; sid:{number};)\n'
    for number in range(1, 13)
)
_PATTERNS = [{"builtin": "CardNumber"}, {"regex": "sk_live_[0-9a-z]{24}"}]
_BODY = """
local n = 0
request = function()
  n = n + 1
  local lines = string.rep('{"article": "A-77", "count": ' .. n .. ', "note": "none"}, ', 20)
  return wrk.format("POST", "/orders/" .. n, {["Content-Type"] = "application/json"}, "[" .. lines .. "0]")
end
"""


def _rules() -> list[Document]:
    """Rules about paths, fields and query parameters, as an operator might write."""
    paths = [rule(f"/never-{number}", name=f"path-{number}") for number in range(6)]
    fields = [{"match": {"headers": [{"name": f"x-never-{number}", "value": "1"}]}} for number in range(4)]
    queries = [{"match": {"queryParameters": [{"name": f"never{number}", "match": "Present"}]}} for number in range(2)]
    return [*paths, *({"name": f"r{at}", "action": "Block", **each} for at, each in enumerate((*fields, *queries)))]


@dataclass(frozen=True)
class Kind:
    """A policy whose cost is measured; `sample` is its `samplePercent`, `more` are rules beside the twelve."""

    name: str
    sample: int = 0
    more: Sequence[Document] = ()
    budget: float | None = None
    ids: bool = False
    """A Suricata is fed, with twelve rules that nothing meets either."""


RULES = Kind("12 inspection rules to none", budget=BUDGET)
ALL_LOGGED = Kind("12 inspection rules and every request logged to none", 100, budget=LOGGED)
KINDS = (
    RULES,
    Kind("12 rules, 5 % of the requests logged", 5),
    ALL_LOGGED,
    Kind("12 rules, patterns in requests", more=[{"name": "sent", "action": "Alert", "patterns": _PATTERNS}]),
    Kind(
        "12 rules, patterns in responses",
        more=[{"name": "told", "direction": "Response", "action": "Alert", "patterns": _PATTERNS}],
    ),
    Kind("12 rules and Suricata fed", budget=FED, ids=True),
)


@dataclass
class Cost:
    """Of one kind of load with one policy: ratios, and how many records there were of how many that were due."""

    kind: Kind
    row: Row
    ratios: list[float] = field(default_factory=list)
    microseconds: list[float] = field(default_factory=list)
    records: int = 0
    due: int = 0
    gone: list[float] = field(default_factory=list)
    """Each run after the policy to the one before it."""
    unfed: int = 0
    """Connections of which an IDS did not get everything."""

    @property
    def figure(self) -> Figure:
        return Figure(f"{self.kind.name}, {self.row.name}", statistics.median(self.ratios), "x", self.kind.budget)

    def line(self) -> str:
        """The row of the text table."""
        words = f"{self.figure.line():80} ({min(self.ratios):.2f}-{max(self.ratios):.2f})"
        words += f", {statistics.median(self.microseconds):.1f} us without"
        if self.kind.ids:
            words += f", {self.unfed} connections not fed whole"
        return words if not self.due else f"{words}, {100 * self.records / self.due:.0f} % recorded"


@contextlib.contextmanager
def _inspected(ring: Arena, kind: Kind) -> Iterator[None]:
    """The policy on every port of the pod, for a while."""
    scene = ring.scene
    more = {"log": {"samplePercent": kind.sample}}
    engines = len(started(scene))
    if kind.ids:
        scene.node.write("config.yaml", config_map(_IDS_RULES))
        more["ids"] = ids_policy()["spec"]["ids"]
    path = scene.node.write(FILE, policy(*_rules(), *kind.more, **more))
    wait_programmed(scene)
    if kind.ids:
        wait_fed(scene, after=engines)
    assert scene.get(_PROBE).status == 403
    yield
    path.unlink()
    until(lambda: scene.get(_PROBE).status == 200, within=10, what="the policy to go")


def _cpu(ring: Arena, row: Row) -> tuple[float, int]:
    """CPU seconds of the pod proxy per request, and the number of requests."""
    pids = tree(ring.sidestep())
    before = cpu_seconds(pids)
    load = row.run(ring, row.ours)
    assert load.failed == 0, f"{row.name}: {load.failed} requests failed"
    return (cpu_seconds(pids) - before) / load.requests, load.requests


def _received(ring: Arena) -> int:
    """Records that the daemon has got so far."""
    status = ring.scene.node.status()
    return 0 if status is None else status["node"]["counters"].get("records_received", 0)


def _unfed(ring: Arena) -> int:
    """Connections of which an IDS has not got everything so far."""
    return counted(ring.scene, "ids_unfed") + counted(ring.scene, "ids_cut")


def _measure(ring: Arena, row: Row, kind: Kind, pairs: int) -> Cost:
    """Each run with the policy to the mean of the runs around it."""
    cost = Cost(kind, row)
    for _ in range(pairs):
        before, _ = _cpu(ring, row)
        with _inspected(ring, kind):
            received, unfed = _received(ring), _unfed(ring)
            during, requests = _cpu(ring, row)
            cost.records += _received(ring) - received
            cost.unfed += _unfed(ring) - unfed
            cost.due += requests * kind.sample // 100
        after, _ = _cpu(ring, row)
        cost.ratios.append(2 * during / (before + after))
        cost.gone.append(after / before)
        cost.microseconds.append((before + after) / 2 * 1e6)
    return cost


def figures(ring: Arena, *, pairs: int) -> list[Figure]:
    """The median of the ratios of `pairs` pairs for each kind of load."""
    made = []
    for row in cpu_rows(seconds=1):
        _cpu(ring, row)  # warm
        made += [_measure(ring, row, kind, pairs).figure for kind in (RULES, ALL_LOGGED)]
    return made


def _bodies(arena: Arena, port: int) -> Load:
    script = arena.scene.folder / "bodies.lua"
    script.write_text(_BODY)
    return wrk(arena.client, f"https://{HOST}:{port}/orders", seconds=1, script=script)


def main() -> None:
    """Measure all kinds of policies with all kinds of load, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.inspection", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="pairs per line")
    parser.add_argument("--only", default="", help="only lines whose text contains this")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = [*cpu_rows(seconds=1), Row("h1 TLS, bodies of 1 KiB", _bodies, TLS_PORT, 0, 1.0, 1.0)]
    with tempfile.TemporaryDirectory(prefix="sidestep-bench-") as folder, arena(Path(folder)) as ring:
        for row in rows:
            kinds = [kind for kind in KINDS if options.only in f"{kind.name}, {row.name}"]
            if kinds:
                _cpu(ring, row)  # warm
            gone = []
            for kind in kinds:
                cost = _measure(ring, row, kind, options.pairs)
                gone += cost.gone
                print(cost.line(), flush=True)
            if gone:
                figure = Figure(f"no policy any more to none before, {row.name}", statistics.median(gone), "x", NONE)
                print(f"{figure.line():80} ({min(gone):.2f}-{max(gone):.2f})", flush=True)


if __name__ == "__main__":
    main()
