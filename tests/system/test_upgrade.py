"""Upgrades: after 101 the connection is a wire on whichever side answered."""

from __future__ import annotations

import pytest

from tests.harness import scene
from tests.harness.peers import Server, http_app

pytestmark = pytest.mark.cold

PORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("side", ["app", "handler"])
def test_after_an_upgrade_bytes_go_both_ways(shop, port, side):
    tls = shop.app_tls() if port == scene.TLS_PORT else None
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls),
        shop.intercept(port=port, plaintext=tls is None),
        shop.client(port=port) as client,
    ):
        dev = f"{scene.DEV}\r\n" if side == "handler" else ""
        request = f"GET /ws HTTP/1.1\r\nHost: a\r\n{dev}Upgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly "
        client.send(request.encode())
        answer = client.reader.message(answers="GET")
        assert answer.status == 101
        greeting = f"{side} ready\n".encode()
        assert client.reader.exactly(len(greeting) + 6) == greeting + b"EARLY "
        for frame in (b"\x81\x05hello", b"x" * 100_000, b"\x00\xff"):
            client.send(frame)
            assert client.reader.exactly(len(frame)) == frame.upper()


@pytest.mark.parametrize("port", PORTS)
def test_an_upgrade_after_diverted_requests_on_the_same_connection(shop, port):
    tls = shop.app_tls() if port == scene.TLS_PORT else None
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls),
        shop.intercept(port=port, plaintext=tls is None),
        shop.client(port=port) as client,
    ):
        assert client.get("/", scene.DEV).header("x-served-by") == "handler"
        assert client.get("/").header("x-served-by") == "app"
        client.send(b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n")
        assert client.reader.message(answers="GET").status == 101
        assert client.reader.exactly(10) == b"app ready\n"
        client.send(b"get / x-dev: ada")
        assert client.reader.exactly(16) == b"GET / X-DEV: ADA"
