"""An app that ends its idle connections, while the client's is busy with requests that go to a handler.

The client must not be told: not by the app's 408 as the answer to its next request, not by the end of its connection.
No request for the app may be lost in the moment in which the app closes.
"""

from __future__ import annotations

import time

import pytest

from tests.harness import scene
from tests.harness.http1 import Message
from tests.harness.http2 import Http2Client, any_app
from tests.harness.nginx import nginx
from tests.harness.peers import Server, answer, server_context

PATIENCE = 0.6
"""Seconds after which the app ends an idle connection, also one on which nothing was asked yet."""
ROUNDS = 4
PORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]


def impatient(how):
    """An app that closes, resets, or says 408 and closes."""

    def script(server, connection):
        while True:
            connection.sock.settimeout(PATIENCE)
            try:
                head = Message(connection.reader.until(b"\r\n\r\n"))
                connection.reader.read_body(head, response=False)
            except TimeoutError:
                if how == "408":
                    connection.send(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
                elif how == "reset":
                    connection.reset()
                return
            answer(server, connection, head)

    return script


@pytest.mark.parametrize("how", ["408", "close", "reset"])
@pytest.mark.parametrize("port", PORTS)
def test_the_client_is_not_told_and_no_request_is_lost(shop, port, how):
    plaintext = port == scene.PLAIN_PORT
    tls = None if plaintext else shop.app_tls()
    with (
        Server(impatient(how), netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls) as app,
        shop.intercept(port=port, plaintext=plaintext),
        shop.client(port=port) as client,
    ):
        for turn in range(ROUNDS):
            until = time.monotonic() + PATIENCE * (0.8 + 0.1 * turn)
            while time.monotonic() < until:
                assert client.get("/", scene.DEV).header("x-served-by") == "handler"
            body = b"%d" % turn
            got = client.request(
                b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body), method="POST"
            )
            assert (got.status, got.header("x-served-by"), got.body) == (200, "app", body)
        client.sock.settimeout(PATIENCE * 3)
        assert client.get("/", scene.DEV).header("x-served-by") == "handler"
        with pytest.raises(TimeoutError):
            client.reader.fill()
        asked = sum(connection.received.count(b"POST /echo") for connection in app.connections)
        assert asked == ROUNDS
        assert "internal-error" not in shop.conditions()


@pytest.mark.parametrize("port", PORTS)
def test_without_a_diverted_request_the_client_is_told_as_without_us(shop, port):
    plaintext = port == scene.PLAIN_PORT
    tls = None if plaintext else shop.app_tls()
    with (
        Server(impatient("408"), netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls),
        shop.intercept(port=port, plaintext=plaintext),
        shop.client(port=port) as client,
    ):
        assert client.get("/").header("x-served-by") == "app"
        assert client.reader.rest() == b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n"


# --- HTTP/2 -----------------------------------------------------------------------------------------------------------

DEV = tuple(scene.DEV.split(": "))


def test_an_http2_client_keeps_its_connection_while_handlers_answer(shop, tmp_path):
    """nginx says GOAWAY and closes when it has been asked nothing for a second."""
    tls = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
    with (
        nginx(
            shop.space.pod,
            tmp_path / "nginx",
            listen=[f"{shop.space.ip}:{scene.TLS_PORT}"],
            certificate=shop.app_certificate,
            http2=True,
            extra="keepalive_timeout 1s;",
        ) as app,
        Server(any_app, name="handler", tls=tls, record=False) as handler,
        shop.intercept(handler_port=handler.port),
        shop.client(alpn=("h2",)) as raw,
    ):
        client = Http2Client(raw.sock)
        for turn in range(3):
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                assert client.request("/", DEV).served_by == "handler"
            got = client.request("/echo", body=b"%d" % turn)
            assert (got.served_by, bytes(got.body)) == ("app", b"%d" % turn)
        assert [each["uri"] for each in app.requests()] == ["/echo"] * 3
        assert len({each["connection"] for each in app.requests()}) == 3
        assert "internal-error" not in shop.conditions()
