"""When the upstream handshake cannot be done, client and app talk TLS end to end, and `status` says why.

Sidestep's certificate is another leaf than the app's, so the serial number tells who ended the client's TLS.
"""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509

from tests.harness import kernel, scene
from tests.harness.authority import Authority
from tests.harness.cli import sidestep
from tests.harness.nginx import client_context
from tests.harness.peers import Client, Server, http_app, server_context
from tests.harness.tls_peers import s_client
from tests.harness.waiting import until

SKIP = f"telepresence.io/upstream-insecure-skip-verify.{scene.TLS_PORT}"


def serial(shop, *, alpn=(), name=scene.HOST, context=None):
    """The serial number of the certificate a client is shown, and the protocol chosen."""
    context = context or client_context(None, alpn=alpn)
    with Client(shop.space.ip, scene.TLS_PORT, netns=shop.space.client, tls=context, server_name=name) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        shown = x509.load_der_x509_certificate(client.sock.getpeercert(binary_form=True))
        return shown.serial_number, client.sock.selected_alpn_protocol()


def status_says(shop, word):
    """Wait until `sidestep status` names the condition; its text."""

    def look():
        shown = sidestep("status", socket=shop.node.socket)
        assert shown.code == 0, shown.stderr
        return word in shop.conditions() and shown.stdout

    return until(look, within=5, what=lambda: f"{word} in {shop.conditions()}", every=0.1)


def test_an_intercepted_client_sees_our_certificate(nginx_shop):
    """The other tests of this file rest on this one."""
    assert serial(nginx_shop)[0] == nginx_shop.app_certificate.serial
    with nginx_shop.intercept():
        assert serial(nginx_shop)[0] == nginx_shop.own_certificate.serial


def test_a_wrong_upstream_authority(tmp_path):
    with (
        scene.shop(tmp_path, own_authority=Authority("Another CA")) as shop,
        scene.shop_nginx(shop),
        shop.intercept(),
    ):
        for headers in ((), (scene.DEV,)):
            answer = shop.get("/", *headers)
            assert (answer.code, answer.served_by) == (0, "app"), answer.errors
        assert serial(shop)[0] == shop.app_certificate.serial
        text = status_says(shop, "UpstreamUnverified")
        assert scene.HOST in text


def test_verification_can_be_switched_off(tmp_path):
    another = Authority("Another CA")
    with (
        scene.shop(tmp_path, own_authority=another, annotations={SKIP: "enabled"}) as shop,
        scene.shop_nginx(shop),
        shop.intercept(),
    ):
        assert serial(shop)[0] == shop.own_certificate.serial
        assert shop.get("/", scene.DEV, options=["-k"]).served_by == "handler"


@pytest.mark.parametrize("protocols", ["TLSv1.2", "TLSv1.3"])
def test_an_app_that_asks_for_client_certificates(tmp_path, protocols):
    clients = Authority("Clients")
    mine = clients.issue("ada", client=True).write(tmp_path / "mine")
    with (
        scene.shop(tmp_path / "shop") as shop,
        scene.shop_nginx(shop, protocols=protocols, verify_clients=clients.pem) as app,
        shop.intercept(),
    ):
        options = ["--cert", mine / "tls.crt", "--key", mine / "tls.key"]
        for headers in ((), (scene.DEV,)):
            answer = shop.get("/", *headers, options=options)
            assert (answer.status, answer.served_by) == (200, "app"), answer.errors
        assert shop.get("/", scene.DEV).status == 400  # nginx's own answer to a client without certificate
        assert {line["subject"] for line in app.requests()} == {"CN=ada", ""}
        assert serial(shop)[0] == shop.app_certificate.serial
        status_says(shop, "ClientCertificateRequested")


def test_an_app_of_another_protocol(shop):
    tls = server_context(shop.app_certificate, alpn=("acme-tls/1",))
    with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls), shop.intercept():
        assert serial(shop, alpn=["acme-tls/1"]) == (shop.app_certificate.serial, "acme-tls/1")
        status_says(shop, "AlpnUnsupported")
        assert serial(shop, alpn=["http/1.1"])[1] is None


def test_a_client_whose_protocols_the_app_refuses(nginx_shop):
    """The client gets the app's own alert."""

    def alert():
        with pytest.raises(ssl.SSLError) as error:
            serial(nginx_shop, alpn=["foo/1"])
        return error.value.reason

    direct = alert()
    with nginx_shop.intercept():
        assert alert() == direct
        assert nginx_shop.get("/", scene.DEV).served_by == "handler"


def test_the_protocol_the_app_chose_is_the_one_the_client_gets(shop):
    tls = server_context(shop.app_certificate, alpn=("http/1.1",))
    with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls) as app:
        with shop.intercept():
            assert serial(shop, alpn=["h2", "http/1.1"]) == (shop.own_certificate.serial, "http/1.1")
            assert serial(shop) == (shop.own_certificate.serial, None)
        assert {connection.server_name for connection in app.connections if connection.tls} == {scene.HOST}


