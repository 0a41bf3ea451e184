"""How the cost of a request grows with what is there: connections in use, and intercepts in force."""

from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass

from tests.bench.arena import HAPROXY_PLAIN, HAPROXY_TLS, Arena, tree
from tests.bench.cpu import cpu_seconds
from tests.bench.load import Load, wrk
from tests.bench.rows import varied_script
from tests.bench.sessions import sessions, spec
from tests.harness.scene import HOST, PLAIN_PORT, TLS_PORT

CONNECTIONS = (1, 100, 1000, 5000)
MANY = 1000
"""Connections whose opening takes more than a second."""
INTERCEPTS = (1, 10, 100)
PER_PORT = 64
"""Intercepts that one port takes; what is beyond stands on the pod's other port."""
DESCRIPTORS = 6
"""Descriptors that a pod proxy reckons with for each connection (`proxy.runtime.worker`), and RESERVED in all."""
RESERVED = 2000


@dataclass(frozen=True)
class Growth:
    """CPU microseconds per request at each point: (point, ours, haproxy's or 0)."""

    name: str
    points: tuple[tuple[int, float, float], ...]

    def lines(self) -> list[str]:
        """Rows of the text table."""
        base = self.points[0]
        rows = []
        for point, ours, theirs in self.points:
            beside = f" : {theirs:6.1f} (x{theirs / base[2]:.2f})" if theirs else ""
            rows.append(f"{self.name:34} {point:6d}   us/request {ours:6.1f} (x{ours / base[1]:.2f}){beside}")
        return rows


def connections(ring: Arena) -> Growth:
    """Plain HTTP/1.1 on 1 to 5,000 connections, all of them in use.

    Two runs of different length are subtracted: what opening the connections costs is in both.
    """
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - RESERVED) // DESCRIPTORS
    points = sorted({min(count, most) for count in CONNECTIONS})
    found = []
    for count in points:
        costs = []
        for pid, port in ((ring.sidestep(), PLAIN_PORT), (ring.peers["haproxy"], HAPROXY_PLAIN)):
            opening = 1 if count < MANY else 2
            runs = (opening, opening + 2)
            short, long = (_spent(ring, pid, port, connections=count, seconds=seconds) for seconds in runs)
            costs.append((long[0] - short[0]) / (long[1].requests - short[1].requests) * 1e6)
        found.append((count, costs[0], costs[1]))
    return Growth("h1 plain, connections in use", tuple(found))


def _spent(ring: Arena, pid: int, port: int, *, connections: int, seconds: int) -> tuple[float, Load]:
    before = cpu_seconds(tree(pid))
    load = wrk(ring.client, f"http://{HOST}:{port}/orders", seconds=seconds, connections=connections)
    return cpu_seconds(tree(pid)) - before, load


def intercepts(ring: Arena) -> Growth:
    """TLS, HTTP/1.1, varied heads, with 1 to 100 intercepts of different headers in the pod, none of which matches."""
    script = varied_script(ring.scene.folder)
    found = []
    for count in INTERCEPTS:
        more = count - 1
        here = min(more, PER_PORT - 1)
        specs = [spec(TLS_PORT, f"here-{number}", "ada") for number in range(here)]
        specs += [spec(PLAIN_PORT, f"there-{number}", "ada") for number in range(more - here)]
        held = sessions(ring.scene.node.socket, specs, handler=ring.scene.plain_handler.port)
        costs = []
        with held if specs else contextlib.nullcontext():
            for pid, port in ((ring.sidestep(), TLS_PORT), (ring.peers["haproxy"], HAPROXY_TLS)):
                before = cpu_seconds(tree(pid))
                load = wrk(ring.client, f"https://{HOST}:{port}/orders", seconds=2, script=script)
                assert load.failed == 0
                costs.append((cpu_seconds(tree(pid)) - before) / load.requests * 1e6)
        found.append((count, costs[0], costs[1]))
    return Growth("h1 TLS varied, intercepts", tuple(found))
