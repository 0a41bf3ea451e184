"""Malformed and hostile heads: each ends through Sidestep as nginx alone ends it, and none reaches a handler.

Every head runs twice against the same real nginx, directly (nothing steered) and through the pod proxy. nginx's
timeouts are cut to a second so that an unfinished head ends by itself. Compared are all the bytes of the answers (the
date apart) and whether the connection was still open at the end.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import scene
from tests.harness.nginx import nginx
from tests.harness.peers import Client, Server
from tests.unit.engine.hostile_heads import HOSTILE

AT_ONCE = 60
"""Connections in flight; each mostly waits for nginx's timeouts."""

TIMEOUTS = "client_header_timeout 1s; client_body_timeout 1s; keepalive_timeout 1s; lingering_timeout 1s;"
QUIET = 4.0
"""Seconds after which a connection counts as left open."""

_DATE = re.compile(rb"^Date: [^\r]*\r\n", re.MULTILINE)


def outcome(space, port, data):
    """(answers without their dates, how it ended) of one connection that sends `data`."""
    received, ended = b"", "closed"
    with Client(space.ip, port, netns=space.client, within=QUIET) as client:
        try:
            client.send(data)
            client.reader.rest()
        except TimeoutError:
            ended = "open"
        except OSError:
            ended = "closed"
        received = bytes(client.reader.received)
    return _DATE.sub(b"", received), ended


@pytest.mark.timeout(300)
def test_three_hundred_hostile_heads_end_as_with_nginx_alone(shop):
    assert len(HOSTILE) >= 300
    listen = [f"{shop.space.ip}:{scene.PLAIN_PORT}"]
    with (
        nginx(shop.space.pod, shop.folder / "hostile", plain=listen, extra=TIMEOUTS) as app,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):

        def all_of_them():
            return dict(
                zip(
                    [name for name, _ in HOSTILE],
                    pool.map(lambda item: outcome(shop.space, scene.PLAIN_PORT, item[1]), HOSTILE),
                    strict=True,
                )
            )

        direct = all_of_them()
        handler = shop.plain_handler
        with shop.intercept("--http-header", "x-never=matches", port=scene.PLAIN_PORT, plaintext=True):
            assert shop.get("/", "x-never: matches", port=scene.PLAIN_PORT).served_by == "handler"
            diverted = len(handler.connections)
            steered = all_of_them()
            assert shop.get("/", "x-never: matches", port=scene.PLAIN_PORT).served_by == "handler"
            assert len(handler.connections) == diverted + 1
        assert app.process.running
    different = {name: (direct[name], steered[name]) for name in direct if direct[name] != steered[name]}
    assert not different, f"{len(different)} differ: {dict(list(different.items())[:5])}"


@pytest.mark.timeout(300)
def test_no_hostile_head_reaches_the_handler_by_a_filter_it_half_matches(shop):
    """With the marked field smuggled in, an ambiguous request may reach the app, never the handler in another shape."""
    listen = [f"{shop.space.ip}:{scene.PLAIN_PORT}"]
    with (
        nginx(shop.space.pod, shop.folder / "smuggled", plain=listen, extra=TIMEOUTS) as app,
        ThreadPoolExecutor(AT_ONCE) as pool,
        shop.intercept("--http-path-prefix", "/", port=scene.PLAIN_PORT, plaintext=True),
    ):
        before = len(shop.plain_handler.connections)
        list(pool.map(lambda item: outcome(shop.space, scene.PLAIN_PORT, item[1]), HOSTILE))
        assert app.process.running
        assert shop.get("/", port=scene.PLAIN_PORT).served_by == "handler"
        for connection in shop.plain_handler.connections[before:]:
            for line in bytes(connection.reader.received).split(b"\r\n"):
                assert b"\0" not in line
                assert not re.match(rb"(?i)transfer-encoding:(?!\s*chunked\s*$)", line), line


# --- what is dear to read ---------------------------------------------------------------------------------------------

FLOODS = 20
FLOOD_SECONDS = 4.0
"""Longer than the daemon waits for a sign of life."""
CHUNKS = b"1\r\na\r\n" * 20_000


def swallow(server, connection):
    """Reads whatever comes; answers a GET."""
    if connection.reader.until(b"\r\n\r\n").startswith(b"GET"):
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    while connection.sock.recv(1 << 20):
        pass


def test_clients_that_send_what_is_dear_to_read_end_neither_the_proxy_nor_others(shop):
    port, stop = scene.PLAIN_PORT, threading.Event()

    def flood():
        where = {"netns": shop.space.client, "record": False}
        with contextlib.suppress(OSError), Client(shop.space.ip, port, **where) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            while not stop.is_set():
                client.send(CHUNKS)

    with (
        Server(swallow, netns=shop.space.pod, address=shop.space.ip, port=port, record=False),
        shop.intercept(port=port, plaintext=True),
    ):
        pid = shop.proxy()
        threads = [threading.Thread(target=flood) for _ in range(FLOODS)]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + FLOOD_SECONDS
            while time.monotonic() < end:
                with shop.client(port=port) as client:
                    assert client.get().status == 200
            with shop.intercept("--http-header", "x-other=1", port=port, plaintext=True):
                assert shop.get("/", "x-other: 1", port=port).served_by == "handler"
            assert shop.proxy() == pid
        finally:
            stop.set()
            for thread in threads:
                thread.join(20)
