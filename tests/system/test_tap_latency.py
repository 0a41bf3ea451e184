"""A wiretap with a bad handler makes the app's clients wait for nothing: neither for the handler nor for the copies.

Two ports of one pod, both served through the proxy, one of them tapped. Each request draws its port, so that whatever
else the machine does, the copies of earlier requests included, meets both alike. The rate is far below saturation:
copies cost processor time, which is no latency as long as there is some left. Compared are medians, and the best of
several comparisons counts, because noise only ever makes one of the sides slower.
"""

from __future__ import annotations

import contextlib
import random
import socket
import statistics
import subprocess
import sys
import time

import pytest

from tests.harness.http2 import Http2Client, any_app
from tests.harness.peers import Client, Server
from tests.harness.processes import child
from tests.harness.taps import wiretap

pytestmark = pytest.mark.alone

TAPPED, PLAIN = 8080, 9090
REQUESTS, TRIES = 200, 8
PAUSE = 0.012
"""Seconds between two requests."""
MOST = 1.3
"""Times the median of the port without a wiretap. Seen were 0.94 to 1.1 of single comparisons, with or without a
wiretap; 1.4 to 1.7 when copies were made before their requests were served, hundreds if a handler were waited for."""

HANDLER = """
import socket, struct, sys, threading, time
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print(listener.getsockname()[1], flush=True)
how, kept = sys.argv[1], []
def sip(sock):
    while sock.recv(1):
        time.sleep(1)
while True:
    sock, _ = listener.accept()
    if how == "crashing":
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        continue
    kept.append(sock)
    if how == "slow":
        threading.Thread(target=sip, args=(sock,), daemon=True).start()
"""


def quick_app(server, connection):
    """Without Nagle's algorithm, which would add 40 ms to whatever is measured."""
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    any_app(server, connection)


@contextlib.contextmanager
def bad_handler(how):
    """A process of its own: it must not share our interpreter's lock. Yields its port."""
    with child([sys.executable, "-c", HANDLER, how], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


@pytest.fixture(scope="module")
def apps(shop):
    with contextlib.ExitStack() as stack:
        for port in (TAPPED, PLAIN):
            stack.enter_context(Server(quick_app, netns=shop.space.pod, address=shop.space.ip, port=port, record=False))
            stack.enter_context(
                shop.intercept("--http-header", "x-dev=ada", "--name", f"p{port}", port=port, plaintext=True)
            )
        yield


@contextlib.contextmanager
def asking(shop, port, version):
    """Seconds that a request takes, each time it is called."""
    with Client(shop.space.ip, port, netns=shop.space.client, record=False) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        http2 = Http2Client(client.sock) if version == "h2" else None

        def ask():
            begin = time.perf_counter()
            if http2 is not None:
                assert http2.request("/").served_by == "app"
            else:
                assert client.get("/").header("x-served-by") == "app"
            return time.perf_counter() - begin

        yield ask


@pytest.mark.parametrize("version", ["h1", "h2"])
@pytest.mark.parametrize("how", ["hung", "slow", "crashing"])
def test_the_latency_of_a_tapped_port_is_that_of_another(shop, apps, version, how):
    draw = random.Random(0)
    ratios = []
    with (
        bad_handler(how) as handler,
        wiretap(shop.node, f"{handler}:{TAPPED}", "--http-path-prefix", "/", "--plaintext"),
        asking(shop, TAPPED, version) as tapped,
        asking(shop, PLAIN, version) as plain,
    ):
        for _ in range(TRIES):
            times = {tapped: [], plain: []}
            for _ in range(REQUESTS):
                ask = draw.choice((tapped, plain))
                time.sleep(PAUSE)
                times[ask].append(ask())
            ratios.append(statistics.median(times[tapped]) / statistics.median(times[plain]))
            if ratios[-1] < MOST:
                break
    assert min(ratios) < MOST, ratios
