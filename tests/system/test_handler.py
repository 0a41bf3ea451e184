"""The handler's side: refusals, half answers, and what the developer sees."""

from __future__ import annotations

import socket

import pytest

from tests.harness import scene
from tests.harness.authority import Authority
from tests.harness.peers import Server, http_app, server_context
from tests.harness.waiting import until


@pytest.fixture
def app(shop):
    with Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=scene.TLS_PORT, tls=shop.app_tls()) as app:
        yield app


@pytest.fixture
def closed_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def test_a_handler_that_refuses_leaves_the_request_to_the_app(shop, app, closed_port):
    with shop.intercept(handler_port=closed_port):
        assert shop.get("/", scene.DEV).served_by == "app"
        assert shop.get("/echo", scene.DEV, options=["-d", "body"]).text == "body"
        with shop.client() as client:
            for _ in range(3):
                assert client.get("/", scene.DEV).header("x-served-by") == "app"


def test_a_handler_that_closes_without_an_answer(shop, app):
    with shop.intercept("--name", "mine", "--http-header", "x-dev=ada"):
        assert shop.get("/drop", scene.DEV).served_by in ("app", "")  # the app drops it too
        with shop.client() as client:
            body = f"POST /drop HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\nContent-Length: 4\r\n\r\nbody".encode()
            answer = client.request(body, method="POST")
            assert answer.status == 502
            assert answer.body.startswith(b"sidestep:")
            assert b"shop/mine" in answer.body
            assert client.get("/").header("x-served-by") == "app"


def test_a_half_answer_never_looks_whole(shop, app):
    with shop.intercept():
        answer = shop.get("/half", scene.DEV)
        assert answer.code in (18, 56), answer  # partial file, or reset while receiving


def test_the_handler_is_verified_when_asked(shop, app, tmp_path):
    authority = Authority("Handlers")
    good = server_context(authority.issue(scene.HOST, "localhost", ips=["127.0.0.1"]))
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    words = ["--http-header", "x-dev=ada", "--handler-ca", str(tmp_path / "ca.crt")]
    with Server(http_app, name="verified", tls=good) as handler:
        with shop.intercept(*words, handler_port=handler.port):
            assert shop.get("/", scene.DEV).served_by == "verified"
        assert handler.connections[-1].server_name == scene.HOST
    with shop.intercept(*words):  # the usual handler's certificate is from elsewhere
        assert shop.get("/", scene.DEV).served_by == "app"


def test_a_line_for_each_diverted_request(shop, app):
    with shop.intercept() as running:
        shop.get("/one?q=1", scene.DEV)
        shop.get("/two", scene.DEV, options=["-X", "DELETE"])
        shop.get("/three")
        until(lambda: len(running.of("request")) == 2, within=5, what=lambda: f"two lines in {running.events()}")
        first, second = running.of("request")
        assert (first["method"], first["path"]) == ("GET", "/one?q=1")
        assert (second["method"], second["path"]) == ("DELETE", "/two")
        assert "secret" not in str(running.events())


def test_one_handler_connection_per_client_connection(shop, app):
    before = len(shop.handler.connections)
    with shop.intercept(), shop.client() as client:
        for _ in range(5):
            assert client.get("/", scene.DEV).header("x-served-by") == "handler"
        assert len(shop.handler.connections) == before + 1
