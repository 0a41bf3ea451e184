import socket

import pytest
from msgspec.structs import replace

from sidestep.laptop.channels.preface_probe import PrefacedChannel
from sidestep.laptop.channels.tls_channel import TlsChannel
from sidestep.laptop.handler import Handler, HandlerSettings, NoHandler
from sidestep.laptop.translation.channel import TranslatingChannel
from sidestep.model.errors import ConfigurationError, RefusedError
from sidestep.protocols.http2 import PREFACE
from sidestep.tunnel.channel import SocketChannel
from tests.harness.authority import Authority
from tests.unit.laptop.peers import server_context, serving
from tests.unit.tunnel.ends import OPENING, asynchronous

AUTHORITY = Authority("Developer")
NAMES = ("orders.shop", "localhost")


def greet(connection):
    connection.sendall(b"hello")
    connection.recv(1)


@pytest.fixture
def context(tmp_path):
    return server_context(AUTHORITY.issue(*NAMES, ips=["127.0.0.1"]), tmp_path / "tls", alpn=("h2", "http/1.1"))


@pytest.fixture
def ca(tmp_path):
    path = tmp_path / "ca.pem"
    path.write_bytes(AUTHORITY.pem)
    return path


async def greeted(settings, opening=OPENING):
    channel = await Handler(settings).dial(opening)
    try:
        return type(channel), await channel.read()
    finally:
        channel.close()


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_tls_with_the_clients_name_and_protocol(context, protocol):
    @asynchronous
    async def run():
        with serving(greet, context) as server:
            opening = replace(OPENING, protocol=protocol)
            assert await greeted(HandlerSettings(server.port), opening) == (TlsChannel, b"hello")
            assert server.names == ["orders.shop"]
            assert server.protocols == [protocol]

    run()


def test_a_client_without_a_name_sends_none(context):
    @asynchronous
    async def run():
        with serving(greet, context) as server:
            await greeted(HandlerSettings(server.port), replace(OPENING, server_name=""))
            assert server.names == [None]

    run()


@pytest.mark.parametrize("name", ["a..b", ".x", "x" * 64 + ".y", "x" * 250])
def test_a_name_that_ssl_refuses_is_left_out(context, name):
    @asynchronous
    async def run():
        with serving(greet, context) as server:
            await greeted(HandlerSettings(server.port), replace(OPENING, server_name=name))
            assert server.names == [None]

    run()


@pytest.mark.parametrize(("plaintext", "tls"), [(True, True), (False, False), (True, False)])
def test_in_clear_when_asked_or_when_the_client_was(plaintext, tls):
    @asynchronous
    async def run():
        with serving(greet) as server:
            settings = HandlerSettings(server.port, plaintext=plaintext)
            assert await greeted(settings, replace(OPENING, tls=tls)) == (SocketChannel, b"hello")

    run()


def test_a_ca_verifies_the_handler(context, ca):
    @asynchronous
    async def run():
        with serving(greet, context) as server:
            settings = HandlerSettings(server.port, ca=ca)
            assert await greeted(settings) == (TlsChannel, b"hello")
            assert await greeted(settings, replace(OPENING, server_name="")) == (TlsChannel, b"hello")
            with pytest.raises(RefusedError, match=r"cannot be verified.*stranger"):
                await greeted(settings, replace(OPENING, server_name="stranger.example"))

    run()


def test_another_ca_refuses_the_handler(context, tmp_path):
    @asynchronous
    async def run():
        other = tmp_path / "other.pem"
        other.write_bytes(Authority("Stranger").pem)
        with serving(greet, context) as server, pytest.raises(RefusedError, match="cannot be verified"):
            await greeted(HandlerSettings(server.port, ca=other))

    run()


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_an_unusable_ca_is_a_configuration_error(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="--handler-ca"):
        Handler(HandlerSettings(1, ca=path))


def test_a_handler_in_clear_gets_a_hint():
    @asynchronous
    async def run():
        def http(connection):
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        with serving(http) as server, pytest.raises(RefusedError, match="--plaintext"):
            await greeted(HandlerSettings(server.port))

    run()


def test_nobody_listening_is_refused_at_once():
    @asynchronous
    async def run():
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(RefusedError, match=f"127.0.0.1:{port}: connection refused"):
            await greeted(HandlerSettings(port))

    run()


def test_a_host_that_cannot_be_resolved():
    @asynchronous
    async def run():
        with pytest.raises(RefusedError, match="cannot be resolved"):
            await greeted(HandlerSettings(1, address="no-host.invalid"))

    run()


def preface(answer):
    def serve(connection):
        connection.recv(1000)
        connection.sendall(answer)
        connection.recv(1)

    return serve


