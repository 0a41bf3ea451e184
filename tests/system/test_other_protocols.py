"""What is not HTTP on a port with a filter: relayed as it is, in the clear and inside TLS, whoever speaks first."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import threading
import time

import pytest

from sidestep.protocols import client_hello
from tests.harness import scene
from tests.harness.http1 import ClosedError
from tests.harness.nginx import client_context
from tests.harness.peers import Client, Server, http_app
from tests.harness.processes import Process
from tests.harness.waiting import until

PORTS = [pytest.param(scene.TLS_PORT, id="tls"), pytest.param(scene.PLAIN_PORT, id="plain")]


@contextlib.contextmanager
def app_of(shop, script, port, *, alpn=()):
    tls = shop.app_tls(alpn=alpn) if port == scene.TLS_PORT else None
    with Server(script, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls) as server:
        yield server


@contextlib.contextmanager
def steered(shop, port):
    with shop.intercept(port=port, plaintext=port == scene.PLAIN_PORT):
        yield


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", PORTS)
def test_redis(shop, tmp_path, port):
    """A real server and its own client: requests, pipelines, large values, a subscription."""
    words = ["redis-server", "--bind", shop.space.ip, "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    words += ["--protected-mode", "no"]
    client = ["redis-cli", "-h", shop.space.ip, "-p", str(port)]
    if port == scene.TLS_PORT:
        shop.app_certificate.write(tmp_path / "tls")
        words += ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
        words += ["--tls-cert-file", f"{tmp_path}/tls/tls.crt", "--tls-key-file", f"{tmp_path}/tls/tls.key"]
        words += ["--tls-ca-cert-file", str(shop.ca)]
        client += ["--tls", "--cacert", str(shop.ca), "--sni", scene.HOST]
    else:
        words += ["--port", str(port)]

    def redis(*command, stdin=""):
        done = subprocess.run(
            shop.space.client.enter([*client, *command]),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout.strip() or done.stderr.strip()

    with Process(shop.space.pod.enter(words), log=tmp_path / "redis.log") as server:
        until(lambda: redis("PING") == "PONG" or not server.running, within=15, what=lambda: f"redis\n{server.text()}")
        with steered(shop, port):
            assert redis("PING") == "PONG"
            assert redis("SET", "key", "value") == "OK"
            assert redis("GET", "key") == "value"
            assert redis("-x", "SET", "big", stdin="x" * 5_000_000) == "OK"
            assert redis("STRLEN", "big") == "5000000"
            many = "".join(f"INCR counter{number % 3}\n" for number in range(3000))
            assert redis("--pipe", stdin=many).endswith("errors: 0, replies: 3000")
            assert redis("MGET", "counter0", "counter1", "counter2") == "1000\n1000\n1000"


# --- who speaks first -------------------------------------------------------------------------------------------------


def greeter(server, connection):
    """As SMTP, MySQL or SSH do: the server begins."""
    connection.send(b"220 ready\r\n")
    while line := connection.reader.until(b"\r\n"):
        connection.send(b"250 " + line)


@pytest.mark.parametrize("port", PORTS)
def test_the_server_speaks_first(shop, port):
    with app_of(shop, greeter, port), steered(shop, port), shop.client(port=port) as client:
        assert client.reader.until(b"\r\n") == b"220 ready\r\n"
        client.send(b"HELO GET / HTTP/1.1\r\n")
        assert client.reader.until(b"\r\n") == b"250 HELO GET / HTTP/1.1\r\n"


@pytest.mark.alone
def test_only_the_first_client_of_a_server_that_begins_waits(shop):
    """Without the memory each connection waits for the detection timeout, a second."""
    port = scene.PLAIN_PORT
    with app_of(shop, greeter, port), steered(shop, port):
        times = []
        for _ in range(5):
            begin = time.monotonic()
            with shop.client(port=port) as client:
                assert client.reader.until(b"\r\n") == b"220 ready\r\n"
            times.append(time.monotonic() - begin)
    assert times[0] > 0.9
    assert sorted(times[1:])[1] < 0.6 * times[0], times


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.parametrize("silence", [0.0, 1.6])
def test_the_client_speaks_first_but_not_http(shop, port, silence):
    def mirror(server, connection):
        while True:
            connection.send(connection.reader.some().swapcase())

    with app_of(shop, mirror, port), steered(shop, port), shop.client(port=port) as client:
        time.sleep(silence)  # longer than the detection timeout: the silence is what is tested
        for data in (b"\x00\x01binary", b"more", os.urandom(100_000)):
            client.send(data)
            assert client.reader.exactly(len(data)) == data.swapcase()


@pytest.mark.parametrize("port", PORTS)
def test_http_after_a_silence_is_still_diverted(shop, port):
    with app_of(shop, http_app, port, alpn=("http/1.1",)), steered(shop, port), shop.client(port=port) as client:
        time.sleep(1.6)
        assert client.get("/", scene.DEV).header("x-served-by") == "handler"
        assert client.get("/").header("x-served-by") == "app"


@pytest.mark.parametrize("port", PORTS)
def test_nobody_speaks(shop, port):
    """A client that says nothing and an app that says nothing: the connection stands until one of them ends it."""
    ended = threading.Event()

    def silent(server, connection):
        try:
            connection.reader.fill()
        except ClosedError:
            ended.set()

    with app_of(shop, silent, port), steered(shop, port), shop.client(port=port) as client:
        client.sock.settimeout(2.5)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)
        client.close()
        assert ended.wait(10)


# --- half-close, resets ----------------------------------------------------------------------------------------------


def test_half_close_both_ways(shop):
    def digest(server, connection):
        connection.send(b"%d bytes" % len(connection.reader.rest()))

    port = scene.PLAIN_PORT
    with app_of(shop, digest, port), steered(shop, port), shop.client(port=port) as client:
        client.send(b"\x00" * 3_000_000)
        client.finish()
        assert client.reader.rest() == b"3000000 bytes"


def test_a_reset_stays_a_reset(shop):
    def break_off(server, connection):
        connection.reader.until(b"\x01")
        connection.reset()

    port = scene.PLAIN_PORT
    with app_of(shop, break_off, port), steered(shop, port), shop.client(port=port) as client:
        client.send(b"\x00\x01")
        with pytest.raises(ConnectionResetError):
            client.reader.rest()


# --- TLS as the app would see it without us ---------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.5, 1.5])
def test_a_server_that_takes_its_time_with_the_server_hello(shop, delay):
    """The client's handshake takes as long as the app's, no connection is lost, and the request is still diverted."""
    context = shop.app_tls(alpn=("http/1.1",))

    def late(server, connection):
        time.sleep(delay)  # the behaviour under test
        connection.sock = connection.reader.sock = context.wrap_socket(connection.sock, server_side=True)
        http_app(server, connection)

    with (
        Server(late, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT),
        steered(shop, scene.TLS_PORT),
    ):
        began = time.monotonic()
        with shop.client() as client:
            assert time.monotonic() - began >= delay
            assert client.get("/").header("x-served-by") == "app"
            assert client.get("/", scene.DEV).header("x-served-by") == "handler"


@pytest.mark.parametrize(
    "alpn", [(), ("http/1.1",), ("h2", "http/1.1"), ("http/1.1", "h2"), ("x-own", "h2"), ("nope",)]
)
@pytest.mark.parametrize("name", [scene.HOST, None])
def test_the_app_sees_the_clients_server_name_and_alpn(shop, alpn, name):
    """What the app is offered is what the client offered; what the client gets is what the app chose."""
    seen = []  # of every connection: the proxy asks on one of its own what the port speaks
    context = shop.app_tls(alpn=("h2", "http/1.1"))

    def record(server, connection):
        while len(connection.reader.buffer) < 5 or len(connection.reader.buffer) < 5 + int.from_bytes(
            connection.reader.buffer[3:5], "big"
        ):
            connection.reader.fill()
        hello = client_hello.parse(bytes(connection.reader.buffer))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(bytes(connection.reader.buffer))
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.send(outgoing.read())
                incoming.write(connection.sock.recv(65536))
        if data := outgoing.read():
            connection.send(data)
        seen.append((hello.server_name, hello.alpn, tls.selected_alpn_protocol()))
        connection.reader.rest()

    with (
        Server(record, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT),
        steered(shop, scene.TLS_PORT),
    ):
        context_of_client = client_context(None, alpn=alpn)
        with Client(
            shop.space.ip, scene.TLS_PORT, netns=shop.space.client, tls=context_of_client, server_name=name
        ) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            chosen = client.sock.selected_alpn_protocol()
            wanted = (name.encode() if name else None, tuple(part.encode() for part in alpn), chosen)
            until(lambda: wanted in seen, within=5, what=lambda: f"{wanted} among {seen}")
