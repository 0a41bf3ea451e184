"""/healthz, /readyz and /metrics of a daemon in a cluster, over HTTP/1.1 without keep-alive.

Healthy: the event loop runs. Ready: the daemon serves; until then a rolling update waits with the old one. Metrics are
in the text format of Prometheus. Nothing here says anything about traffic or keys.

Anybody in the cluster may connect. When there are too many connections the oldest goes: who only holds connections open
must not keep the kubelet out, which would restart the daemon. Metrics are put together once a second at most: who asks
for them all the time must not keep the daemon busy.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from sidestep.aio.tasks import Tasks
from sidestep.model.errors import KernelError
from sidestep.node.metrics import CONTENT_TYPE, exposition
from sidestep.node.view import StatusView

TIMEOUT = 5.0
"""Seconds for a request and its answer."""
MAX_CONNECTIONS = 32
METRICS_AGE = 1.0
"""Seconds for which metrics are given out again; Prometheus asks every 15 or so."""


class HealthServer:
    """Listens once `start`ed. `status` is None until the daemon is ready, and again when it stops."""

    def __init__(self, *, port: int, on_crash: Callable[[str, BaseException], None]) -> None:
        self.port = port
        self.status: Callable[[], StatusView] | None = None
        self._tasks = Tasks("health", on_crash=on_crash)
        self._requests: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """Oldest first."""
        self._metrics: tuple[float, str] | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on all addresses of the pod: the kubelet asks from the node. Raises KernelError."""
        try:
            dual = socket.has_dualstack_ipv6()
            listener = socket.create_server(
                ("", self.port),
                family=socket.AF_INET6 if dual else socket.AF_INET,
                backlog=16,
                dualstack_ipv6=dual,
            )
            self._server = await asyncio.start_server(self._accept, sock=listener, limit=8192)
        except OSError as error:
            raise KernelError("bind", error.errno or 0, doing=f"listening on port {self.port}") from error
        self.port = self.port or self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
        await self._tasks.aclose()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._requests) >= MAX_CONNECTIONS:
            oldest = next(iter(self._requests))
            self._requests.pop(oldest).transport.abort()
            oldest.cancel()
        task = self._tasks.start(self._serve(reader, writer), name="request")
        self._requests[task] = writer
        task.add_done_callback(lambda done: self._requests.pop(done, None))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
                target = [*head.split(b" ", 2), b"", b""][1].partition(b"?")[0]
                status, body = self._answer(target.decode("latin-1"))
                writer.write(
                    f"HTTP/1.1 {status}\r\ncontent-type: {CONTENT_TYPE}\r\n"
                    f"content-length: {len(body.encode())}\r\nconnection: close\r\n\r\n{body}".encode()
                )
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or asked nothing
        finally:
            writer.transport.abort()

    def _answer(self, target: str) -> tuple[str, str]:
        match target:
            case "/healthz":
                return "200 OK", "ok\n"
            case "/readyz" if self.status is None:
                return "503 Service Unavailable", "starting or stopping\n"
            case "/readyz":
                return "200 OK", "ok\n"
            case "/metrics":
                return "200 OK", self._exposition()
            case _:
                return "404 Not Found", "/healthz, /readyz or /metrics\n"

    def _exposition(self) -> str:
        if self.status is None:
            return ""
        now = asyncio.get_running_loop().time()
        if self._metrics is None or now - self._metrics[0] >= METRICS_AGE:
            self._metrics = (now, exposition(self.status()).decode())
        return self._metrics[1]
