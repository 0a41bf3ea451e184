"""Mutual TLS: an app that wants client certificates is not opened by accident, and never by opening a door."""

from __future__ import annotations

import contextlib
import ssl

import pytest

from tests.harness import kernel, manifests, scene
from tests.harness.authority import Authority
from tests.harness.cli import sidestep
from tests.harness.peers import Client, Server
from tests.harness.tls_peers import VERSIONS, ClientRecords, client_tls, s_client, s_server, serial_of
from tests.harness.waiting import until

PORT = scene.TLS_PORT
BOTH = pytest.mark.parametrize("version", list(VERSIONS))
REQUEST = f"GET / HTTP/1.1\r\nHost: {scene.HOST}\r\n{scene.DEV}\r\nConnection: close\r\n\r\n"


def opted_in(client_auth, **more):
    notes = {
        f"telepresence.io/upstream-tls-secret.{PORT}": "orders-client",
        f"sidestep.dev/downstream-client-auth.{PORT}": client_auth,
    }
    return notes | {f"sidestep.dev/{name.replace('_', '-')}.{PORT}": value for name, value in more.items()}


@contextlib.contextmanager
def mutual_shop(folder, annotations):
    """A scene whose pod has a client certificate for its app, in a Secret that is there when the daemon starts."""
    with scene.shop(folder, annotations=annotations, start=False) as shop:
        shop.sidestep = shop.authority.issue("sidestep.test", client=True)
        shop.node.write("client.yaml", manifests.secret("orders-client", shop.sidestep.secret()))
        shop.node.start()
        shop.ada = shop.authority.issue("ada.test", client=True)
        yield shop


@pytest.fixture(scope="module")
def requiring(tmp_path_factory):
    with mutual_shop(tmp_path_factory.mktemp("mutual"), opted_in("require")) as shop:
        yield shop


@contextlib.contextmanager
def app(shop, *, version=None, clients=True, tls=None):
    """A recording app; `clients`: it requires client certificates."""
    records = ClientRecords()
    pinned = {"minimum": VERSIONS[version], "maximum": VERSIONS[version]} if version else {}
    tls = tls or shop.app_tls(clients=shop.authority.pem if clients else None, **pinned)
    with Server(records.app, netns=shop.space.pod, address=shop.space.ip, port=PORT, tls=tls) as server:
        records.server = server
        yield records


def connect(shop, *, certificate=None, version=None, alpn=("http/1.1",)):
    tls = client_tls(shop.authority.pem, certificate=certificate, version=version, alpn=alpn)
    return Client(shop.space.ip, PORT, netns=shop.space.client, tls=tls, server_name=scene.HOST, within=15)


def asks(shop, **options):
    """The server's name and the serial number of the certificate that the client saw."""
    with connect(shop, **options) as client:
        answer = client.get("/", scene.DEV)
        return answer.header("x-served-by"), serial_of(client.sock)


@BOTH
def test_without_opting_in_client_and_app_talk_end_to_end(tmp_path, version):
    with scene.shop(tmp_path) as shop, app(shop, version=version) as records, shop.intercept():
        ada = shop.authority.issue("ada.test", client=True)
        for _ in range(2):
            served_by, serial = asks(shop, certificate=ada, version=version)
            assert served_by == "app"
            assert serial == shop.app_certificate.serial
        until(lambda: len(records.subjects) == 2, within=5, what="the app's records")
        assert records.subjects == ["ada.test", "ada.test"]
        until(lambda: "ClientCertificateRequested" in shop.conditions(), within=5, what="the condition")
        assert f"sidestep.dev/downstream-client-auth.{PORT}: require (or request)" in shop.conditions()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            asks(shop, version=version)  # the app itself refuses


@pytest.mark.parametrize(
    "annotations", [opted_in("none"), opted_in("auto"), {next(iter(opted_in(""))): "orders-client"}]
)
def test_a_certificate_for_the_app_alone_does_not_open_it(tmp_path, annotations):
    with mutual_shop(tmp_path, annotations) as shop, app(shop) as records, shop.intercept():
        assert asks(shop, certificate=shop.ada) == ("app", shop.app_certificate.serial)
        assert records.subjects == ["ada.test"]


