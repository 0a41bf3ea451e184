"""`forward-client-cert`: whoever steers the port, its app is told who the client is by Sidestep alone.

An unfiltered wiretap and a global intercept do not ask for requests to be read. The port is opened all the same.
"""

from __future__ import annotations

import contextlib
import select
import socket

import pytest
import yaml

from tests.harness import manifests, scene
from tests.harness.http2 import any_app
from tests.harness.peers import Client, Server, server_context
from tests.harness.taps import Recorder, wiretap
from tests.harness.tls_peers import ClientRecords, client_tls
from tests.harness.waiting import until
from tests.system.test_probes import node_address

PORT = scene.TLS_PORT
ENABLED = {
    f"telepresence.io/upstream-tls-secret.{PORT}": "orders-client",
    f"sidestep.dev/downstream-client-auth.{PORT}": "request",
    f"sidestep.dev/forward-client-cert.{PORT}": "enabled",
}
SPOOF = "X-Forwarded-Client-Cert: Hash=spoof"
RAW = f"GET /raw HTTP/1.1\r\nHost: a\r\n{SPOOF}\r\n\r\n".encode()


@contextlib.contextmanager
def shop_of(folder, *, certificate=True, client_auth="request", wanted=False):
    """A scene whose app (`shop.records`) believes what it is told, with a kubelet probe on its port."""
    annotations = ENABLED | {f"sidestep.dev/downstream-client-auth.{PORT}": client_auth}
    with scene.shop(folder, annotations=annotations, start=False) as shop:
        documents = list(yaml.safe_load_all((shop.node.manifests / "orders.yaml").read_text()))
        for document in documents:
            if document["kind"] == "Pod":
                document["spec"]["containers"][0]["readinessProbe"] = {"httpGet": {"port": PORT, "scheme": "HTTPS"}}
                if not certificate:
                    del document["metadata"]["annotations"][f"telepresence.io/downstream-tls-secret.{PORT}"]
        shop.node.write("orders.yaml", *documents)
        sidestep = shop.authority.issue("sidestep.test", client=True)
        shop.node.write("client.yaml", manifests.secret("orders-client", sidestep.secret()))
        shop.ada = shop.authority.issue("ada.test", client=True)
        shop.space.client.run("ip", "addr", "add", f"{node_address()}/32", "dev", "lo")
        shop.space.pod.run("ip", "route", "add", f"{node_address()}/32", "via", shop.space.client_ip)
        shop.node.start()
        shop.records = ClientRecords()
        tls = shop.app_tls(clients=shop.authority.pem if wanted else None)
        with Server(shop.records.app, netns=shop.space.pod, address=shop.space.ip, port=PORT, tls=tls, name="app"):
            yield shop


@pytest.fixture
def shop(tmp_path):
    with shop_of(tmp_path) as shop:
        yield shop


def dead_port():
    """Where no handler listens."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return reserved.getsockname()[1]


def served(shop, *fields, certificate=None):
    """Who serves one request, as the client is told."""
    tls = client_tls(shop.authority.pem, certificate=certificate, alpn=("http/1.1",))
    with Client(shop.space.ip, PORT, netns=shop.space.client, tls=tls, server_name=scene.HOST, within=15) as client:
        return client.get("/", *fields).header("x-served-by")


def is_closed(shop, words):
    """Whether a connection that says this without TLS ends without an answer."""
    with Client(shop.space.ip, PORT, netns=shop.space.client) as client:
        client.send(words)
        with contextlib.suppress(OSError):
            return client.sock.recv(100) == b""
        return True


def only_what_is_proved_reaches_the_app(shop):
    """Spoofs of clients with and without a certificate, over TLS and past it."""
    assert served(shop, SPOOF) == "app"
    assert served(shop, SPOOF, certificate=shop.ada) == "app"
    assert is_closed(shop, RAW)
    assert len(shop.records.heads) == 2, shop.records.heads
    assert b"orwarded" not in shop.records.heads[0]
    assert b'Subject="CN=ada.test"' in shop.records.heads[1]
    assert b"spoof" not in shop.records.heads[1]


def test_beside_an_unfiltered_wiretap_alone(shop):
    with Recorder(tls=server_context(shop.own_certificate)) as recorder:
        with wiretap(shop.node, f"{recorder.port}:{PORT}"):
            only_what_is_proved_reaches_the_app(shop)
            until(lambda: len(recorder.copies) == 2, within=10, what=lambda: str(recorder.copies))
        copied = [dict(each.fields).get("x-forwarded-client-cert", "") for each in recorder.copies]
        assert sorted("ada.test" in each for each in copied) == [False, True]
        assert not any("spoof" in each for each in copied)
    shop.records.heads.clear()
    # unsteered: clients reach the app directly, and so does what they write
    until(lambda: served(shop, SPOOF) == "app" and b"spoof" in shop.records.heads[-1], within=10, what="the app")


def test_beside_a_global_intercept_that_is_refused(shop):
    with shop.intercept("--name", "whole", handler_port=dead_port()):
        only_what_is_proved_reaches_the_app(shop)


def test_the_handler_of_a_global_intercept_sees_what_the_app_would(shop):
    with Server(any_app, name="handler", tls=server_context(shop.own_certificate, alpn=("http/1.1",))) as handler:
        with shop.intercept("--name", "whole", handler_port=handler.port):
            assert served(shop, SPOOF, certificate=shop.ada) == "handler"
            assert is_closed(shop, RAW)
        (said,) = (bytes(each.received) for each in handler.connections if each.received)
    assert b'Subject="CN=ada.test"' in said
    assert b"spoof" not in said
    assert not shop.records.heads


def probe(shop, certificate=None):
    """What the app says to a client from the node's own address."""
    request = f"GET /healthz HTTP/1.1\r\nHost: a\r\nUser-Agent: kube-probe/1.28\r\n{SPOOF}\r\n\r\n".encode()
    context = client_tls(shop.authority.pem, certificate=certificate)

    def ask():
        with (
            socket.create_connection((shop.space.ip, PORT), 10, source_address=(node_address(), 0)) as sock,
            context.wrap_socket(sock, server_hostname=scene.HOST) as tls,
        ):
            tls.sendall(request)
            return tls.recv(1000)

    return shop.space.client.call(ask)


