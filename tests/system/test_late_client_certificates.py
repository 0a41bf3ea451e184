"""An app that asks for a client certificate once it has read a request, as Apache does by location.

In TLS 1.3 that is post-handshake authentication (RFC 8446 section 4.6.2), in TLS 1.2 a renegotiation. Only the client
itself can answer, so such connections run end to end as soon as the port has shown that it asks.
"""

from __future__ import annotations

import contextlib

import pytest

from tests.harness import manifests, scene
from tests.harness.apache import apache
from tests.harness.nginx import client_context
from tests.harness.peers import Client
from tests.harness.waiting import until

PORT = scene.TLS_PORT
VERSIONS = {
    "TLS 1.3": ("--tlsv1.3", "-all +TLSv1.2 +TLSv1.3"),
    "TLS 1.2": ("--tls-max 1.2", "-all +TLSv1.2 +TLSv1.3"),
    "TLS 1.2 app": ("--tlsv1.2", "-all +TLSv1.2"),
}
"""Options of the client, and what Apache speaks."""
LATE = "ClientCertificateRequestedLater"


@contextlib.contextmanager
def late_shop(folder, *, version="TLS 1.3", annotations=None, client=False):
    """A scene whose app is Apache; `shop.ada` are curl's options with a client certificate."""
    with scene.shop(folder, ipv6=False, annotations=annotations) as shop:
        if client:
            sidestep = shop.authority.issue("sidestep.test", client=True)
            shop.node.write("client.yaml", manifests.secret("orders-client", sidestep.secret()))
        ada = shop.authority.issue("ada.test", client=True).write(shop.folder / "ada")
        shop.ada = ["--cert", ada / "tls.crt", "--key", ada / "tls.key"]
        place = folder / "apache"
        place.mkdir()
        with apache(
            shop.space.pod,
            place,
            listen=[f"{shop.space.ip}:{PORT}"],
            certificate=shop.app_certificate,
            clients=shop.authority.pem,
            name=scene.HOST,
            protocols=VERSIONS[version][1],
        ):
            yield shop


def subject(answer):
    return answer.status, ", ".join(answer.headers.get("x-subject", []))


def asks(shop, path, version, *headers, certificate=True):
    options = [*VERSIONS[version][0].split(), *(shop.ada if certificate else [])]
    return shop.get(path, *headers, options=options)


@pytest.mark.parametrize(
    ("version", "place"),
    [("TLS 1.3", "/required/"), ("TLS 1.3", "/optional/"), ("TLS 1.2", "/optional/"), ("TLS 1.2 app", "/required/")],
)
def test_the_client_s_own_certificate_reaches_the_app_once_the_port_has_shown_that_it_asks(tmp_path, version, place):
    with late_shop(tmp_path, version=version) as shop:
        alone = asks(shop, place, version)
        assert subject(alone) == (200, "CN=ada.test"), alone.errors
        with shop.intercept():
            assert asks(shop, "/", version, scene.DEV).served_by == "handler"
            first = asks(shop, place, version)
            assert first.status == 0, (first.status, first.headers)  # no answer rather than a wrong one
            for _ in range(3):
                again = asks(shop, place, version)
                assert subject(again) == (200, "CN=ada.test"), again.errors
            until(lambda: LATE in shop.conditions(), within=5, what=shop.conditions)
            assert f"sidestep.dev/late-client-auth.{PORT}: enabled" in shop.conditions()
            assert asks(shop, place, version, certificate=False).status == (0 if place == "/required/" else 200)
        with shop.intercept():  # another intercept, another proxy: it is known
            assert subject(asks(shop, place, version)) == (200, "CN=ada.test")


@pytest.mark.parametrize("version", ["TLS 1.3", "TLS 1.2 app"])
def test_what_is_annotated_loses_no_request(tmp_path, version):
    annotations = {f"sidestep.dev/late-client-auth.{PORT}": "enabled"}
    with late_shop(tmp_path, version=version, annotations=annotations) as shop, shop.intercept():
        for place in ("/required/", "/optional/"):
            assert subject(asks(shop, place, version)) == (200, "CN=ada.test")
        until(lambda: LATE in shop.conditions(), within=5, what=shop.conditions)


def test_a_client_that_cannot_be_asked_later_is_still_served_by_the_handler(tmp_path):
    """Python's `ssl` offers no post-handshake authentication unless told to: the app cannot ask such a client."""
    with late_shop(tmp_path) as shop, shop.intercept():
        assert asks(shop, "/required/", "TLS 1.3").status == 0
        assert subject(asks(shop, "/required/", "TLS 1.3")) == (200, "CN=ada.test")
        with shop.client() as client:
            assert client.get("/", scene.DEV).header("x-served-by") == "handler"
        with shop.client() as client:
            assert client.get("/required/").status == 403  # as without us


@pytest.mark.parametrize("version", ["TLS 1.2", "TLS 1.2 app"])
def test_a_certificate_for_the_app_is_shown_later_too(tmp_path, version):
    annotations = {
        f"telepresence.io/upstream-tls-secret.{PORT}": "orders-client",
        f"sidestep.dev/downstream-client-auth.{PORT}": "request",
    }
    with late_shop(tmp_path, version=version, annotations=annotations, client=True) as shop, shop.intercept():
        assert asks(shop, "/", version, scene.DEV).served_by == "handler"
        for place in ("/required/", "/optional/"):
            for turn in range(2):
                answer = asks(shop, place, version)
                if version != "TLS 1.2 app":
                    assert subject(answer) == (200, "CN=sidestep.test")
                elif (place, turn) == ("/required/", 0):
                    assert answer.status == 0  # no renegotiation, not with any certificate
                else:
                    assert subject(answer) == (200, "CN=ada.test")


def test_idle_connections_come_back_end_to_end(tmp_path):
    """One connection shows the need; another that was open before is closed while it is idle and loses nothing."""
    with late_shop(tmp_path) as shop, shop.intercept():
        askable = client_context(shop.authority.pem)
        askable.post_handshake_auth = True
        with (
            Client(shop.space.ip, PORT, netns=shop.space.client, tls=askable, server_name=scene.HOST) as idle,
            shop.client() as other,
        ):
            assert (idle.get().status, other.get().status) == (200, 200)
            assert asks(shop, "/required/", "TLS 1.3").status == 0
            assert idle.sock.recv(1) == b""  # an end between two requests, which every client takes for one
            assert other.get().status == 200
