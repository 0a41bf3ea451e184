"""The table: {h1, h2} x {TLS 1.2, TLS 1.3, mutual TLS of either} x {match, no match, alternating on one connection}.

The peers are nginx and curl, and handlers that speak HTTP/2 or only HTTP/1.1; mutual TLS with and without
`X-Forwarded-Client-Cert`. (The same without TLS: `test_http2`.)
"""

from __future__ import annotations

import pytest

from tests.harness import manifests, scene
from tests.harness.http2 import any_app
from tests.harness.nginx import nginx
from tests.harness.peers import Server, server_context
from tests.harness.tls_peers import mirror

PORT = scene.TLS_PORT
TLS = ["TLSv1.2", "TLSv1.3", "mTLS 1.2", "mTLS 1.3", "mTLS 1.2, forwarding", "mTLS 1.3, forwarding"]
H2 = {"h1": "--http1.1", "h2": "--http2"}


@pytest.fixture(scope="module", params=TLS)
def table(request, tmp_path_factory):
    """(shop, TLS version, whether TLS is mutual, whether the client's identity is forwarded)."""
    mutual, forward = request.param.startswith("mTLS"), "forwarding" in request.param
    protocol = "TLSv1.2" if "1.2" in request.param else "TLSv1.3"
    annotations = {}
    if mutual:
        annotations = {
            f"telepresence.io/upstream-tls-secret.{PORT}": "orders-client",
            f"sidestep.dev/downstream-client-auth.{PORT}": "require",
            f"sidestep.dev/forward-client-cert.{PORT}": "enabled" if forward else "disabled",
        }
    folder = tmp_path_factory.mktemp("table")
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
            yield shop, protocol, mutual, forward


def test_matching_requests_go_to_the_handler_and_others_to_the_app(table):
    shop, protocol, mutual, forward = table
    with shop.intercept():
        for version, option in H2.items():
            options = [*shop.curl, option]
            spoof = [] if not forward else ["X_Forwarded-Client-Cert: Hash=spoof"]
            for _ in range(2):
                answer = shop.get("/", *spoof, options=options)
                assert (answer.code, answer.served_by) == (0, "app"), (version, answer.errors, shop.conditions())
                assert answer.info["http_version"] == {"h1": "1.1", "h2": "2"}[version]
                seen = answer.text.split("|")
                assert seen[:2] == [f"HTTP/{'2.0' if version == 'h2' else '1.1'}", protocol]
                # Sidestep's certificate, not the client's
                assert seen[2] == ("CN=sidestep.test" if mutual else "")
                if forward:
                    assert 'Subject="CN=ada.test";DNS=ada.test' in seen[4]
                    assert "spoof" not in seen[4]
                else:
                    assert seen[4] == ""
                answer = shop.get("/", scene.DEV, *spoof, options=options)
                assert (answer.code, answer.served_by) == (0, "handler"), (version, answer.errors, shop.conditions())
        if forward:
            for request in [bytes(each.received) for each in shop.handler.connections]:
                assert request.count(b'Subject="CN=ada.test"') == request.count(b"HTTP/1.1\r\n")
                assert b"spoof" not in request
        if mutual:
            assert shop.get("/").code != 0  # no certificate


def test_by_turns_on_one_connection(table):
    shop, protocol, mutual, forward = table
    turns = [True, False, False, True, True, False] * 5
    offers = server_context(shop.app_certificate, alpn=("h2", "http/1.1"))
    with Server(any_app, name="handler", tls=offers) as h2_handler:
        for handler in (shop.handler, h2_handler):
            with shop.intercept(handler_port=handler.port):
                for version, option in H2.items():
                    requests = [("/", *([scene.DEV] if matching else [])) for matching in turns]
                    answers = shop.get_in_turn(requests, options=[*shop.curl, option])
                    sides = ["handler" if matching else "app" for matching in turns]
                    assert [answer.served_by for answer in answers] == sides
                    assert sum(answer.info["num_connects"] for answer in answers) == 1, (version, handler)
                    spoken = {"h1": "1.1", "h2": "2"}[version]
                    assert {answer.info["http_version"] for answer in answers} == {spoken}
                    # Whether the app resumed a session depends on how long it was silent meanwhile.
                    (seen,) = {_without_resumption(answer.text) for answer in answers if answer.served_by == "app"}
                    server_protocol, ssl_protocol, subject, forwarded = seen
                    assert (server_protocol, ssl_protocol) == (f"HTTP/{'2.0' if version == 'h2' else '1.1'}", protocol)
                    assert subject == ("CN=sidestep.test" if mutual else "")
                    assert ('Subject="CN=ada.test"' in forwarded) is forward


def _without_resumption(text):
    server_protocol, ssl_protocol, subject, _, forwarded = text.split("|")
    return server_protocol, ssl_protocol, subject, forwarded
