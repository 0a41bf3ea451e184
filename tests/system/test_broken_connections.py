"""A TLS connection that breaks is nobody else's failure, although all of a proxy share OpenSSL's queue of errors."""

from __future__ import annotations

import ssl

import pytest

from tests.harness import scene
from tests.harness.nginx import client_context
from tests.harness.peers import Client
from tests.harness.waiting import until


@pytest.fixture
def shop(tmp_path):
    with scene.shop(tmp_path) as shop:
        yield shop


@pytest.fixture
def app(shop):
    with scene.shop_nginx(shop) as app:
        yield app


class Slow:
    """A client whose TLS records arrive in halves."""

    def __init__(self, shop):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.raw = Client(shop.space.ip, scene.TLS_PORT, netns=shop.space.client)
        context = client_context(shop.authority.pem)
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=scene.HOST)
        self.complete(self.tls.do_handshake)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.raw.close()

    def complete(self, call):
        """Call until there is nothing more to wait for."""
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                self.send_rest()
                self.incoming.write(self.raw.sock.recv(65536))
            else:
                self.send_rest()
                return result

    def send_half(self, data):
        self.tls.write(data)
        self.raw.send(self.outgoing.read(self.outgoing.pending // 2))

    def send_rest(self):
        self.raw.send(self.outgoing.read())


def unused(app):
    """How many connections without a request nginx has closed: those of the proxy for diverted requests."""
    log = (app.folder / "error.log").read_text()
    return log.count("client closed connection while waiting for request")


def end_without_close_notify(shop, app):
    """A client whose request was diverted ends so, and so does nginx: no alert can be sent to either any more."""
    before = unused(app)
    with shop.client() as client:
        assert client.get("/", scene.DEV).header("x-served-by") == "handler"
    until(lambda: unused(app) > before, within=10, what="the app to close its side")


def test_connections_that_end_without_close_notify_do_not_end_another(shop, app):
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with shop.intercept(), Slow(shop) as slow:
        slow.send_half(request)
        for _ in range(5):
            slow.send_rest()
            assert b"X-Served-By: app" in slow.complete(lambda: slow.tls.read(65536))
            end_without_close_notify(shop, app)
            slow.send_half(request)
            assert shop.get("/").served_by == "app"  # the proxy is one thread: it has met the half
