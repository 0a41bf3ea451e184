"""/healthz, /readyz and /metrics of a daemon in a cluster, over HTTP/1.1 without keep-alive.

Healthy: the event loop runs. Ready: the daemon serves; until then a rolling update keeps the previous daemon. Metrics
use the text format of Prometheus. Nothing here reveals traffic or keys.

Anybody in the cluster's network may connect, and must not be able to lock out the kubelet, which would then restart the
daemon and thereby end all sessions. The kubelet is recognised by its source, an address of the node. Therefore
connections to the node's addresses have a listener, a queue and a gate of their own (`health_gate`), and all others use
another one. The addresses are checked every `REFRESH` seconds. Metrics are generated at most once a second, and within
a fraction `SHARE` of the time.
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
"""Seconds between two checks of the node's addresses."""
METRICS_AGE = 1.0
"""Seconds for which generated metrics are reused. Prometheus scrapes about every 15 s."""
SHARE = 0.02
"""Fraction of the time for generating metrics."""

Addresses = Callable[[], Iterable[IPv4Address | IPv6Address]]


class HealthServer:
    """Listens after `start`. `status` is None until the daemon is ready, and again while it stops.

    `node_addresses` returns the addresses from which the kubelet connects. It may raise KernelError and
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
        """Listen on all addresses of the pod, since the kubelet connects from the node.

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
        """Stop listening."""
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
