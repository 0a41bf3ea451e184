"""Many requests on few connections: each is judged by itself, order is kept, none is lost."""

from __future__ import annotations

import threading

import pytest

from tests.harness import scene
from tests.harness.peers import Server, http_app

CONNECTIONS, REQUESTS = 20, 50


@pytest.fixture(params=[scene.TLS_PORT, scene.PLAIN_PORT], ids=["tls", "plain"])
def port(request):
    return request.param


def test_a_thousand_requests_alternating_sides(nginx_shop, port):
    failures, counts = [], []

    def talk(number):
        try:
            with nginx_shop.client(port=port) as client:
                for turn in range(REQUESTS):
                    matching = (number + turn) % 2 == 0
                    answer = client.get(f"/{number}/{turn}", *([scene.DEV] if matching else []))
                    side = answer.header("x-served-by")
                    if answer.status != 200 or side != ("handler" if matching else "app"):
                        failures.append((number, turn, answer.head))
                    counts.append(1)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test must show it
            failures.append((number, repr(error)))

    with nginx_shop.intercept(port=port, plaintext=port == scene.PLAIN_PORT):
        threads = [threading.Thread(target=talk, args=(number,)) for number in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not failures, failures[:5]
    assert len(counts) == CONNECTIONS * REQUESTS


def test_pipelined_answers_keep_their_order(shop, port):
    tls = shop.app_tls() if port == scene.TLS_PORT else None
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls),
        shop.intercept(port=port, plaintext=port == scene.PLAIN_PORT),
        shop.client(port=port) as client,
    ):
        expected, batch = [], b""
        for turn in range(60):
            matching = turn % 3 != 1
            dev = f"{scene.DEV}\r\n".encode() if matching else b""
            body = b"%d" % turn
            batch += b"POST /echo HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (dev, len(body), body)
            expected.append(("handler" if matching else "app", body))
        client.send(batch)
        answers = [client.reader.message(answers="POST") for _ in expected]
        assert [(answer.header("x-served-by"), answer.body) for answer in answers] == expected


def test_a_slow_first_answer_holds_back_the_other_side_s(shop, port):
    """The handler's answer to the second request may not overtake the app's to the first."""
    tls = shop.app_tls() if port == scene.TLS_PORT else None
    with (
        Server(http_app, netns=shop.space.pod, address=shop.space.ip, port=port, tls=tls) as app,
        shop.intercept(port=port, plaintext=port == scene.PLAIN_PORT),
        shop.client(port=port) as client,
    ):
        client.send(f"GET /hold HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n{scene.DEV}\r\n\r\n".encode())
        assert app.holding.acquire(timeout=10)
        client.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            client.reader.fill()
        client.sock.settimeout(10)
        app.release.set()
        assert client.reader.message(answers="GET").header("x-served-by") == "app"
        assert client.reader.message(answers="GET").header("x-served-by") == "handler"


def test_ending_an_intercept_in_mid_keep_alive_sends_the_next_request_to_the_app(nginx_shop, port):
    plaintext = port == scene.PLAIN_PORT
    with nginx_shop.intercept(port=port, plaintext=plaintext) as running, nginx_shop.client(port=port) as client:
        assert client.get("/", scene.DEV).header("x-served-by") == "handler"
        assert client.get("/").header("x-served-by") == "app"
        assert running.stop() == 0
        client.sock.settimeout(1.5)
        with pytest.raises(TimeoutError):
            client.reader.fill()  # nobody closes a connection only because it is idle for the moment
        client.sock.settimeout(10)
        assert client.get("/", scene.DEV).header("x-served-by") == "app"