@pytest.mark.parametrize("client_auth", ["request", "require", "auto"])
def test_a_probe_of_the_kubelet_is_answered_by_the_app(tmp_path, client_auth):
    with shop_of(tmp_path, client_auth=client_auth) as shop, shop.intercept("--name", "whole"):
        assert served(shop, certificate=shop.ada) == "handler"
        answer = probe(shop)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\nX-Served-By: app"), answer
        assert b"orwarded" not in shop.records.heads[-1]


def test_a_client_from_the_node_has_to_prove_itself_where_the_app_asks_for_it(tmp_path):
    with shop_of(tmp_path, client_auth="require", wanted=True) as shop, shop.intercept("--name", "whole"):
        assert probe(shop, shop.ada).startswith(b"HTTP/1.1 200 OK\r\nX-Served-By: app")
        assert b'Subject="CN=ada.test"' in shop.records.heads[-1]
        with contextlib.suppress(OSError):
            assert not probe(shop)
        assert len(shop.records.heads) == 1


@pytest.mark.parametrize("kind", ["wiretap", "global intercept"])
def test_requests_in_clear(tmp_path, kind):
    """No certificate is needed where the port never speaks TLS. HTTP/1 and HTTP/2, and what is neither."""
    port = scene.PLAIN_PORT
    with (
        scene.shop(tmp_path, annotations={f"sidestep.dev/forward-client-cert.{port}": "enabled"}) as shop,
        Server(any_app, netns=shop.space.pod, address=shop.space.ip, port=port, name="app") as app,
    ):
        handler = dead_port()
        steering = (
            wiretap(shop.node, f"{handler}:{port}", "--plaintext")
            if kind == "wiretap"
            else shop.intercept("--name", "whole", port=port, handler_port=handler, plaintext=True)
        )
        with steering:
            for version in ("--http1.1", "--http2-prior-knowledge"):
                answer = shop.get("/", SPOOF, port=port, options=[version])
                assert answer.served_by == "app", answer.errors
            for words in (b"SSH-2.0-x\r\n", RAW.replace(b"Host: a", b"Host : a")):
                with Client(shop.space.ip, port, netns=shop.space.client) as client:
                    client.send(words)
                    with contextlib.suppress(OSError):
                        assert client.sock.recv(100) == b""
            # a client that says nothing for longer than the detection timeout is served all the same
            with Client(shop.space.ip, port, netns=shop.space.client) as client:
                assert not select.select([client.sock], [], [], 1.5)[0]
                assert client.get("/", SPOOF).header("x-served-by") == "app"
        said = [bytes(each.received) for each in app.connections if each.received]
        assert len(said) == 3, said
        assert not any(b"spoof" in each for each in said)


@pytest.mark.parametrize("command", ["wiretap", "intercept"])
def test_a_port_that_cannot_be_opened_stays_unsteered(tmp_path, command):
    with (
        shop_of(tmp_path, certificate=False) as shop,
        wiretap(shop.node, f"1:{PORT}", command=command, pods=None) as run,
    ):
        until(lambda: "no certificate is configured" in run.process.text(), within=10, what=run.process.text)
        assert served(shop, "x-direct: 1") == "app"
        assert not shop.node.status()["pods"]
