"""Servers that read what follows an Upgrade or a CONNECT before they answer it, and clients that send it before."""

from __future__ import annotations

import pytest

from tests.harness import scene
from tests.harness.http1 import Message
from tests.harness.peers import Server, answer

PORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]
EARLY = b"\x81\x05early"


def eager(server, connection):
    """Answers a switch after its first bytes, then returns every byte; a request by its path."""
    while True:
        head = Message(connection.reader.until(b"\r\n\r\n"))
        if head.target == "/no":
            connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        elif head.method == "CONNECT" or head.header("upgrade"):
            first = connection.reader.until(EARLY)
            status = b"200 OK" if head.method == "CONNECT" else b"101 Switching Protocols\r\nUpgrade: raw"
            connection.send(b"HTTP/1.1 " + status + b"\r\n\r\n" + server.name.encode() + first)
            while True:
                connection.send(connection.reader.some())
        else:
            answer(server, connection, head)


@pytest.mark.parametrize("port", PORTS)
def test_they_do_not_wait_for_each_other(shop, port):
    plaintext = port == scene.PLAIN_PORT
    tls = None if plaintext else shop.app_tls()
    with (
        Server(eager, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls),
        Server(eager, name="handler") as handler,
        shop.intercept("--plaintext", "--http-header", "x-dev=ada", port=port, handler_port=handler.port),
    ):
        for side in ("app", "handler"):
            dev = f"{scene.DEV}\r\n" if side == "handler" else ""
            for start in ("CONNECT db.test:5432 HTTP/1.1", "GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: raw"):
                for together in (True, False):
                    head = f"{start}\r\nHost: db.test:5432\r\n{dev}\r\n".encode()
                    with shop.client(port=port) as client:
                        for piece in [head + EARLY] if together else [head, EARLY[:2], EARLY[2:]]:
                            client.send(piece)
                        client.reader.until(b"\r\n\r\n")
                        assert client.reader.until(EARLY) == side.encode() + EARLY
                        client.send(b"GET / HTTP/1.1")
                        assert client.reader.until(b"HTTP/1.1") == b"GET / HTTP/1.1"


def test_a_request_behind_a_refused_switch_is_the_apps_and_the_next_is_judged(shop):
    port = scene.PLAIN_PORT
    with (
        Server(eager, netns=shop.space.pod, address=shop.space.ip, port=port) as app,
        shop.intercept(port=port, plaintext=True),
        shop.client(port=port) as client,
    ):
        refused = b"GET /no HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"
        plain = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        matching = f"GET / HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\n\r\n".encode()
        client.send(refused + plain + matching)
        assert client.reader.message(answers="GET").status == 403
        assert [client.reader.message(answers="GET").header("x-served-by") for _ in range(2)] == ["app", "app"]
        assert app.connections[-1].received == refused + plain + matching
        assert client.request(matching).header("x-served-by") == "handler"
        assert client.request(plain).header("x-served-by") == "app"
