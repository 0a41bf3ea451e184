"""/healthz, /readyz and /metrics of a daemon in a cluster, over HTTP/1.1 without keep-alive.

Healthy: the event loop runs. Ready: the daemon serves; until then a rolling update waits with the old one. Metrics are
in the text format of Prometheus. Nothing here says anything about traffic or keys.

Anybody whom the cluster's network lets may connect, and must not be able to keep the kubelet out: it would restart the
daemon, which ends all sessions. What tells the kubelet from others is where it comes from, an address of the node. So
the node's addresses have a listener, a queue and a gate of their own (`health_gate`), and all others another one. The
addresses are looked at again every `REFRESH` seconds. Metrics are put together once a second at most, and in a share of
the time of at most `SHARE`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from sidestep.aio.tasks import Tasks
from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.netns import prefer, split_listener
from sidestep.node.api.health_gate import NODE, OTHERS, HealthGate
from sidestep.node.api.metrics import CONTENT_TYPE, exposition
from sidestep.observability.logs import get_logger
from sidestep.tunnel.views import StatusView

REFRESH = 30.0
"""Seconds between two looks at the node's addresses."""
METRICS_AGE = 1.0
"""Seconds for which metrics are given out again; Prometheus asks every 15 or so."""
SHARE = 0.02
"""Share of the time that may go into putting metrics together."""

Addresses = Callable[[], Iterable[IPv4Address | IPv6Address]]


class HealthServer:
    """Listens once `start`ed. `status` is None until the daemon is ready, and again when it stops.

    `node_addresses` are those from which the kubelet comes; it may raise KernelError and
    ConfigurationError.
    """

    def __init__(
        self, *, port: int, on_crash: Callable[[str, BaseException], None], node_addresses: Addresses = tuple
    ) -> None:
        self.port = port
        self.status: Callable[[], StatusView] | None = None
        self._node_addresses = node_addresses
        self._tasks = Tasks("health", on_crash=on_crash)
        self._gates: tuple[HealthGate, ...] = ()
        self._metrics: tuple[float, bytes] | None = None
        self._log = get_logger("health")

    async def start(self) -> None:
        """Listen on all addresses of the pod: the kubelet asks from the node.

        Raises KernelError, ConfigurationError.
        """
        known = frozenset(self._node_addresses())
        first, second = split_listener(self.port, backlogs=(NODE.backlog, OTHERS.backlog))
        self.port = first.getsockname()[1]
        self._gates = (HealthGate(first, NODE, answer=self._answer), HealthGate(second, OTHERS, answer=self._answer))
        prefer(first, known)
        for gate in self._gates:
            gate.open()
        self._tasks.start(self._refresh(lambda found: prefer(first, found), known), name="addresses")

    async def aclose(self) -> None:
        """Listen no more."""
        await self._tasks.aclose()
        for gate in self._gates:
            gate.close()
        self._gates = ()

    async def _refresh(
        self,
        apply: Callable[[frozenset[IPv4Address | IPv6Address]], None],
        known: frozenset[IPv4Address | IPv6Address],
    ) -> None:
        while True:
            await asyncio.sleep(REFRESH)
            try:
                found = frozenset(self._node_addresses())
                if found != known:
                    apply(found)
                    known = found
            except (KernelError, ConfigurationError) as error:
                self._log.warning("the node's addresses cannot be read", reason=str(error))

    def _answer(self, target: str) -> bytes:
        match target:
            case "/healthz":
                return _response("200 OK", b"ok\n")
            case "/readyz" if self.status is None:
                return _response("503 Service Unavailable", b"starting or stopping\n")
            case "/readyz":
                return _response("200 OK", b"ok\n")
            case "/metrics":
                return _response("200 OK", self._exposition())
            case _:
                return _response("404 Not Found", b"/healthz, /readyz or /metrics\n")

    def _exposition(self) -> bytes:
        if self.status is None:
            return b""
        began = time.monotonic()
        if self._metrics is None or began >= self._metrics[0]:
            text = exposition(self.status())
            ended = time.monotonic()
            self._metrics = (ended + max(METRICS_AGE, (ended - began) / SHARE), text)
        return self._metrics[1]


def _response(status: str, body: bytes) -> bytes:
    fields = (f"content-type: {CONTENT_TYPE}", f"content-length: {len(body)}", "connection: close")
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode() + body
