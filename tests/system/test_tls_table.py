"""The table: {h1, h2} x {TLS 1.2, TLS 1.3, mutual TLS of either} x {match, no match}, with nginx and curl."""

from __future__ import annotations

import contextlib

import pytest

from tests.harness import manifests, scene
from tests.harness.nginx import nginx
from tests.harness.tls_peers import mirror

PORT = scene.TLS_PORT
TLS = ["TLSv1.2", "TLSv1.3", "mTLS 1.2", "mTLS 1.3"]
H2 = {"h1": "--http1.1", "h2": "--http2"}


@contextlib.contextmanager
def tls_shop(folder, tls):
    mutual = tls.startswith("mTLS")
    protocol = f"TLSv{tls[-3:]}"
    annotations = {}
    if mutual:
        annotations = {
            f"telepresence.io/upstream-tls-secret.{PORT}": "orders-client",
            f"sidestep.dev/downstream-client-auth.{PORT}": "require",
            f"sidestep.dev/forward-client-cert.{PORT}": "enabled",
        }
    with scene.shop(folder, annotations=annotations) as shop:
        sidestep = shop.authority.issue("sidestep.test", client=True)
        shop.node.write("client.yaml", manifests.secret("orders-client", sidestep.secret()))
        place = shop.folder / "nginx"
        place.mkdir()
        shop.curl = []
        if mutual:
            paths = shop.authority.issue("ada.test", client=True).write(shop.folder / "ada")
            shop.curl = ["--cert", paths / "tls.crt", "--key", paths / "tls.key"]
        clients = shop.authority.pem if mutual else None
        block = mirror([shop.space.ip], PORT, place, protocols=protocol, clients=clients)
        with nginx(shop.space.pod, place, plain=["127.0.0.1:1"], certificate=shop.app_certificate, extra=block):
            yield shop, protocol, mutual


@pytest.mark.parametrize("tls", TLS)
def test_matching_requests_go_to_the_handler_and_others_to_the_app(tmp_path, tls):
    with tls_shop(tmp_path, tls) as (shop, protocol, mutual), shop.intercept():
        for version, option in H2.items():
            options = [*shop.curl, option]
            spoof = [] if not mutual else ["X_Forwarded-Client-Cert: Hash=spoof"]
            for _ in range(2):
                answer = shop.get("/", *spoof, options=options)
                assert (answer.code, answer.served_by) == (0, "app"), (version, answer.errors, shop.conditions())
                assert answer.info["http_version"] == {"h1": "1.1", "h2": "2"}[version]
                seen = answer.text.split("|")
                assert seen[:2] == [f"HTTP/{'2.0' if version == 'h2' else '1.1'}", protocol]
                if mutual:
                    assert seen[2] == "CN=sidestep.test"  # Sidestep's certificate, not the client's
                    assert 'Subject="CN=ada.test";DNS=ada.test' in seen[4]
                    assert "spoof" not in seen[4]
                else:
                    assert (seen[2], seen[4]) == ("", "")
                answer = shop.get("/", scene.DEV, *spoof, options=options)
                assert (answer.code, answer.served_by) == (0, "handler"), (version, answer.errors, shop.conditions())
        if mutual:
            for request in [bytes(each.received) for each in shop.handler.connections]:
                assert request.count(b'Subject="CN=ada.test"') == request.count(b"HTTP/1.1\r\n")
                assert b"spoof" not in request
            assert shop.get("/").code != 0  # no certificate
