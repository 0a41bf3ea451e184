"""Wires: every byte, every end and every break passes, in both directions, and nothing is held beyond a few buffers.

Two kinds: to the `app` on a port with a filter (the client does not speak HTTP, so its connection is spliced), and to
the `handler` of a global intercept, through the tunnel.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import select
import socket
import time
import zlib
from dataclasses import dataclass

import pytest

from tests.harness import scene
from tests.harness.bulk import BLOCK, receive_blocks, send_blocks
from tests.harness.peers import RESET, Server, http_app
from tests.harness.processes import kill, peak, reset_peak

PORT = scene.PLAIN_PORT
PATIENCE = 30.0
TOTAL = 2 << 30
"""Bytes that pass each way."""
GROWTH = 8 << 20
"""Bytes of resident memory by which no process of ours may grow."""
IN_FLIGHT = 48 << 20
"""Bytes that may be under way to somebody who does not read: the buffers of two TCP connections and one pipe, or of
the tunnel's sockets and windows, nothing that grows with time."""
GREETING = b"\x00 no HTTP\r\n"

WAYS = ["app", "handler"]
SIDES = ["client", "far"]


@dataclass
class Wire:
    """Both ends of one connection: `far` is the app's or the handler's."""

    client: socket.socket
    far: socket.socket

    def ends(self, side):
        """The end of `side`, then the other one."""
        return (self.client, self.far) if side == "client" else (self.far, self.client)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.far.close()


class Listening:
    """Makes wires to one listener."""

    def __init__(self, shop, listener):
        self._shop = shop
        self._listener = listener
        self.watched: dict[str, int] = {}

    def client(self):
        space = self._shop.space
        made = space.client.call(lambda: socket.create_connection((space.ip, PORT), timeout=PATIENCE))
        made.settimeout(PATIENCE)
        return made

    def connect(self):
        """A new connection, both ends greeted."""
        client = self.client()
        client.sendall(GREETING)
        far, _ = self._listener.accept()
        far.settimeout(PATIENCE)
        assert take(far, len(GREETING)) == GREETING
        far.sendall(GREETING)
        assert take(client, len(GREETING)) == GREETING
        return Wire(client, far)


def listener_of(shop, way):
    def listen():
        return socket.create_server((shop.space.ip, PORT) if way == "app" else ("127.0.0.1", 0))

    made = shop.space.pod.call(listen) if way == "app" else listen()
    made.settimeout(PATIENCE)
    return made


@pytest.fixture(scope="module")
def wires(shop):
    """What makes wires, by way."""

    @contextlib.contextmanager
    def use(way):
        with listener_of(shop, way) as listener:
            if way == "app":
                running = shop.intercept(port=PORT, plaintext=True)
            else:
                running = shop.intercept("--name", "whole", port=PORT, handler_port=listener.getsockname()[1])
            with running as intercept:
                made = Listening(shop, listener)
                made.watched = {"proxy": shop.proxy(), "daemon": shop.node.pid, "cli": intercept.pid}
                yield made

    return use


def take(sock, size):
    data = b""
    while len(data) < size and (piece := sock.recv(size - len(data))):
        data += piece
    return data


@contextlib.contextmanager
def bounded(watched):
    """No process may grow meanwhile."""
    before = {name: reset_peak(pid) for name, pid in watched.items()}
    yield
    growth = {name: peak(pid) - before[name] for name, pid in watched.items()}
    assert max(growth.values()) < GROWTH, growth


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_two_gibibytes_each_way_at_once(wires):
    count = TOTAL // BLOCK
    with wires("app") as made, made.connect() as wire, concurrent.futures.ThreadPoolExecutor(4) as pool:
        with bounded(made.watched):
            moves = [pool.submit(send_blocks, sock, count) for sock in (wire.client, wire.far)]
            moves += [pool.submit(receive_blocks, sock, count) for sock in (wire.far, wire.client)]
            try:
                sizes = {move.result(120) for move in moves}
            except BaseException:
                wire.client.close()
                wire.far.close()
                raise
        assert sizes == {count * (8 + BLOCK)}
        wire.client.shutdown(socket.SHUT_WR)
        assert wire.far.recv(1) == b""
        wire.far.shutdown(socket.SHUT_WR)
        assert wire.client.recv(1) == b""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", SIDES)
