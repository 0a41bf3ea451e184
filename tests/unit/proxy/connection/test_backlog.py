"""Memory that peers which do not read may cost, all connections together."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from sidestep.engine.leg import HIGH_WATER
from sidestep.engine.memory_budget import BACKLOG, Budget, high_water
from tests.unit.proxy.runtime.test_worker import DEV, Scene

MANY = 16
TOTAL = 1 << 20
SIZE = 3 << 19
ONE_READ = 64 * 1024
PATIENCE = 20


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        scene = Scene(stack)
        scene.worker.backlog = Budget(TOTAL)
        yield scene


def small(sock, option):
    """Leave the kernel little room, so that bytes wait in the proxy."""
    sock.setsockopt(socket.SOL_SOCKET, option, 65536)
    return sock


def received(sock, size):
    """So many bytes of a socket."""
    left = size
    while left and (data := sock.recv(min(left, 65536))):
        left -= len(data)
    return size - left


def queued(scene):
    """Bytes that wait in all conductors."""
    return sum(leg.queued for conductor in scene.worker._connections.relayed for leg in conductor.relay.legs)


def connections(scene, request):
    """Pairs of a client and the app's end of its connection, after the request has reached the app."""
    port = scene.port(rules=(DEV,))
    for _ in range(MANY):
        client = small(scene.client(port, request), socket.SO_RCVBUF)
        scene.accept()
        app = None
        scene.app.settimeout(0.01)
        while app is None:
            scene.run(within=0.05)
            with contextlib.suppress(TimeoutError):
                app, _ = scene.app.accept()
        app.settimeout(PATIENCE)
        client.settimeout(PATIENCE)
        scene.stack.enter_context(small(app, socket.SO_RCVBUF))
        for conductor in scene.worker._connections.relayed:
            for leg in (conductor.relay.client, conductor.relay.app):
                if leg.io is not None and leg.io.stream is not None:
                    small(leg.io.stream.sock, socket.SO_SNDBUF)
        yield client, app


@pytest.mark.parametrize("upload", [False, True])
def test_peers_that_do_not_read_share_the_backlog_and_get_all_in_the_end(scene, upload):
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (SIZE if upload else 0)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (0 if upload else SIZE)
    results, threads = [], []

    def begin(function, *arguments):
        thread = threading.Thread(target=function, args=arguments)
        threads.append(thread)
        thread.start()

    readers = []
    for client, app in connections(scene, head):
        received(app, len(head))
        if upload:
            begin(client.sendall, bytes(SIZE))
            readers.append((app, SIZE))
        else:
            begin(app.sendall, answer + bytes(SIZE))
            readers.append((client, len(answer) + SIZE))
    most = [0]

    def at_rest():
        before, most[0] = most[0], queued(scene)
        return before == most[0] > 0

    scene.run(at_rest, within=PATIENCE)
    scene.run(within=0.5)
    assert queued(scene) == scene.worker.backlog.held > TOTAL // 4
    assert queued(scene) <= TOTAL + MANY * ONE_READ
    for reader, size in readers:
        begin(lambda reader=reader, size=size: results.append(received(reader, size) - size))
    scene.run(lambda: len(results) == MANY, within=PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [0] * MANY
    scene.run(lambda: not scene.worker.backlog.held, within=5)
    assert scene.worker.backlog.held == 0


def test_a_connection_that_ends_gives_back_what_it_held(scene):
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    pairs = connections(scene, head)
    client, app = next(pairs)
    app.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")
    app.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        app.send(bytes(SIZE))
    scene.run(lambda: scene.worker.backlog.held, within=5)
    assert scene.worker.backlog.held > 0
    client.close()
    scene.run(lambda: not scene.worker._connections.relayed, within=5)
    assert scene.worker.backlog.held == 0


def test_the_high_water_mark_falls_as_the_backlog_rises():
    backlog = Budget(BACKLOG)
    assert high_water(backlog) >= HIGH_WATER
    backlog.held = BACKLOG // 2
    assert 0 < high_water(backlog) < HIGH_WATER
    backlog.held = BACKLOG + 1
    assert high_water(backlog) == 0
