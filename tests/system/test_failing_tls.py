"""What a policy's failurePolicy decides about TLS that cannot be opened as its client wants it, with real clients.

A client asks for what the policy blocks. It is answered by the app (passed through, counted), by the policy (403), or
by nobody; under `Fail` no byte of such a request is at the app.
"""

from __future__ import annotations

import base64
import contextlib
import os
import ssl

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.harness import scene
from tests.harness.authority import Authority
from tests.harness.inspection import FILE, policy, rule, wait_programmed
from tests.harness.peers import Server, http_app, server_context
from tests.harness.processes import Process
from tests.harness.tls_peers import s_client
from tests.harness.waiting import until
from tests.unit.protocols.made_hellos import vector

IGNORE, FAIL = "Ignore", "Fail"
REQUEST = f"GET /admin HTTP/1.1\r\nHost: {scene.HOST}\r\nConnection: close\r\n\r\n"


@pytest.fixture
def shop(tmp_path):
    """A scene with an app on the TLS port, which tests may replace."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(scene.shop(tmp_path, ipv6=False))
        made.stack = stack
        yield made


def serve(shop, tls, app=http_app):
    options = {"netns": shop.space.pod, "address": "0.0.0.0"}
    shop.app = shop.stack.enter_context(Server(app, port=scene.TLS_PORT, tls=tls, **options))


def enforce(shop, failure):
    shop.node.write(FILE, policy(rule(), failurePolicy=failure, ports=[scene.TLS_PORT]))
    wait_programmed(shop)
    until(lambda: shop.node.status()["pods"][0]["steered"], within=10, what=lambda: f"the port: {shop.conditions()}")


def counted(shop, failure, reason):
    counters = shop.node.status()["pods"][0]["counters"]
    return counters.get(f"inspection_{'closed' if failure == FAIL else 'bypassed'}_{reason}", 0)


def received(shop):
    return [bytes(each.reader.received) for each in shop.app.connections]


def ask(shop, *options):
    return s_client(shop.space.client, shop.space.ip, scene.TLS_PORT, *options, text=REQUEST, within=40.0)


def assert_decided(shop, said, failure, reason):
    """The request was carried end to end, or closed; and counted."""
    what = lambda: f"{reason} to be counted: {shop.conditions()}"  # noqa: E731 - said when it is not
    until(lambda: counted(shop, failure, reason) > 0, within=10, what=what)
    if failure == FAIL:
        assert "HTTP/1.1" not in said
        assert not any(received(shop))
    else:
        assert "HTTP/1.1 200 OK" in said, said
        assert any(b"GET /admin" in each for each in received(shop))


OFFERS = {
    "a name that is an address": (("-servername", "192.0.2.1"), "server_name"),
    "a name with an empty label": (("-servername", "orders..test"), "server_name"),
    "a label of more than 63 letters": (("-servername", "a" * 64 + ".test"), "server_name"),
    "ALPN that is not ASCII": (("-alpn", os.fsdecode(b"\xff\xfe,http/1.1")), "alpn_not_ascii"),
}


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_a_name_or_protocol_that_cannot_be_offered_to_the_app_is_closed_or_carried_end_to_end(shop, failure):
    serve(shop, shop.app_tls())
    enforce(shop, failure)
    assert "HTTP/1.1 403 Forbidden" in ask(shop)
    for what, (options, reason) in OFFERS.items():
        shop.app.connections.clear()
        before = counted(shop, failure, reason)
        said = ask(shop, *options)
        assert_decided(shop, said, failure, reason)
        until(
            lambda reason=reason, before=before: counted(shop, failure, reason) == before + 1,
            within=10,
            what=lambda what=what: f"{what} to be counted once: {shop.conditions()}",
        )


def from_another_authority(shop):
    """The app's certificate is one that the pod's ca.crt does not verify."""
    return server_context(Authority("Somebody else").issue(scene.HOST))


def in_the_clear(shop):
    """The app speaks no TLS on the port that has a certificate."""
    del shop


def bad_request(server, connection):
    """What an HTTP server says to a ClientHello."""
    del server
    connection.reader.fill()
    connection.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")


def for_clients_with_certificates(shop):
    """The app wants a certificate of each client, and the port has none for it."""
    context = shop.app_tls()
    context.load_verify_locations(cadata=shop.authority.pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
@pytest.mark.parametrize("app", [from_another_authority, in_the_clear, for_clients_with_certificates])
def test_tls_with_the_app_that_fails_is_closed_or_carried_end_to_end(shop, app, failure):
    serve(shop, app(shop), bad_request if app is in_the_clear else http_app)
    enforce(shop, failure)
    said = ask(shop)
    if app is from_another_authority:
        assert_decided(shop, said, failure, "not_opened")
        return
    assert "HTTP/1.1 200" not in said, "client and app do not understand each other, whoever is between"
    assert not any(b"GET /admin" in each for each in received(shop))
    until(lambda: counted(shop, failure, "not_opened") > 0, within=10, what=lambda: f"the count: {shop.conditions()}")


def ech_configs() -> str:
    """An ECHConfigList (RFC 9849 section 4) with a key that nobody has: what a client would get from DNS."""
    public = X25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    suites = bytes.fromhex("00010001")  # HKDF-SHA256, AES-128-GCM
    key = b"\x07" + bytes.fromhex("0020") + vector(2, public) + vector(2, suites)
    contents = key + b"\x40" + vector(1, b"public.test") + vector(2, b"")
    return base64.b64encode(vector(2, bytes.fromhex("fe0d") + vector(2, contents))).decode()


def tstclnt(shop, *options, until_said):
    """What NSS's client, that of Firefox, has printed once one of these is in it; it does not end by itself."""
    request, log = shop.folder / "request", shop.folder / "tstclnt.log"
    request.write_text(REQUEST)
    log.unlink(missing_ok=True)
    command = ["tstclnt", "-D", "-o", "-h", shop.space.ip, "-p", str(scene.TLS_PORT), "-a", scene.HOST, "-V", "tls1.3:"]
    with Process(shop.space.client.enter([*command, "-A", request, *options]), log=log) as process:
        found = lambda: any(each in process.text() for each in until_said)  # noqa: E731 - asked here only
        until(found, within=60, what=lambda: f"{until_said}: {process.text()}")
        return process.text()


@pytest.mark.parametrize("failure", [IGNORE, FAIL])
def test_an_encrypted_client_hello_hides_no_request(shop, failure):
    """Browsers send the extension with a key and without one (GREASE), and nobody on the way can tell which."""
    serve(shop, shop.app_tls())
    enforce(shop, failure)
    tstclnt(shop, until_said=["HTTP/1.1 403 Forbidden"])
    tstclnt(shop, "-i", "100", until_said=["HTTP/1.1 403 Forbidden"])  # GREASE
    # A client with a key learns that it was not used and sends an alert, upon which its connection may be reset.
    said = tstclnt(shop, "-N", ech_configs(), until_said=["ECH", "PR_CONNECT_RESET_ERROR"])
    assert "HTTP/1.1" not in said
    assert not any(b"/admin" in each for each in received(shop))
