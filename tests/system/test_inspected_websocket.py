"""Messages of real WebSocket peers (the `websockets` library) under a policy that blocks and fails closed."""

from __future__ import annotations

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Opcode

from tests.harness import scene
from tests.harness.http2 import Http2Client, any_app
from tests.harness.inspection import policies, policy
from tests.harness.peers import Server, server_context
from tests.harness.websocket_peers import websocket_client, websocket_server
from tests.system.test_websocket import PORTS, OverHttp2

RULES = (
    {"name": "no-secret", "patterns": [{"regex": "top-secret-[0-9]{4}"}], "action": "Block"},
    {"name": "no-leak", "direction": "Response", "patterns": [{"regex": "leaked-[0-9]{4}"}], "action": "Block"},
)
BIG = bytes(range(256)) * 128
"""32 KiB: less than the window in which a message is held."""


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("port", PORTS)
def test_a_message_that_is_blocked_reaches_nobody(shop, port, compression):
    received: list[object] = []
    where = {"netns": shop.space.pod, "address": shop.space.ip, "port": port}
    tls = shop.app_tls() if port == scene.TLS_PORT else None
    options = {"compression": compression}
    with (
        websocket_server("app", tls=tls, received=received, **where, **options),
        policies(shop, policy(*RULES, failurePolicy="Fail")),
    ):
        for blocked, arrives in (("a top-secret-1234 of ours", False), ("it was leaked-1234", True)):
            received.clear()
            with websocket_client(shop, port, **options) as client:
                assert client.recv(timeout=20) == "app"
                said = ["hello", BIG, "", "hello again " * 100]
                for message in said:
                    client.send(message)
                    assert client.recv(timeout=20) == message
                assert client.ping() >= 0
                client.send(blocked)
                with pytest.raises(ConnectionClosed):
                    client.recv(timeout=20)
            assert received == said + [blocked] * arrives
        with websocket_client(shop, port, **options) as client:
            assert client.recv(timeout=20) == "app"
            client.send("goodbye")
            assert client.recv(timeout=20) == "goodbye"
            client.close(4001, "enough")
            assert client.close_code == 4001


@pytest.mark.parametrize("port", PORTS)
def test_over_http2_a_message_that_is_blocked_ends_its_stream(shop, port):
    tls = None if port == scene.PLAIN_PORT else server_context(shop.app_certificate, alpn=("h2",))
    with (
        Server(any_app, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls),
        policies(shop, policy(*RULES, failurePolicy="Fail")),
        shop.client(port=port, alpn=["h2"]) as raw,
    ):
        client = Http2Client(raw.sock)
        client.until(lambda: client.h2.remote_settings.enable_connect_protocol)
        sockets = {"a top-secret-1234 of ours": OverHttp2(client), "leaked-1234": OverHttp2(client)}
        for blocked, each in sockets.items():
            assert each.receive() == (Opcode.TEXT, b"app")
            for message in (b"hello", BIG):
                each.websocket.send_binary(message)
                each.send()
                assert each.receive() == (Opcode.BINARY, message)
            each.websocket.send_text(blocked.encode())
            each.send()
            client.until(lambda each=each: each.answer.reset is not None)
            assert blocked.encode() not in each.answer.body
        assert client.request("/").served_by == "app"