def test_require_without_a_certificate_for_the_app_does_not_open_it(tmp_path):
    with (
        scene.shop(tmp_path, annotations={f"sidestep.dev/downstream-client-auth.{PORT}": "require"}) as shop,
        app(shop) as records,
        shop.intercept(),
    ):
        ada = shop.authority.issue("ada.test", client=True)
        assert asks(shop, certificate=ada) == ("app", shop.app_certificate.serial)
        assert records.subjects == ["ada.test"]


@BOTH
@pytest.mark.parametrize("app_wants", [True, False])
def test_require_opens_the_connection_of_a_verified_client_and_refuses_all_others(requiring, version, app_wants):
    shop = requiring
    stranger = Authority("Stranger").issue("ada.test", client=True)
    expired = shop.authority.issue("ada.test", client=True, expired=True)
    with app(shop, version=version, clients=app_wants) as records, shop.intercept() as intercept:
        assert asks(shop, certificate=shop.ada, version=version) == ("handler", shop.own_certificate.serial)
        [told] = until(lambda: intercept.of("request"), within=5, what="the request to be told")
        assert told["tls_facts"]["client"].endswith("CN=ada.test")
        with connect(shop, certificate=shop.ada, version=version) as client:
            assert client.get().header("x-served-by") == "app"
        until(lambda: len(records.heads) == 1, within=5, what="the app's request")
        for certificate in (None, stranger, expired):
            with pytest.raises((ssl.SSLError, ConnectionError)) as refused:
                asks(shop, certificate=certificate, version=version)
            # the reason reaches the client: it is not merely reset
            assert "alert" in str(refused.value).lower(), refused.value
        assert len(records.heads) == 1
        assert set(records.subjects) == {"sidestep.test" if app_wants else ""}
        assert sum(bool(each.received) for each in records.server.connections) == 1


def test_request_verifies_a_certificate_that_is_shown(tmp_path):
    stranger = Authority("Stranger").issue("ada.test", client=True)
    with mutual_shop(tmp_path, opted_in("request")) as shop, app(shop) as records, shop.intercept():
        for version in VERSIONS:
            assert asks(shop, certificate=shop.ada, version=version) == ("handler", shop.own_certificate.serial)
            assert asks(shop, version=version) == ("handler", shop.own_certificate.serial)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                asks(shop, certificate=stranger, version=version)
        assert not records.heads


def test_an_app_that_refuses_our_certificate_gets_its_clients(requiring):
    """In TLS 1.3 it says so only after our side of the handshake is over."""
    shop = requiring
    other = Authority("Other clients")
    ada = other.issue("ada.test", client=True)
    for version, number in VERSIONS.items():
        tls = shop.app_tls(clients=other.pem, minimum=number, maximum=number)
        with app(shop, tls=tls) as records, shop.intercept():
            for _ in range(2):
                assert asks(shop, certificate=ada, version=version) == ("app", shop.app_certificate.serial)
            assert records.subjects == ["ada.test", "ada.test"]
            until(lambda: "UpstreamTlsFailed" in shop.conditions(), within=5, what=shop.conditions)


def test_an_app_that_never_confirms_is_waited_for_once(requiring):
    shop = requiring
    tls = shop.app_tls(clients=shop.authority.pem)
    tls.num_tickets = 0
    with app(shop, tls=tls), shop.intercept():
        for _ in range(3):
            assert asks(shop, certificate=shop.ada)[0] == "handler"


