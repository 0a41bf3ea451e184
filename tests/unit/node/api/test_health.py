"""/healthz answers the kubelet whatever strangers do with its port."""

import asyncio
import contextlib
import resource
import sys
from ipaddress import ip_address
from pathlib import Path

from sidestep.aio.time_limit import time_limit
from sidestep.node.api import health, health_gate
from sidestep.node.api.health import HealthServer
from sidestep.tunnel.views import NodeStatus, StatusView
from tests.unit.tunnel.ends import asynchronous


def crashed(task, error):
    raise AssertionError(f"{task}: {error!r}")


NODE = "127.0.0.2"
"""Where the kubelet comes from in these tests."""
STRANGER = "127.0.0.3"


@contextlib.asynccontextmanager
async def serving(known=(NODE,)):
    server = HealthServer(port=0, on_crash=crashed, node_addresses=lambda: [ip_address(each) for each in known])
    await server.start()
    try:
        yield server
    finally:
        await server.aclose()


async def connected(server, source):
    return await asyncio.open_connection("127.0.0.1", server.port, local_addr=(source, 0))


async def ask(server, path="/healthz", *, source=STRANGER):
    reader, writer = await connected(server, source)
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
async def test_a_request_comes_in_any_pieces_and_an_answer_is_whole():
    async with serving() as server:
        server.status = lambda: StatusView(
            node=NodeStatus("n" * 300_000, "0.1.0", 1, 1.0, {}), pods=(), intercepts=(), conditions=()
        )
        reader, writer = await connected(server, STRANGER)
        for byte in b"GET /metrics?x=1 HTTP/1.1\r\nhost: x\r\n\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        answer = await reader.read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head
        assert len(body) > 300_000
        writer.close()
        for nonsense in (b"\r\n\r\n", b"x" * 20_000, b""):
            reader, writer = await connected(server, STRANGER)
            writer.write(nonsense)
            writer.write_eof()
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()


@asynchronous
async def test_the_nodes_connections_outlive_any_number_of_strangers(monkeypatch):
    """The kubelet's slow request, and its next one, are answered while strangers fill and overfill their share."""
    monkeypatch.setattr(health_gate, "TIMEOUT", 60.0)
    async with serving() as server:
        reader, slow = await connected(server, NODE)
        slow.write(b"GET /healthz HTTP/1.1\r\n")
        idle = [
            await connected(server, f"127.0.1.{number % 200}") for number in range(4 * health_gate.OTHERS.connections)
        ]
        for _ in range(5):
            assert await ask(server, source=NODE) == "HTTP/1.1 200 OK"
        slow.write(b"\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200 OK")
        for writer in (slow, *(each for _, each in idle)):
            writer.close()


FLOOD = """
import itertools, selectors, socket, struct, sys
port, waiting, begun = int(sys.argv[1]), [], 0
for number in itertools.count():
    peer = socket.socket()
    peer.setblocking(False)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.bind((f"127.1.{number // 250 % 250}.{number % 250 + 1}", 0))
    peer.connect_ex(("127.0.0.1", port))
    try:
        peer.send(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
    except OSError:
        pass
    waiting.append(peer)
    if len(waiting) > 200:
        waiting.pop(0).close()
    if number == 20_000:
        print("running", flush=True)
"""


@asynchronous
async def test_a_flood_of_connections_reaches_neither_the_kubelet_nor_the_loop():
    """As many connections as a core can begin, from 62,500 addresses; probes are answered meanwhile."""
    made = 0

    def status():
        nonlocal made
        made += 1
        return StatusView(node=NodeStatus("n1", "0.1.0", 1, 1.0, {}), pods=(), intercepts=(), conditions=())

    async with serving() as server:
        server.status = status
        flood = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FLOOD, str(server.port), stdout=asyncio.subprocess.PIPE
        )
        try:
            assert flood.stdout is not None
            assert (await asyncio.wait_for(flood.stdout.readline(), 60)).strip() == b"running"
            before, stalls = resident(), Stalls()
            for _ in range(60):
                async with time_limit(10):
                    assert await ask(server, source=NODE) == "HTTP/1.1 200 OK"
                await asyncio.sleep(0.05)
            assert stalls.longest() < 2
            assert resident() - before < 30 * 1024 * 1024
            assert made < 20
            assert sum(len(gate._connections) for gate in server._gates) <= health_gate.OTHERS.connections + 1
        finally:
            flood.kill()
            await flood.communicate()


class Stalls:
    """How long the event loop kept its timers waiting."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self._longest = 0.0
        self._look(self._loop.time())

    def _look(self, due):
        now = self._loop.time()
        self._longest = max(self._longest, now - due)
        self._timer = self._loop.call_later(0.01, self._look, now + 0.01)

    def longest(self):
        self._timer.cancel()
        return self._longest


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@asynchronous
async def test_one_stranger_that_asks_too_much_is_not_in_the_way_of_another():
    async with serving() as server:
        answers = []
        for _ in range(200):
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                answers.append(await ask(server))
        assert 20 <= answers.count("HTTP/1.1 200 OK") < 150
        assert await ask(server, source="127.0.0.4") == "HTTP/1.1 200 OK"
        assert await ask(server, source=NODE) == "HTTP/1.1 200 OK"


@asynchronous
async def test_addresses_that_change_are_noticed(monkeypatch):
    monkeypatch.setattr(health, "REFRESH", 0.05)
    known = [NODE]
    async with serving(known) as server:
        known[:] = [STRANGER]
        gate = server._gates[0]

        async def preferred():
            _, writer = await connected(server, STRANGER)
            await asyncio.sleep(0.02)
            found = bool(gate._connections)
            writer.close()
            return found

        async with time_limit(10):
            while not await preferred():
                pass


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
        assert 0 < len(made) < 20
        monkeypatch.setattr(health, "METRICS_AGE", 0.0)
        monkeypatch.setattr(health, "SHARE", 1.0)
        before = len(made)
        async with time_limit(10):
            while len(made) == before:
                assert await ask(server, "/metrics", source=NODE) == "HTTP/1.1 200 OK"
