"""Probing: what a port speaks is learnt from its app, once, by one connection that nobody else notices."""

from __future__ import annotations

import contextlib
import threading

import pytest

from tests.harness import manifests
from tests.harness.authority import Authority
from tests.harness.cli import intercept, sidestep
from tests.harness.namespaces import pod_namespace
from tests.harness.node import node
from tests.harness.peers import Client, Server, http_app, server_context
from tests.harness.tls_peers import client_tls
from tests.harness.waiting import until

PORT = 9000
AUTHORITY = Authority()
CERTIFICATE = AUTHORITY.issue("orders.shop.test", "alt.shop.test")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
H2_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class Shop:
    """A pod `plain-1` with one port that nothing is written about."""

    def __init__(self, daemon, space):
        self.node = daemon
        self.space = space

    def declare(self, **annotations):
        notes = {f"telepresence.io/{name.replace('_', '-')}.{PORT}": value for name, value in annotations.items()}
        self.write(notes)

    def write(self, notes):
        pod = manifests.pod("plain-1", self.space, ports=[manifests.container_port(PORT)], annotations=notes)
        self.node.write("plain.yaml", pod)

    def intercept(self):
        words = ("--port", f"1:{PORT}", "--http-header", "x-dev=ada")
        return intercept(self.node, "pod/plain-1", *words)

    def app(self, script, **options):
        return Server(script, netns=self.space.pod, address=self.space.ip, port=PORT, **options)

    def client(self, tls=None):
        name = "orders.shop.test" if tls else None
        return Client(self.space.ip, PORT, netns=self.space.client, tls=tls, server_name=name)

    def known(self):
        """(protocol, how it is known) as `list` shows it."""
        found = sidestep("list", "-n", "shop", "--output", "json", socket=self.node.socket)
        port = found.json["ports"][0]
        return port["protocol"], port["known"]

    def wait_known(self, protocol, known):
        until(lambda: self.known() == (protocol, known), within=5, what=lambda: f"{self.known()}", every=0.05)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with pod_namespace() as space, node(tmp_path_factory.mktemp("probing"), start=False) as daemon:
        shop = Shop(daemon, space)
        shop.declare()
        daemon.start()
        yield shop


@pytest.fixture
def shop(shared):
    shared.declare()
    return shared


def clear_app(server, connection):
    """Answers HTTP/1 and the HTTP/2 preface as an HTTP/1 server does."""
    while True:
        head = connection.reader.until(b"\r\n\r\n")
        if head.startswith(b"PRI "):
            connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def h2c_app(server, connection):
    connection.send(H2_SETTINGS)
    while True:
        connection.reader.some()


def test_an_app_in_clear_costs_it_one_connection(shop):
    with shop.app(clear_app) as app, shop.intercept():
        assert shop.known() == ("tls?", "not known yet")
        for _ in range(4):
            with shop.client() as client:
                assert client.get().status == 200
        shop.wait_known("http", "probed")
        probes = [each for each in app.connections if each.received.startswith(b"PRI ")]
        assert len(probes) == 1
        assert len(app.connections) == 5
        assert probes[0].received == PREFACE
        status = sidestep("status", socket=shop.node.socket).stdout
        assert f"shop/plain-1 {PORT}/tcp: http (probed)" in status


def test_an_app_that_speaks_http2_in_clear(shop):
    with shop.app(h2c_app) as app, shop.intercept():
        with shop.client() as client:
            client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + H2_SETTINGS)
            client.reader.some()
            shop.wait_known("h2c", "probed")
        assert len(app.connections) == 2
        # SETTINGS and a polite end: nothing that opens a stream
        goodbye = b"\0\0\x08\x07" + bytes(13)
        until(lambda: [each for each in app.connections if each.received == PREFACE + goodbye], within=5, what="GOAWAY")


@pytest.mark.parametrize("asks", [False, True])
def test_a_tls_app_tells_its_protocol_names_and_whether_it_wants_certificates(shop, asks):
    tls = server_context(CERTIFICATE, alpn=("h2", "http/1.1"), clients=AUTHORITY.pem if asks else None)
    with shop.app(http_app, tls=tls) as app, shop.intercept():
        for _ in range(3):
            with contextlib.suppress(OSError), shop.client(client_tls(AUTHORITY.pem, alpn=["http/1.1"])) as client:
                client.get()
        wants = "asks for client certificates; " if asks else ""
        shop.wait_known("https", f"probed (ALPN h2; {wants}certificate of orders.shop.test, alt.shop.test)")
        assert len(app.connections) == 4


def test_the_probe_begins_again_with_another_app(shop):
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(shop.app(clear_app))
        stack.enter_context(shop.intercept())
        ask(shop)
        shop.wait_known("http", "probed")
        first.stop()
        shop.wait_known("tls?", "not known yet")
        with shop.app(http_app, tls=server_context(CERTIFICATE)):
            # the first connections may still reach the app without us
            until(lambda: ask(shop, client_tls(AUTHORITY.pem)) and shop.known()[0] != "tls?", within=10, what="a probe")
            shop.wait_known("https", "probed (ALPN http/1.1; certificate of orders.shop.test, alt.shop.test)")


def test_a_container_that_starts_anew_is_probed_anew(shop):
    with shop.app(clear_app) as app, shop.intercept():
        ask(shop)
        shop.wait_known("http", "probed")
        shop.write({"sidestep.dev/pid": str(shop.node.pid)})  # another process stands for the container
        shop.wait_known("tls?", "not known yet")
        ask(shop)
        shop.wait_known("http", "probed")
        assert sum(each.received.startswith(b"PRI ") for each in app.connections) == 2


def test_a_connection_that_contradicts_what_is_known(shop):
    def both(server, connection):
        connection.sock.settimeout(0.5)
        clear_app(server, connection)

    with shop.app(both), shop.intercept():
        ask(shop)
        shop.wait_known("http", "probed")
        with contextlib.suppress(OSError):
            ask(shop, client_tls(AUTHORITY.pem))
        shop.wait_known("tls?", "not known yet")


def test_a_silent_app_is_unknown_and_asked_again_within_the_annotated_time(shop):
    release = threading.Event()

    def slow(server, connection):
        if connection.reader.until(b"\r\n\r\n").startswith(b"PRI ") and not release.is_set():
            connection.reader.some()  # SETTINGS, and then no answer: the probe gives up and closes
            connection.reader.some()
        elif connection.received.startswith(b"PRI "):
            connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        else:
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    shop.declare(upstream_probe_timeout="100ms")
    with shop.app(slow) as app, shop.intercept():
        for count in (1, 2):
            # the probe holds nobody up, and while one runs there is no other
            assert ask(shop)
            until(lambda wanted=count: len(probes_of(app)) == wanted, within=5, what="a probe")
            probes = probes_of(app)
            assert probes[-1].finished.wait(1.5)  # closed after the annotated time, not after two seconds
            assert shop.known() == ("tls?", "not known yet")
        release.set()
        assert ask(shop)
        shop.wait_known("http", "probed")


def probes_of(app):
    return [each for each in app.connections if each.received.startswith(b"PRI ")]


def ask(shop, tls=None):
    try:
        with shop.client(tls) as client:
            return client.get().status == 200
    except ConnectionRefusedError:
        return False
