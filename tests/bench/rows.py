"""What is compared: one function per row makes a run against a port and says how many requests it took."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.arena import (
    BIG,
    HAPROXY_DIVERTED,
    HAPROXY_H2,
    HAPROXY_NEW,
    HAPROXY_PLAIN,
    HAPROXY_TCP,
    HAPROXY_TLS,
    Arena,
    tree,
)
from tests.bench.cpu import cpu_seconds
from tests.bench.load import Load, download, h2load, wrk
from tests.bench.peers import GO_TLS, MITMPROXY_TLS, NGINX_TLS
from tests.harness.scene import HOST, PLAIN_PORT, TLS_PORT

Runner = Callable[[Arena, int], Load]
"""(arena, port) -> load."""

_VARIED = """
local n = 0
request = function()
  n = n + 1
  return wrk.format("GET", "/orders/" .. n .. "/lines?page=" .. (n % 7), {
    ["Host"] = "orders.shop.test", ["User-Agent"] = "bench/1.0", ["Accept"] = "application/json",
    ["X-Request-Id"] = "7f3c9a2e-" .. n, ["X-Forwarded-For"] = "10.9.8." .. (n % 250),
    ["Traceparent"] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0b" .. (100000 + n) .. "-01",
    ["Cookie"] = "session=abcdef" .. n .. "; theme=dark", ["Accept-Language"] = "en-GB,en;q=0.8",
    ["Authorization"] = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." .. n,
    ["Cache-Control"] = "no-cache"})
end
"""


@dataclass(frozen=True)
class Row:
    """A comparison of CPU per request with a peer. `budget` and `stretch` are ratios; None: for information."""

    name: str
    run: Runner
    ours: int
    theirs: int
    budget: float | None
    stretch: float | None
    peer: str = "haproxy"
    per: str = "request"


@dataclass
class Measured:
    """CPU microseconds per request in turn, and their ratios pair by pair."""

    row: Row
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ok(self) -> bool:
        return self.row.budget is None or self.median <= self.row.budget

    @property
    def rate(self) -> float:
        """Requests per second as a ratio to the peer's."""
        return statistics.median(one / other for one, other in self.rates)

    def line(self) -> str:
        """The row of the text table."""
        budget = "" if self.row.budget is None else f"budget {self.row.budget:.2f} {'ok' if self.ok else 'MISS'}"
        low, high = min(self.ratios), max(self.ratios)
        return (
            f"{self.row.name:44} {self.median:6.3f}  [{low:.3f}-{high:.3f}]  {budget:16}"
            f"  us/{self.row.per} {statistics.median(self.ours):8.1f} : {statistics.median(self.theirs):8.1f}"
        )


def varied_script(folder: Path) -> Path:
    """A wrk script whose requests differ in path and headers."""
    script = folder / "varied.lua"
    script.write_text(_VARIED)
    return script


def _h1(scheme: str, *, varied: bool, seconds: float) -> Runner:
    def run(arena: Arena, port: int) -> Load:
        url = f"{scheme}://{HOST}:{port}/orders"
        if varied:
            return wrk(arena.client, url, seconds=seconds, script=varied_script(arena.scene.folder))
        return wrk(arena.client, url, seconds=seconds, headers=("Host: orders.shop.test", "User-Agent: bench/1.0"))

    return run


def _h2(*, streams: int, connections: int, unique: bool, requests: int) -> Runner:
    def run(arena: Arena, port: int) -> Load:
        url = f"https://{HOST}:{port}/orders"
        paths = None
        if unique:
            paths = arena.scene.folder / f"paths-{port}.txt"
            if not paths.exists():
                paths.write_text("".join(f"{url}/{number}/lines\n" for number in range(20000)))
        return h2load(arena.client, url, requests=requests, connections=connections, streams=streams, paths=paths)

    return run


def _one_percent(*, requests: int) -> Runner:
    def run(arena: Arena, port: int) -> Load:
        url = f"https://{HOST}:{port}"
        paths = arena.scene.folder / f"diverted-{port}.txt"
        if not paths.exists():
            kinds = ("diverted" if number % 100 == 0 else "orders" for number in range(10000))
            paths.write_text("".join(f"{url}/{kind}/{number}/lines\n" for number, kind in enumerate(kinds)))
        return h2load(arena.client, url, requests=requests, connections=4, streams=16, paths=paths)

    return run


DIVERTED = ("--http-path-prefix", "/diverted/")
"""Options of the second intercept, which must be there while `diverted_row` is measured."""


def diverted_row(*, seconds: float) -> Row:
    """HTTP/2 with one stream in a hundred diverted: by path to the handler here, to another backend in haproxy."""
    run = _one_percent(requests=int(12000 * seconds))
    return Row("h2 TLS 4x16, 1 % of the streams diverted", run, TLS_PORT, HAPROXY_DIVERTED, 1.5, 1.2)


