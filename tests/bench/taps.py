"""What four wiretaps cost the clients of a port: throughput with them as a ratio to without, and latency at a rate."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence

from tests.bench.arena import Arena
from tests.bench.figure import Figure
from tests.bench.load import Load, h2load, wrk
from tests.harness.processes import Process
from tests.harness.scene import HOST, PLAIN_PORT
from tests.harness.taps import wiretap
from tests.harness.waiting import until

_TENTHS = """
local n = 0
request = function()
  n = n + 1
  return wrk.format("GET", "/tenth/" .. (n % 10) .. "/orders", {["Host"] = "orders.shop.test"})
end
"""
CONNECTIONS = 32
PACE = 100.0
"""Requests a second of the paced load."""
NOBODY = 1
"""A port on which no handler listens."""


@contextlib.contextmanager
def _handler(ring: Arena) -> Iterator[int]:
    """A handler's port, in a process of its own."""
    folder = ring.scene.folder
    words = [sys.executable, "-m", "tests.harness.handler", "--any"]
    with Process(words, log=folder / "tap-handler.log", stdout=folder / "tap-handler.out") as process:
        until(process.output, within=20, what="the wiretaps' handler")
        yield int(process.output().split()[0])


@contextlib.contextmanager
def _tapped(ring: Arena, handler: int, prefixes: Sequence[str]) -> Iterator[None]:
    """A wiretap for each prefix, begun and warm: what copies may take in one burst is taken."""
    with contextlib.ExitStack() as stack:
        for prefix in prefixes:
            options = ("--http-path-prefix", prefix, "--plaintext")
            stack.enter_context(wiretap(ring.scene.node, f"{handler}:{PLAIN_PORT}", *options))
        _saturated(ring, seconds=1)
        yield


def _saturated(ring: Arena, *, seconds: int) -> Load:
    script = ring.scene.folder / "tenths.lua"
    script.write_text(_TENTHS)
    ring.sidestep()
    url = f"http://{HOST}:{PLAIN_PORT}/tenth/0/orders"
    load = wrk(ring.client, url, seconds=seconds, connections=CONNECTIONS, script=script)
    assert load.failed == 0, f"{load.failed} requests failed"
    return load


def _paced(ring: Arena) -> Load:
    url = f"http://{HOST}:{PLAIN_PORT}/tenth/0/orders"
    load = h2load(ring.client, url, requests=500, connections=4, http1=True, rate=PACE)
    assert load.failed == 0, f"{load.failed} requests failed"
    return load


def _throughput(ring: Arena, handler: int, prefixes: Sequence[str], *, turns: int) -> float:
    """With the wiretaps to without: the median of pairs, whose other side is the mean of the runs around it."""
    ratios = []
    for _ in range(turns):
        before = _saturated(ring, seconds=3).rate
        with _tapped(ring, handler, prefixes):
            during = _saturated(ring, seconds=3).rate
        ratios.append(2 * during / (before + _saturated(ring, seconds=3).rate))
    return statistics.median(ratios)


def live(ring: Arena, *, turns: int = 5) -> list[Figure]:
    """Four wiretaps with a handler, each of another tenth of the requests."""
    with _handler(ring) as handler:
        ratio = _throughput(ring, handler, [f"/tenth/{tenth}/" for tenth in range(4)], turns=turns)
    return [Figure("four live wiretaps of 10 %, throughput to without", ratio, "x", 0.9, at_least=True)]


def dead(ring: Arena, *, turns: int = 5) -> list[Figure]:
    """Four wiretaps of all requests whose handlers' ports refuse."""
    ratio = _throughput(ring, NOBODY, ["/"] * 4, turns=turns)
    without, during = [], []
    for _ in range(turns):
        without.append(_paced(ring).p99 * 1000)
        with _tapped(ring, NOBODY, ["/"] * 4):
            during.append(_paced(ring).p99 * 1000)
    most = 1.3 * statistics.median(without)
    return [
        Figure("four dead wiretaps, throughput to without", ratio, "x", 0.97, at_least=True),
        Figure("four dead wiretaps, latency p99 at 100/s", statistics.median(during), "ms", most),
        Figure("no wiretap, latency p99 at 100/s", statistics.median(without), "ms"),
    ]
