"""/healthz answers the kubelet whatever strangers do with its port."""

import asyncio
import contextlib

from sidestep.node import health
from sidestep.node.health import HealthServer
from sidestep.node.view import NodeStatus, StatusView
from tests.unit.tunnel.ends import asynchronous


def crashed(task, error):
    raise AssertionError(f"{task}: {error!r}")


@contextlib.asynccontextmanager
async def serving():
    server = HealthServer(port=0, on_crash=crashed)
    await server.start()
    try:
        yield server
    finally:
        await server.aclose()


async def ask(server, path="/healthz"):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.partition(b"\r\n")[0].decode()


@asynchronous
async def test_what_is_asked_is_answered():
    async with serving() as server:
        assert await ask(server) == "HTTP/1.1 200 OK"
        assert await ask(server, "/readyz") == "HTTP/1.1 503 Service Unavailable"
        assert await ask(server, "/nothing") == "HTTP/1.1 404 Not Found"


@asynchronous
async def test_connections_that_only_wait_do_not_keep_the_kubelet_out():
    async with serving() as server:
        idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3 * health.MAX_CONNECTIONS)]
        for _ in range(5):
            assert await ask(server) == "HTTP/1.1 200 OK"
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(idle[0][0].read(), 5) == b""  # the oldest had to go
        for _, writer in idle:
            writer.close()


@asynchronous
async def test_metrics_are_put_together_once_a_second_at_most(monkeypatch):
    made = []

    def status():
        made.append(True)
        return StatusView(node=NodeStatus("n1", "0.1.0", 1, 1.0, {}), pods=(), intercepts=(), conditions=())

    async with serving() as server:
        assert await ask(server, "/metrics") == "HTTP/1.1 200 OK"
        server.status = status
        for _ in range(20):
            assert await ask(server, "/metrics") == "HTTP/1.1 200 OK"
        assert len(made) < 20
        monkeypatch.setattr(health, "METRICS_AGE", 0.0)
        before = len(made)
        assert await ask(server, "/metrics") == "HTTP/1.1 200 OK"
        assert len(made) == before + 1