def test_require_without_an_authority_to_verify_against_steers_nothing(tmp_path):
    with mutual_shop(tmp_path, opted_in("require")) as shop, app(shop) as records:
        data = shop.own_certificate.secret()
        del data["ca.crt"]
        documents = scene.documents(shop.space, shop.own_certificate, annotations=opted_in("require"))
        shop.node.write("orders.yaml", *documents[:-1], manifests.secret("orders-tls", data))
        with shop.intercept(pods=None) as running:
            refused = until(
                lambda: "no ca.crt to verify them against" in shop.conditions() + running.process.text(),
                within=10,
                what=lambda: shop.conditions() + running.process.text(),
            )
            assert refused
            assert asks(shop, certificate=shop.ada) == ("app", shop.app_certificate.serial)
            assert records.subjects == ["ada.test"]


def test_openssl_on_both_ends(requiring):
    shop = requiring
    ada, ca = shop.ada.write(shop.folder / "ada"), shop.ca
    for option in ("-tls1_2", "-tls1_3"):
        wants = ["-Verify", "1", "-verify_return_error", "-CAfile", str(ca), option]
        with s_server(shop.space.pod, shop.folder, PORT, shop.app_certificate, *wants), shop.intercept():
            words = ["-CAfile", ca, "-verify_return_error", option]
            mine = ["-cert", ada / "tls.crt", "-key", ada / "tls.key"]
            page = s_client(shop.space.client, shop.space.ip, PORT, *words, *mine, text="GET / HTTP/1.0\r\n\r\n")
            assert "Verify return code: 0 (ok)" in page
            assert "s_server" in page, page
            page = s_client(shop.space.client, shop.space.ip, PORT, *words, *mine, text=REQUEST)
            assert "X-Served-By: handler" in page, page
            page = s_client(shop.space.client, shop.space.ip, PORT, *words, text=REQUEST)
            assert "X-Served-By" not in page
            assert "s_server" not in page
            assert "alert" in page, page


def test_what_a_forwarding_port_cannot_read_is_closed(tmp_path):
    annotations = opted_in("request", forward_client_cert="enabled")
    with mutual_shop(tmp_path, annotations) as shop, app(shop) as records, shop.intercept():
        spoof = "X-Forwarded-Client-Cert: Hash=1"
        with connect(shop) as client:  # no certificate: nothing is added, the spoof goes
            assert client.get("/", spoof).header("x-served-by") == "app"
        assert b"orwarded" not in records.heads[0]
        for words in (f"GET / HTTP/1.1\r\nHost: a\r\n{spoof}\r\nContent-Length: 1, 1\r\n\r\n", "\x01\x02 not http\r\n"):
            with connect(shop) as client:
                client.send(words.encode())
                with contextlib.suppress(OSError):
                    assert client.sock.recv(100) == b""
        with Client(shop.space.ip, PORT, netns=shop.space.client) as client:
            client.send(f"GET / HTTP/1.1\r\nHost: a\r\n{spoof}\r\n\r\n".encode())
            with contextlib.suppress(OSError):
                assert client.sock.recv(100) == b""
        assert len(records.heads) == 1
        counters = until(
            lambda: [pod["counters"] for pod in shop.node.status()["pods"] if pod["counters"].get("closed_unread")],
            within=5,
            what=shop.conditions,
        )
        assert counters


def test_a_forwarding_port_is_not_steered_without_the_certificate_for_its_app(tmp_path):
    """The app asks for one: each of its clients would be closed, and reaches the app without us."""
    annotations = opted_in("request", forward_client_cert="enabled")
    with scene.shop(tmp_path, annotations=annotations) as shop, app(shop) as records:
        words = ["intercept", "orders", "-n", "shop", "--port", f"1:{PORT}", "--http-header", "a=b"]
        refused = sidestep(*words, socket=shop.node.socket)
        assert refused.code == 1
        assert f"telepresence.io/upstream-tls-secret.{PORT} 'orders-client'" in refused.error
        assert f"sidestep.dev/forward-client-cert.{PORT} closes what cannot be opened" in refused.error
        ada = shop.authority.issue("ada.test", client=True)
        assert asks(shop, certificate=ada) == ("app", shop.app_certificate.serial)
        assert records.subjects == ["ada.test"]
        assert not kernel.steering(shop.space.pod).links