@pytest.mark.parametrize(
    ("serve", "speaks"),
    [
        (preface(b"\0\0\0\4\0\0\0\0\0"), True),
        (preface(b"\0\0\6\4\0\0\0\0\0\0\3\0\0\0\x64" + b"\0\0\0\4\1\0\0\0\0"), True),
        (preface(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n"), False),
        (preface(b"\0\0\0\4\1\0\0\0\0"), False),
        (preface(b"\0\0\0\4"), False),
        (lambda connection: connection.recv(1000), False),
        (lambda connection: connection.close(), False),
    ],
    ids=["settings", "settings and more", "http/1.1", "ack", "silent half", "closes", "closes at once"],
)
def test_a_handler_in_clear_is_asked_for_http2(serve, speaks):
    @asynchronous
    async def run():
        with serving(serve) as server:
            handler = Handler(HandlerSettings(server.port, plaintext=True))
            channel = await handler.dial(replace(OPENING, protocol="h2"))
            assert isinstance(channel, PrefacedChannel if speaks else TranslatingChannel)
            channel.close()

    run()


def test_the_preface_is_sent_once():
    @asynchronous
    async def run():
        seen = bytearray()

        def serve(connection):
            seen.extend(connection.recv(1000))
            connection.sendall(b"\0\0\0\4\0\0\0\0\0later")
            while data := connection.recv(1000):
                seen.extend(data)

        with serving(serve) as server:
            handler = Handler(HandlerSettings(server.port, plaintext=True))
            channel = await handler.dial(replace(OPENING, protocol="h2"))
            got = b""
            while not got.endswith(b"later"):
                got += await channel.read()
            assert got == b"\0\0\0\4\0\0\0\0\0later"
            for piece in (PREFACE[:5], PREFACE[5:] + b"rest", b"more"):
                await channel.write(piece)
            await channel.write_eof()
            assert await channel.read() == b""
            channel.close()
        assert bytes(seen) == PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"restmore"

    run()


@pytest.mark.parametrize("alpn", [("http/1.1",), ()])
def test_a_handler_with_tls_that_does_not_choose_http2_is_translated_to(tmp_path, alpn):
    @asynchronous
    async def run():
        only_one = server_context(AUTHORITY.issue(*NAMES), tmp_path / "tls1", alpn=alpn)
        with serving(greet, only_one) as server:
            channel = await Handler(HandlerSettings(server.port)).dial(replace(OPENING, protocol="h2"))
            assert isinstance(channel, TranslatingChannel)
            channel.close()
            assert await greeted(HandlerSettings(server.port)) == (TlsChannel, b"hello")

    run()


def test_a_silent_handler_is_given_up(monkeypatch):
    monkeypatch.setattr("sidestep.laptop.handler.DIAL_TIMEOUT", 0.1)

    @asynchronous
    async def run():
        def silent(connection):
            while connection.recv(10_000):
                pass

        with serving(silent) as server, pytest.raises(RefusedError, match="did not answer"):
            await greeted(HandlerSettings(server.port))

    run()


def test_ipv6(tmp_path):
    assert str(HandlerSettings(80, address="::1")) == "[::1]:80"


@pytest.mark.parametrize("bound", ["127.0.0.1", ""])
def test_whether_nobody_listens_is_told_without_a_connection(bound):
    @asynchronous
    async def run():
        with socket.create_server((bound, 0)) as server:
            server.setblocking(False)
            port = server.getsockname()[1]
            assert await Handler(HandlerSettings(port)).absent() == ""
            with pytest.raises(BlockingIOError):
                server.accept()
        assert await Handler(HandlerSettings(port)).absent() == f"nothing listens on 127.0.0.1:{port}"
        with socket.create_server(("127.0.0.1", port)):
            pass

    run()


Socket = socket.socket


class WindowsLikeSocket(Socket):
    """Binds an address of 127.0.0.0/8 beside a listener on all addresses, and all addresses beside one on 127.0.0.1."""

    def bind(self, address):
        host, port = address[:2]
        try:
            Socket.bind(self, address)
        except OSError:
            on_all = refused("127.0.0.77", port)
            if on_all == (host == "127.0.0.1"):
                return
            raise


def refused(host, port):
    with Socket() as sock:
        try:
            sock.bind((host, port))
        except OSError:
            return True
    return False


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::"])
def test_on_windows_a_listener_on_all_addresses_is_found_too(bound, monkeypatch):
    @asynchronous
    async def run():
        family = socket.AF_INET6 if ":" in bound else socket.AF_INET
        with socket.create_server((bound, 0), family=family, dualstack_ipv6=family == socket.AF_INET6) as server:
            port = server.getsockname()[1]
            with monkeypatch.context() as patch:
                patch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
                patch.setattr(socket, "socket", WindowsLikeSocket)
                assert await Handler(HandlerSettings(port)).absent() == ""
        monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_KEEPALIVE, raising=False)
        assert await Handler(HandlerSettings(port)).absent() == f"nothing listens on 127.0.0.1:{port}"

    run()


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.name.invalid"])
def test_of_another_machine_nothing_is_told(address):
    @asynchronous
    async def run():
        assert await Handler(HandlerSettings(9, address=address)).absent() == ""
        assert await NoHandler().absent() == ""

    run()