def _new_connections(*, seconds: float) -> Runner:
    def run(arena: Arena, port: int) -> Load:
        headers = ("Host: orders.shop.test", "Connection: close")
        return wrk(arena.client, f"https://{HOST}:{port}/orders", seconds=seconds, headers=headers)

    return run


def _wire(arena: Arena, port: int) -> Load:
    return download(arena.client, HOST, port, size=BIG, times=1)


def connection_row(kind: str, *, seconds: float) -> Row:
    """New TLS connections: CPU per connection; the budget is 0.8 times as many per CPU second."""
    name = f"new TLS connections, {kind.upper()}"
    return Row(name, _new_connections(seconds=seconds), TLS_PORT, HAPROXY_NEW, 1 / 0.8, 1.0, per="connection")


def _small_h1(counts: dict[int, int], *, default: int) -> Runner:
    """HTTP/1.1 over TLS, so many requests on each port: a peer that is a hundred times slower gets fewer of them."""

    def run(arena: Arena, port: int) -> Load:
        url = f"https://{HOST}:{port}/orders"
        return h2load(arena.client, url, requests=counts.get(port, default), connections=4, http1=True)

    return run


def go_rows() -> list[Row]:
    """The same job done by the reverse proxy of Go's standard library."""
    h1 = _small_h1({}, default=3000)
    h2 = _h2(streams=16, connections=4, unique=True, requests=5000)
    return [
        Row("h1 TLS, against Go's ReverseProxy", h1, TLS_PORT, GO_TLS, 0.6, 0.4, "go"),
        Row("h2 TLS 4x16, against Go's ReverseProxy", h2, TLS_PORT, GO_TLS, 0.6, 0.4, "go"),
    ]


def nginx_rows() -> list[Row]:
    """The same job done by nginx, whose connections to the app are HTTP/1.1 where the client's are HTTP/2, too."""
    h1 = _small_h1({}, default=12000)
    h2 = _h2(streams=16, connections=4, unique=True, requests=12000)
    return [
        Row("h1 TLS, against nginx", h1, TLS_PORT, NGINX_TLS, None, None, "nginx"),
        Row("h2 TLS 4x16, against nginx", h2, TLS_PORT, NGINX_TLS, None, None, "nginx"),
    ]


def mitmproxy_row() -> Row:
    """The same job done by mitmproxy."""
    run = _small_h1({MITMPROXY_TLS: 200}, default=3000)
    return Row("h1 TLS, against mitmproxy", run, TLS_PORT, MITMPROXY_TLS, 0.04, 0.04, "mitmproxy")


def wire_row() -> Row:
    """CPU per GiB of a wire between plaintext sockets, against haproxy's tcp mode."""
    return Row("wire, CPU per GiB", _wire, PLAIN_PORT, HAPROXY_TCP, 1.0, 1.0, per="GiB")


def cpu_rows(*, seconds: float) -> list[Row]:
    """The CPU-per-request rows of the budgets."""
    tls, plain, h2 = (TLS_PORT, HAPROXY_TLS), (PLAIN_PORT, HAPROXY_PLAIN), (TLS_PORT, HAPROXY_H2)
    count = int(12000 * seconds)
    return [
        Row("h1 TLS, identical heads", _h1("https", varied=False, seconds=seconds), *tls, 1.15, 1.0),
        Row("h1 TLS, varied heads", _h1("https", varied=True, seconds=seconds), *tls, 1.35, 1.0),
        Row("h1 plain, identical heads", _h1("http", varied=False, seconds=seconds), *plain, 1.2, 1.0),
        Row("h1 plain, varied heads", _h1("http", varied=True, seconds=seconds), *plain, 1.45, 1.0),
        Row("h2 TLS 4x16, unique paths", _h2(streams=16, connections=4, unique=True, requests=count), *h2, 1.2, 0.9),
        Row("h2 TLS 16x1", _h2(streams=1, connections=16, unique=False, requests=count), *h2, 1.4, 0.9),
    ]


def measure(arena: Arena, figures: Measured, *, ours_first: bool) -> None:
    """One pair."""
    row = figures.row
    sides = [(arena.sidestep(), row.ours, figures.ours), (arena.peers[row.peer], row.theirs, figures.theirs)]
    rates = {}
    for pid, port, costs in sides if ours_first else reversed(sides):
        pids = tree(pid)
        before = cpu_seconds(pids)
        load = row.run(arena, port)
        told = f"{row.name}: {load.failed} requests failed on port {port}, {load.requests} did not"
        assert load.requests > 0, told
        assert load.failed == 0, told
        assert arena.sidestep() == arena.proxy, "the pod proxy was replaced during the run"
        costs.append((cpu_seconds(pids) - before) / load.requests * 1e6)
        rates[port] = load.rate
    figures.rates.append((rates[row.ours], rates[row.theirs]))
