"""WebSocket over HTTP/1.1 (the `websockets` library on all sides) and over HTTP/2 (RFC 8441), matched and not."""

from __future__ import annotations

import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, Protocol

from tests.harness import scene
from tests.harness.http2 import Http2Client, any_app
from tests.harness.peers import Server, server_context
from tests.harness.websocket_peers import websocket_client, websocket_server

PORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]
SIDES = ["app", "handler"]
BIG = bytes(range(256)) * (16 << 10)
"""4 MiB: many frames of every layer below."""


@pytest.mark.parametrize("port", PORTS)
def test_over_http1(shop, port):
    tls = None if port == scene.PLAIN_PORT else shop.app_tls()
    own = None if port == scene.PLAIN_PORT else server_context(shop.app_certificate)
    with (
        websocket_server("app", netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls),
        websocket_server("handler", tls=own) as handler,
        shop.intercept(port=port, handler_port=handler, plaintext=tls is None),
    ):
        for side, header in (("app", None), ("handler", scene.DEV)):
            with websocket_client(shop, port, header=header) as client:
                assert client.recv(timeout=20) == side
                assert client.ping() >= 0
                for message in ("hello", b"\x00\xff", BIG, ""):
                    client.send(message)
                    assert client.recv(timeout=20) == message
                assert client.ping() >= 0
                client.close(4001, "enough")
                assert client.close_code == 4001


@pytest.mark.parametrize("side", SIDES)
def test_half_close_after_an_upgrade(shop, side):
    """The client says all it has to say and ends its direction; the answer comes after that."""

    def count(server, connection):
        connection.reader.until(b"\r\n\r\n")
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: count\r\nConnection: Upgrade\r\n\r\n")
        connection.send(f"{server.name} {len(connection.reader.rest())}".encode())

    with (
        Server(count, netns=shop.space.pod, address=shop.space.ip, port=scene.PLAIN_PORT),
        Server(count, name="handler") as handler,
        shop.intercept(port=scene.PLAIN_PORT, handler_port=handler.port, plaintext=True),
        shop.client(port=scene.PLAIN_PORT) as client,
    ):
        dev = f"{scene.DEV}\r\n" if side == "handler" else ""
        client.send(f"GET / HTTP/1.1\r\nHost: a\r\n{dev}Upgrade: count\r\nConnection: Upgrade\r\n\r\n".encode())
        assert client.reader.message(answers="GET").status == 101
        client.send(BIG)
        client.finish()
        assert client.reader.rest() == f"{side} {len(BIG)}".encode()


class OverHttp2:
    """A WebSocket on a stream of an HTTP/2 client."""

    def __init__(self, client: Http2Client, *fields: tuple[str, str]) -> None:
        self.client = client
        self.websocket = Protocol(CLIENT, max_size=None)
        self.stream = client.begin("/ws", (":protocol", "websocket"), *fields, method="CONNECT", end=False)
        self.answer = client.answers[self.stream]
        self.read = 0
        self.frames = []

    def send(self) -> None:
        for piece in self.websocket.data_to_send():
            self.client.send(self.stream, piece, end=not piece)

    def receive(self) -> tuple[Opcode, bytes]:
        """The next message or control frame, whole."""
        self.client.until(self._has_frame)
        frame = self.frames.pop(0)
        return frame.opcode, bytes(frame.data)

    def _has_frame(self) -> bool:
        data = bytes(self.answer.body[self.read :])
        self.read += len(data)
        if data:
            self.websocket.receive_data(data)
            self.frames += self.websocket.events_received()
        return bool(self.frames) or self.answer.reset is not None


@pytest.mark.parametrize("port", PORTS)
def test_over_http2_on_one_connection(shop, port):
    plain = port == scene.PLAIN_PORT
    tls = None if plain else server_context(shop.app_certificate, alpn=("h2",))
    own = None if plain else server_context(shop.app_certificate, alpn=("h2",))
    with (
        Server(any_app, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls, record=False),
        Server(any_app, name="handler", tls=own, record=False) as handler,
        shop.intercept(port=port, handler_port=handler.port, plaintext=plain),
        shop.client(port=port, alpn=["h2"]) as raw,
    ):
        client = Http2Client(raw.sock)
        client.until(lambda: client.h2.remote_settings.enable_connect_protocol)
        dev = tuple(scene.DEV.split(": "))
        sockets = {"app": OverHttp2(client), "handler": OverHttp2(client, dev), "other": OverHttp2(client)}
        for side, each in sockets.items():
            assert each.receive() == (Opcode.TEXT, b"app" if side == "other" else side.encode())
        for each in sockets.values():
            each.websocket.send_ping(b"here")
            each.websocket.send_text(b"hello")
            each.send()
            assert each.receive() == (Opcode.PONG, b"here")
            assert each.receive() == (Opcode.TEXT, b"hello")
        for each in sockets.values():
            each.websocket.send_binary(BIG[: 1 << 20])
            each.send()
        for each in sockets.values():
            assert each.receive() == (Opcode.BINARY, BIG[: 1 << 20])
        for each in sockets.values():
            each.websocket.send_close(1000)
            each.send()
            assert each.receive()[0] is Opcode.CLOSE
        assert client.request("/").served_by == "app"


def test_over_http2_to_a_handler_without_http2(shop):
    """It is told, in HTTP, what is missing."""
    tls = server_context(shop.app_certificate, alpn=("h2",))
    with (
        Server(any_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls, record=False),
        shop.intercept("--name", "mine", "--http-header", "x-dev=ada"),
        shop.client(alpn=["h2"]) as raw,
    ):
        client = Http2Client(raw.sock)
        client.until(lambda: client.h2.remote_settings.enable_connect_protocol)
        asked = OverHttp2(client, tuple(scene.DEV.split(": ")))
        client.until(lambda: asked.answer.ended)
        assert asked.answer.headers[":status"] == "502"
        assert asked.answer.body.startswith(b"sidestep: intercept shop/mine: ")
        assert b"HTTP/1.1 only" in asked.answer.body