def test_a_client_that_does_not_trust_us_is_told_by_its_own_library(shop):
    """A pinned client fails its handshake with an alert; the proxy survives it."""
    tls = shop.app_tls()
    with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls), shop.intercept():
        with pytest.raises(ssl.SSLCertVerificationError):
            serial(shop, context=client_context(Authority("Stranger").pem))
        assert shop.get("/", scene.DEV).served_by == "handler"


def test_session_tickets_are_no_words_of_the_app(shop):
    """TLS 1.3 servers send tickets right after the handshake; only what they say inside TLS is speaking first."""
    tls = server_context(shop.app_certificate, alpn=())
    with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=tls), shop.intercept():
        for _ in range(3):
            with shop.client() as client:
                client.sock.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    client.reader.fill()  # the tickets have long arrived
                client.sock.settimeout(10)
                assert client.get("/", scene.DEV).header("x-served-by") == "handler"


def test_a_client_that_our_kind_of_certificate_does_not_suit(tmp_path):
    """The app has an ECDSA certificate, Sidestep an RSA one; some clients know only what goes with the app's."""
    with scene.shop(tmp_path) as shop, scene.shop_nginx(shop):
        own = shop.authority.issue(scene.HOST, kind="rsa")
        shop.node.write("orders.yaml", *scene.documents(shop.space, own))
        picky = [
            ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"],
            ["-tls1_3", "-sigalgs", "ecdsa_secp256r1_sha256"],
        ]

        def talk(*options):
            verify = ["-CAfile", shop.ca, "-verify_return_error"]
            text = f"GET / HTTP/1.1\r\nHost: {scene.HOST}\r\n{scene.DEV}\r\nConnection: close\r\n\r\n"
            return s_client(shop.space.client, shop.space.ip, scene.TLS_PORT, *verify, *options, text=text)

        with shop.intercept():
            until(lambda: "X-Served-By: handler" in talk(), within=5, what="an intercept", every=0.1)
            for options in picky:
                assert "X-Served-By: app" in talk(*options), options
                status_says(shop, "ClientTlsUnsupported")
            assert "X-Served-By: handler" in talk("-tls1_2")
            assert "X-Served-By: handler" in talk("-tls1_3")


def test_no_tls_on_a_tls_port(shop):
    """Plain HTTP to a port with a certificate is judged by its own bytes."""
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT),
        shop.intercept(),
        Client(shop.space.ip, scene.TLS_PORT, netns=shop.space.client) as client,
    ):
        assert client.get("/").header("x-served-by") == "app"


def test_a_port_without_certificate_is_refused_and_not_steered(shop):
    documents = scene.documents(shop.space, shop.own_certificate)
    del documents[2]["metadata"]["annotations"][f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}"]
    original = (shop.node.manifests / "orders.yaml").read_text()
    shop.node.write("orders.yaml", *documents)
    try:
        with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=shop.app_tls()):

            def has_none():
                [orders] = [each for each in shop.node.get("/v1/workloads") if each["name"] == "orders"]
                [port] = [each for each in orders["ports"] if each["number"] == scene.TLS_PORT]
                return port["certificate"] is None and not port["certificate_state"]

            until(has_none, within=5, what=lambda: f"the change to be read: {shop.node.get('/v1/workloads')}")
            words = ["intercept", "orders", "-n", "shop", "--port", "1:8443", "--http-header", "a=b"]
            result = sidestep(*words, socket=shop.node.socket)
            assert result.code == 1
            assert f"telepresence.io/downstream-tls-secret.{scene.TLS_PORT}" in result.error
            assert f"telepresence.io/downstream-tls-path.{scene.TLS_PORT}" in result.error
            assert not kernel.steering(shop.space.pod).links
    finally:
        (shop.node.manifests / "orders.yaml").write_text(original)


def test_a_certificate_that_changes_is_served_to_new_handshakes(nginx_shop):
    shop = nginx_shop
    path = shop.node.manifests / "orders.yaml"
    original = path.read_text()
    fresh = shop.authority.issue(scene.HOST)
    try:
        with shop.intercept(), shop.client() as before:
            assert before.get("/", scene.DEV).header("x-served-by") == "handler"
            shop.node.write("orders.yaml", *scene.documents(shop.space, fresh))
            until(lambda: serial(shop)[0] == fresh.serial, within=5, what="the new certificate", every=0.1)
            assert before.get("/", scene.DEV).header("x-served-by") == "handler"
            bad = shop.authority.issue(scene.HOST)
            mixed = type(bad)(chain=bad.chain, key=fresh.key, ca=bad.ca, serial=0)
            shop.node.write("orders.yaml", *scene.documents(shop.space, mixed))
            status_says(shop, "CertificateInvalid")
            assert serial(shop)[0] == fresh.serial  # the last good one stays
    finally:
        path.write_text(original)