def test_half_close(wires, way, first):
    """One side finishes; the other one goes on for as long as it likes, and then finishes, too."""
    with wires(way) as made, made.connect() as wire, concurrent.futures.ThreadPoolExecutor(1) as pool:
        one, other = wire.ends(first)
        data = os.urandom(3 << 20)

        def finish(sock):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        for sender, receiver in ((one, other), (other, one)):
            sending = pool.submit(finish, sender)
            received = take(receiver, len(data) + 1)
            sending.result(PATIENCE)
            assert zlib.crc32(received) == zlib.crc32(data)
            if sender is one:
                assert not select.select([one], [], [], 0.2)[0], "the end came back"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", ["at rest", "half-closed", "in full flow"])
@pytest.mark.parametrize("side", SIDES)
def test_a_reset_of_one_side_is_seen_by_the_other(wires, way, side, after):
    with wires(way) as made, made.connect() as wire:
        one, other = wire.ends(side)
        if after == "half-closed":
            other.shutdown(socket.SHUT_WR)
            assert one.recv(1) == b""
        elif after == "in full flow":
            fill(other)  # `one` never reads, and then breaks off
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.close()
        with pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):  # which of them depends on what was under way
            while other.recv(1 << 16):
                pass
            other.sendall(b"what follows an end")
            pytest.fail("the reset came as an end")


def fill(sock):
    """Send until nothing more is taken, for a whole second; returns how many bytes were."""
    sock.setblocking(False)
    sent, last = 0, time.monotonic()
    while time.monotonic() - last < 1.0:
        try:
            sent += sock.send(bytes(1 << 20))
            last = time.monotonic()
        except BlockingIOError:
            select.select([], [sock], [], 0.1)
    sock.settimeout(PATIENCE)
    return sent


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", SIDES)
def test_who_never_reads_stops_the_other(wires, way, side):
    """What is not read is not taken; and once it is read, all that was taken arrives."""
    with wires(way) as made, made.connect() as wire:
        sender, reader = wire.ends(side)
        with bounded(made.watched):
            sent = fill(sender)
        assert sent < IN_FLIGHT
        sender.shutdown(socket.SHUT_WR)
        received = 0
        while piece := reader.recv(1 << 20):
            assert not piece.strip(b"\0")
            received += len(piece)
        assert received == sent


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_killed_proxy_ends_its_connections_and_nothing_else(shop):
    """In the midst of a transfer. The app, and what was connected to it before, notice nothing."""
    upgrade = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
    space = shop.space
    with (
        Server(http_app, netns=space.pod, address=space.ip, port=PORT, record=False) as app,
        shop.client(port=PORT) as before,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        assert before.get("/").header("x-served-by") == "app"
        with shop.intercept(port=PORT, plaintext=True):
            with shop.client(port=PORT, record=False) as client:
                client.send(upgrade)
                client.reader.until(b"app ready\n")
                flow, proxy = app.connections[-1], shop.proxy()

                def pour():
                    with contextlib.suppress(OSError):
                        while True:
                            client.send(b"x" * 65536)

                pouring = pool.submit(pour)
                assert not take(client.sock, 8 << 20).strip(b"X")
                kill(proxy)
                with contextlib.suppress(ConnectionResetError):
                    while client.sock.recv(1 << 20):
                        pass
                pouring.result(PATIENCE)
            assert flow.finished.wait(PATIENCE)
            assert before.get("/").header("x-served-by") == "app"
            assert shop.get("/", port=PORT).served_by == "app"
            assert shop.get("/", scene.DEV, port=PORT).served_by == "handler"
            assert shop.proxy() != proxy
        assert before.get("/").header("x-served-by") == "app"
